"""Robust training of a classifier by one of the known methods: settings, methods, judging.

The settings are read without Keras, so nothing is imported here.
"""
