"""What the parts of sandboxes have in common."""

from typing import Annotated, Any

import strawberry

from schema.base import arg

Id = Annotated[strawberry.ID, arg("Which one.")]


def answer(description: str) -> Any:
    """A field of a payload: null when there are errors."""
    return strawberry.field(default=None, description=description)
