"""What of a request goes to a server inside a sandbox, and what of its answer may come out.

Its pages are a user's, on our origin: they get an origin of their own, cookies of their own, and
no word with proxies or browsers about the rest of the site.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

Fields = Sequence[tuple[bytes, bytes]]

# Of one connection only (RFC 9110, 7.6.1).
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# Signs in to us, tells of pages elsewhere, or is said anew.
_NOT_IN = _HOP_BY_HOP | {
    b"authorization",
    b"cookie",
    b"content-length",
    b"expect",
    b"forwarded",
    b"host",
    b"origin",
    b"referer",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
    b"x-real-ip",
}
# Speaks for the whole site, to proxies before us, or is said anew.
_NOT_OUT = _HOP_BY_HOP | {
    b"alt-svc",
    b"cache-control",
    b"clear-site-data",
    b"date",
    b"nel",
    b"origin-agent-cluster",
    b"public-key-pins",
    b"referrer-policy",
    b"refresh",
    b"report-to",
    b"reporting-endpoints",
    b"server",
    b"service-worker-allowed",
    b"strict-transport-security",
    b"www-authenticate",
    b"x-content-type-options",
    b"x-lighttpd-send-file",
    b"x-litespeed-location",
    b"x-sendfile",
}
_ALLOWED = ("downloads", "forms", "modals", "pointer-lock", "popups", "scripts")
_SANDBOX = " ".join(["sandbox", *(f"allow-{name}" for name in _ALLOWED)]).encode()
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "0.0.0.0"}  # noqa: S104 - names of a server.


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server inside is reached: `root` with and `prefix` without what a link adds to it.

    `client` is the address of whoever asks.
    """

    prefix: str
    root: str
    port: int
    scheme: str
    host: str
    client: str
    # Whether `Authorization` is between the client and the server inside: it did not sign in to us.
    has_own_sign_in: bool = False

    @property
    def cookie(self) -> str:
        """What the names of its cookies begin with outside."""
        return f"sandbox-port-{self.port}."


def inward(fields: Fields, place: Place) -> list[tuple[bytes, bytes]]:
    """Fields of a request as the server inside gets them, without those of a WebSocket."""
    dropped = _NOT_IN | _named(fields)
    if place.has_own_sign_in:
        dropped -= {b"authorization"}
    kept = [
        (name, value)
        for name, value in fields
        if name not in dropped and not name.startswith((b"sec-websocket-", b"x-accel-"))
    ]
    kept.append((b"host", f"localhost:{place.port}".encode()))
    cookies = "; ".join(_cookies_in(fields, place))
    if cookies:
        kept.append((b"cookie", cookies.encode("latin-1")))
    for name, value in fields:
        if name == b"origin":
            kept.append((name, _origin(value.decode("latin-1"), place).encode("latin-1")))
    kept += [
        (b"x-forwarded-for", place.client.encode("latin-1")),
        (b"x-forwarded-host", place.host.encode("latin-1")),
        (b"x-forwarded-prefix", place.root.encode("latin-1")),
        (b"x-forwarded-proto", place.scheme.encode("latin-1")),
    ]
    return kept


def _named(fields: Fields) -> set[bytes]:
    """Fields that Connection says are of this connection only."""
    named = b",".join(value for name, value in fields if name.lower() == b"connection")
    return {option.strip().lower() for option in named.split(b",") if option.strip()}


def _cookies_in(fields: Fields, place: Place) -> Iterable[str]:
    for name, value in fields:
        if name != b"cookie":
            continue
        for part in value.decode("latin-1").split(";"):
            cookie = part.strip()
            if cookie.startswith(place.cookie):
                yield cookie[len(place.cookie) :]


def _origin(value: str, place: Place) -> str:
    """Our origin is the server's own; another one stays what it is."""
    is_ours = urlsplit(value).netloc.lower() == place.host.lower()
    return f"http://localhost:{place.port}" if is_ours else value


def outward(fields: Fields, place: Place) -> list[tuple[bytes, bytes]]:
    """Fields of an answer as they may come out."""
    dropped = _NOT_OUT | _named(fields)
    if place.has_own_sign_in:
        dropped -= {b"www-authenticate"}
    kept: list[tuple[bytes, bytes]] = []
    is_stored = True
    for raw, value in fields:
        name = raw.lower()
        if name == b"cache-control" and b"no-store" in value.lower():
            is_stored = False
        if name in dropped or name.startswith((b"x-accel-", b"sec-websocket-")):
            continue
        text = _rewritten(name, value.decode("latin-1"), place)
        if text is not None:
            kept.append((name, text.encode("latin-1")))
    kept += [
        # Asked for again each time: a link may be void by then.
        (b"cache-control", b"private, no-cache" if is_stored else b"private, no-store"),
        (b"content-security-policy", _SANDBOX),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]
    return kept


def _rewritten(name: bytes, value: str, place: Place) -> str | None:
    if name == b"set-cookie":
        return set_cookie(value, place)
    return location(value, place) if name in (b"location", b"content-location") else value


def set_cookie(value: str, place: Place) -> str | None:
    """A cookie under a name of the port's own, for its paths only; None for what is none."""
    first, *attributes = value.split(";")
    name, equals, content = first.partition("=")
    if not equals or not name.strip():
        return None
    parts = [f"{place.cookie}{name.strip()}={content.strip()}"]
    path = "/"
    for attribute in attributes:
        key, _, setting = attribute.strip().partition("=")
        if key.lower() == "path" and setting.startswith("/"):
            path = setting
        elif key.lower() in ("expires", "max-age", "secure", "httponly", "samesite"):
            parts.append(attribute.strip())
    return "; ".join([*parts, f"Path={place.prefix}{path}"])


def location(value: str, place: Place) -> str:
    """Where a redirect leads, seen from outside; what leads elsewhere stays as it is."""
    try:
        url = urlsplit(value)
        is_inside = url.hostname is not None and (
            url.netloc.lower() == place.host.lower()
            or (
                (f"[{url.hostname}]" if ":" in url.hostname else url.hostname) in _LOOPBACK
                and (url.port or 80) == place.port
            )
        )
    except ValueError:
        return f"{place.root}/"
    if is_inside:
        query = f"?{url.query}" if url.query else ""
        fragment = f"#{url.fragment}" if url.fragment else ""
        value = f"{url.path or '/'}{query}{fragment}"
        is_rooted = value.startswith(f"{place.root}/")
        return value if is_rooted else f"{place.root}{value}"
    if value.startswith("/") and not value.startswith(("//", "/\\")):
        is_rooted = value.startswith(f"{place.root}/")
        return value if is_rooted else f"{place.root}{value}"
    return value
