"""The GraphQL contract: the parts of all domains, merged into one schema."""

import functools
import importlib
import pkgutil

import strawberry
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import merge_types

from schema.base import SCALARS


def _parts(kind: str) -> tuple[type, ...]:
    """Collect every domain's `<Domain>Query`, `<Domain>Mutation` or `<Domain>Subscription`."""
    found = []
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name in ("base", "execution"):
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found += [
            part
            for name, part in vars(module).items()
            if name.endswith(kind)
            and isinstance(part, type)
            and part.__module__ == module.__name__
            and hasattr(part, "__strawberry_definition__")
            and len(name) > len(kind)
        ]
    return tuple(found)


@functools.cache
def build() -> strawberry.Schema:
    """Merge all parts. Called once a process; takes a few hundred milliseconds."""
    queries, mutations, subscriptions = (
        _parts(kind) for kind in ("Query", "Mutation", "Subscription")
    )
    return strawberry.Schema(
        query=merge_types("Query", queries),
        mutation=merge_types("Mutation", mutations),
        subscription=merge_types("Subscription", subscriptions) if subscriptions else None,
        config=StrawberryConfig(scalar_map=SCALARS),
    )
