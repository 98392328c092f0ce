"""The Model Integration Approach (Sanapala and Gondi, 2025): settings, training, judging.

The settings are read without Keras, so nothing is imported here.
"""
