"""Who has how many connections open, over WebSocket and HTTP together."""

from collections import Counter
from ipaddress import IPv6Address, ip_address


class Register:
    """Counts open sockets and HTTP streams, and refuses those beyond the bounds.

    A signed-in viewer may have `max_per_viewer`, wherever they come from; those of nobody are
    counted by their client's address, of which `max_per_address` may be open. One of an unknown
    address (a Unix socket without a proxy that tells) is let in uncounted.
    """

    def __init__(self, *, max_per_viewer: int = 100, max_per_address: int = 100) -> None:
        self.counts: Counter[str] = Counter()
        self._max_per_viewer = max_per_viewer
        self._max_per_address = max_per_address

    def enter(self, viewer_id: str | None, address: str | None) -> str | None:
        """Count one more, and give the place to `leave` later; None if there is no room."""
        if viewer_id is not None:
            place, most = f"viewer:{viewer_id}", self._max_per_viewer
        elif address:
            place, most = f"address:{_network(address)}", self._max_per_address
        else:
            return ""
        if self.counts[place] >= most:
            return None
        self.counts[place] += 1
        return place

    def open(self, address: str | None) -> str | None:
        """Count a connection that has not said yet whose it is; as `enter`.

        They are few at a time, and take no room from those who have said it.
        """
        if not address:
            return ""
        place = f"opening:{_network(address)}"
        if self.counts[place] >= self._max_per_address:
            return None
        self.counts[place] += 1
        return place

    def leave(self, place: str) -> None:
        """Count one less."""
        self.counts[place] -= 1
        if self.counts[place] <= 0:
            del self.counts[place]


def _network(address: str) -> str:
    """Give what one client has of addresses: with IPv6 that is a network of 64 bits at least."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return parsed.packed[:8].hex()
