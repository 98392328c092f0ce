"""Attacks that follow the gradients of a Keras classifier."""
