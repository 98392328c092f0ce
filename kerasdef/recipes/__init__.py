"""Recipes: a paper's whole procedure as one call, every number with its source."""
