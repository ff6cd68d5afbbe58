"""Ahn, Jadbabaie, Sra. *How to Escape Sharp Minima with Random Perturbations*. arXiv:2305.15659."""
