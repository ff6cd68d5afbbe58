"""flatmin: train into flat minima, measure how flat they are, certify what it buys."""

__version__ = "0.1.0"
