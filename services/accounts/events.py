"""What becomes of a user's conversations, plans, sandboxes and memories, live."""

from sqlalchemy.ext.asyncio import AsyncConnection

from services import changes
from services.base import Viewer
from services.streams import Fact, Source


def source(viewer: Viewer) -> Source:
    """Give what is followed of the viewer's own things.

    Raises UnauthenticatedError for an anonymous viewer.
    """
    return Source(
        topic=changes.topic(viewer.id), growing=_growing, stored=_stored, begins=_text, ends=_text
    )


# Nothing grows here: things are told as a whole.
async def _growing(_connection: AsyncConnection) -> dict[str, str]:
    return {}


async def _stored(_connection: AsyncConnection, _key: str) -> str | None:
    return None


def _text(_fact: Fact) -> str | None:
    return None
