"""flatmin in the loops of other frameworks: transformers, Accelerate, Lightning.

One module a framework, each imported by name: nothing here imports a framework before it is asked for.
"""
