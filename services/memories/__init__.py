"""Memories: what is kept about a user, found by meaning, superseded rather than lost."""

from services.memories.extracting import EXTRACT_MEMORIES, remember_from_message
from services.memories.finding import Match, recall, search, touch
from services.memories.keeping import Remembered, create, delete, update

__all__ = [
    "EXTRACT_MEMORIES",
    "Match",
    "Remembered",
    "create",
    "delete",
    "recall",
    "remember_from_message",
    "search",
    "touch",
    "update",
]
