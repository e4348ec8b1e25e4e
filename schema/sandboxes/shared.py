"""What the parts of sandboxes have in common."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import strawberry

from resolvers.base import Info
from schema.base import arg

R = TypeVar("R")
Id = Annotated[strawberry.ID, arg("Which one.")]


async def perform(info: Info, verb: Callable[..., Awaitable[R]], input: Any) -> R:
    """Do what a verb does for the viewer, with the fields of an input as its arguments."""
    given = {each.name: getattr(input, each.name) for each in dataclasses.fields(input)}
    return await verb(info.context.deps, info.context.viewer, **given)


def answer(description: str) -> Any:
    """A field of a payload: null when there are errors."""
    return strawberry.field(default=None, description=description)
