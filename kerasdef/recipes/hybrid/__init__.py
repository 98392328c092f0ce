"""The hybrid defense (Wen, Danso and Danso, 2025): settings, training, judging.

The settings are read without Keras, so nothing is imported here.
"""
