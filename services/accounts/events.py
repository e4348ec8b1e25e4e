"""What becomes of a user's conversations, plans, sandboxes and memories, live."""

from services import changes
from services.base import Viewer
from services.streams import Kind, Source

# Nothing grows here: things are told as a whole.
_KIND = Kind()


def source(viewer: Viewer) -> Source:
    """Give what is followed of the viewer's own things.

    Raises UnauthenticatedError for an anonymous viewer.
    """
    return Source(_KIND, viewer.id, changes.topic(viewer.id))
