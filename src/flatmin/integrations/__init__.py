"""flatmin in the loops of other frameworks: transformers, Accelerate, Lightning; and trackers that keep what is measured.

One module a framework, each imported by name: nothing here imports a framework or a tracker before it is asked for.
"""
