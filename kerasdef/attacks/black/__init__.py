"""Attacks that see outputs only: scores or labels of any callable."""
