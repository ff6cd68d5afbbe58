"""Slow, literal twins of published pseudocode. They share nothing with the library but its random draws."""
