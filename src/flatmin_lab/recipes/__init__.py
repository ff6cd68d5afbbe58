"""Recipes: whole experiments from data to result, each by name."""
