"""The loop matrix: every training loop, run with every flat-minima optimizer that is installed."""
