"""Links to ports of sandboxes: signed, so that nothing of them is stored; they expire."""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime

_TOKEN = re.compile(r"([0-9a-f]{1,12})\.([0-9a-f]{1,8})\.([A-Za-z0-9_-]{43})\Z")


@dataclass(frozen=True, slots=True)
class Link:
    """What a link says: until when it holds, and which generation of links of its port it is of."""

    expires_at: datetime
    epoch: int


def sign(secret: bytes, *, port_id: str, expires_at: datetime, epoch: int) -> str:
    """Give the token of a link to a port that is open, as it stands in a path."""
    head = f"{int(expires_at.timestamp()):x}.{epoch:x}"
    return f"{head}.{_mac(secret, port_id, head)}"


def is_token(text: str) -> bool:
    """Whether this looks like a token; whether it is good, only `verify` tells."""
    return _TOKEN.match(text) is not None


def verify(secret: bytes, token: str, *, port_id: str) -> Link | None:
    """Give what a link says that was signed for this very port, or None. It may have expired."""
    found = _TOKEN.match(token)
    if found is None:
        return None
    expires, epoch, mac = found.groups()
    if not hmac.compare_digest(mac, _mac(secret, port_id, f"{expires}.{epoch}")):
        return None
    return Link(datetime.fromtimestamp(int(expires, 16), UTC), int(epoch, 16))


def _mac(secret: bytes, port_id: str, head: str) -> str:
    if not secret:
        raise RuntimeError("there is no secret to sign links with")
    text = f"port link\0{port_id}\0{head}"
    digest = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
