# SPDX-License-Identifier: Apache-2.0
"""The images that lab engines hold: recipes (this folder's other files) and what makes them."""

from plait.lab.images.builder import IMAGES, seed, template

__all__ = ["IMAGES", "seed", "template"]
