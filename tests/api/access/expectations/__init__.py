"""Who may see what. A field of the schema that is not stated here fails the tests.

The kinds of fields of objects, for a viewer who sees the object:

    PLAIN     the object's own values
    PART      objects that live and die with it
    LINK      objects that stand for themselves: seen only by who sees them anyway
    SHARED    objects that everybody signed in sees
    PERSONAL  objects that not even an administrator sees of other people
    MOMENT    what there is only while a sandbox runs: tested with sandboxes
"""

from tests.api.access.expectations.fields import ADMINS, EVERYBODYS, FIELDS, STRUCTURES
from tests.api.access.expectations.operations import (
    ABSENT,
    FORBIDDEN,
    MUTATIONS,
    OK,
    QUERIES,
    SUBSCRIPTIONS,
    UNAUTHENTICATED,
    nothing,
)

__all__ = [
    "ABSENT",
    "ADMINS",
    "EVERYBODYS",
    "FIELDS",
    "FORBIDDEN",
    "MUTATIONS",
    "OK",
    "QUERIES",
    "STRUCTURES",
    "SUBSCRIPTIONS",
    "UNAUTHENTICATED",
    "nothing",
]
