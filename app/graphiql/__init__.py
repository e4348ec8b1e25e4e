"""The GraphiQL page and its bundle, served by ourselves: nothing is fetched from elsewhere.

`dist/` is built by `npm run build` in this folder and committed, so Node is needed only to
rebuild it. `dist/manifest.json` names the entry points and the digests of all sources and results.
"""

import gzip
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

ROOT: Final = Path(__file__).resolve().parent
DIST: Final = ROOT / "dist"
MANIFEST: Final = DIST / "manifest.json"

# What the bundle is built from; the same list as SOURCES in build/manifest.js.
SOURCES: Final = (
    "src",
    "build",
    "public",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.ts",
)

# Monaco writes style elements and attributes at run time, hence 'unsafe-inline' for styles alone.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "font-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

_SESSION = "session { token refreshToken expiresAt } errors { code message path }"
# What the page signs in with, letter by letter as in src/session.ts.
DOCUMENTS: Final = (
    "mutation SignIn($login: String!, $password: String!) {\n"
    "  sessionCreate(input: {login: $login, password: $password}) "
    f"{{ user {{ id username }} {_SESSION} }}\n}}",
    "mutation Register($username: String!, $email: String!, $password: String!) {\n"
    "  userRegister(input: {username: $username, email: $email, password: $password}) {\n"
    f"    user {{ id username }} {_SESSION}\n  }}\n}}",
    "mutation Refresh($refreshToken: String!) {\n"
    f"  sessionRefresh(refreshToken: $refreshToken) {{ {_SESSION} }}\n}}",
    "mutation SignOut { sessionRevoke { errors { code message path } } }",
    "query Viewer { viewer { id username } }",
)

# Headers to send with the page. The page names hashed files, so it is asked for anew every time.
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-cache",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · GraphiQL</title>
<link rel="icon" type="image/svg+xml" href="{assets}/favicon.svg">
{styles}
<script type="module" src="{assets}/{script}"></script>
</head>
<body>
<div id="graphiql" data-endpoint="{endpoint}" data-title="{title}">
<div class="noo-loading">Loading GraphiQL…</div>
</div>
<noscript>GraphiQL needs JavaScript. The API itself answers POST requests here.</noscript>
</body>
</html>
"""


@cache
def page(
    *, endpoint: str = "/graphql", title: str = "Noosphere", assets: str = "/graphiql"
) -> bytes:
    """Give the HTML of the page, UTF-8; send it with HEADERS.

    `endpoint` is the path of the GraphQL endpoint, for HTTP and WebSocket; `assets` is the path
    where Assets is mounted. The page has no inline script, so its policy needs no nonce.
    """
    entry = manifest()["entry"]
    base = html.escape(assets.rstrip("/"))
    styles = "\n".join(
        f'<link rel="stylesheet" href="{base}/{html.escape(name)}">' for name in entry["styles"]
    )
    return _PAGE.format(
        title=html.escape(title),
        endpoint=html.escape(endpoint),
        assets=base,
        styles=styles,
        script=html.escape(entry["script"]),
    ).encode()


class Assets(StaticFiles):
    """The bundle's files, for a mount at `/graphiql`, compressed for whoever accepts it.

    Names under `assets/` carry a digest of their content, so browsers may keep them for a year;
    the few others (the icon, the notices) are asked for anew.
    """

    def __init__(self) -> None:
        super().__init__(directory=DIST)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with the file, or raise HTTPException 404 or 405."""
        response = await super().get_response(path, scope)
        if isinstance(response, FileResponse) and _accepts_gzip(scope):
            content = await run_in_threadpool(_compressed, str(response.path))
            response = Response(content, media_type=response.media_type)
            response.headers["content-encoding"] = "gzip"
        hashed = Path(path).parts[:1] == ("assets",)
        response.headers["cache-control"] = (
            "public, max-age=31536000, immutable" if hashed else "no-cache"
        )
        response.headers["vary"] = "accept-encoding"
        response.headers["x-content-type-options"] = "nosniff"
        return response


def _accepts_gzip(scope: Scope) -> bool:
    accepted = Headers(scope=scope).get("accept-encoding", "")
    return scope["method"] == "GET" and "gzip" in accepted and "gzip;q=0" not in accepted


@cache
def _compressed(path: str) -> bytes:
    # The bundle does not change while a process lives, so each file is compressed once: the
    # first visit takes 1.3 MB instead of 5.
    return gzip.compress(Path(path).read_bytes(), compresslevel=6)


@cache
def manifest() -> Mapping[str, Any]:
    """Give the manifest of the build: `entry`, `sources` and `files`."""
    content: Mapping[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return content


def digests(root: Path, starts: tuple[str, ...]) -> dict[str, str]:
    """Give the SHA-256 of every file below `starts`, by its path from `root`; hidden ones apart."""
    found: dict[str, str] = {}
    for start in starts:
        whole = root / start
        for path in [whole] if whole.is_file() else whole.rglob("*"):
            relative = path.relative_to(root)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                found[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))
