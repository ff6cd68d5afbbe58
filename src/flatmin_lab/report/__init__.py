"""Tables, figures and the HTML page of a comparison, made from stored results alone.

Nothing is imported here: each module loads what it needs (pandas, matplotlib, jinja2) when it is used.
"""
