"""Sandboxes: isolated places where people's code runs, and what happens in them."""

from services.sandboxes.cleaning import clean
from services.sandboxes.rows import topic
from services.sandboxes.templates import seed

__all__ = ["clean", "seed", "topic"]
