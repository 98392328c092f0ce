"""Purifiers: layers that take perturbations out of images, each with its backward rule."""

from kerasdef.defenses.purifiers.base import Purifier as Purifier
