"""flatmin in the loops of other frameworks (transformers, Accelerate, Lightning), and trackers for what it measures.

One module a framework, each imported by name: nothing here imports a framework or a tracker before it is asked for.
"""
