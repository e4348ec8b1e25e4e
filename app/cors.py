"""Who may read our answers from other sites, as Starlette tells it, each header said once."""

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware


class Cors(CORSMiddleware):
    """Names `Origin` in `Vary` only where the answer does not name it by itself."""

    @staticmethod
    def allow_explicit_origin(headers: MutableHeaders, origin: str) -> None:
        """Let one origin read the answer."""
        headers["access-control-allow-origin"] = origin
        named = {name.strip().lower() for name in headers.get("vary", "").split(",")}
        if named.isdisjoint({"origin", "*"}):
            headers.add_vary_header("Origin")
