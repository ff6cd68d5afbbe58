"""Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553."""
