"""The GraphQL contract: the parts of all domains, merged into one schema."""

import functools
import importlib
import pkgutil
from types import ModuleType

import strawberry
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import merge_types
from strawberry.types.base import StrawberryObjectDefinition

from schema.base import SCALARS
from schema.execution import directives


def _modules() -> list[ModuleType]:
    """Import every domain, and the parts of those that are packages."""
    modules = []
    for found in pkgutil.iter_modules(__path__):
        if found.name in ("base", "execution", "live"):
            continue
        module = importlib.import_module(f"{__name__}.{found.name}")
        modules.append(module)
        modules += [
            importlib.import_module(f"{module.__name__}.{part.name}")
            for part in pkgutil.iter_modules(getattr(module, "__path__", ()))
        ]
    return modules


def _types() -> list[type]:
    """Collect the types every domain declares."""
    return [
        declared
        for module in _modules()
        for declared in vars(module).values()
        if isinstance(declared, type)
        and declared.__module__ == module.__name__
        and isinstance(vars(declared).get("__strawberry_definition__"), StrawberryObjectDefinition)
    ]


def _parts(kind: str) -> tuple[type, ...]:
    """Collect every domain's `<Domain>Query`, `<Domain>Mutation` or `<Domain>Subscription`."""
    return tuple(part for part in _types() if part.__name__.endswith(kind))


@functools.cache
def build() -> strawberry.Schema:
    """Merge all parts. Called once a process; takes a few hundred milliseconds."""
    queries, mutations, subscriptions = (
        _parts(kind) for kind in ("Query", "Mutation", "Subscription")
    )
    # Types behind an interface alone are reachable from nowhere else.
    behind_interfaces = [t for t in _types() if t.__strawberry_definition__.interfaces]  # type: ignore[attr-defined]
    schema = strawberry.Schema(
        query=merge_types("Query", queries),
        mutation=merge_types("Mutation", mutations),
        subscription=merge_types("Subscription", subscriptions),
        types=behind_interfaces,
        config=StrawberryConfig(scalar_map=SCALARS),
    )
    directives.add_to(schema._schema)
    return schema
