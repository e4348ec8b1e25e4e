"""The product served in a test's own loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.server import create_app
from services.base import Deps
from tests.fixtures import Person, settings_for


class Served:
    """One server of the product, and requests to it."""

    def __init__(self, url: str, deps: Deps) -> None:
        self.url, self.deps = url, deps

    async def post(self, query: str, who: Person | None = None, **headers: str) -> httpx.Response:
        if who is not None:
            headers["authorization"] = f"Bearer {who.token}"
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(f"{self.url}/graphql", json={"query": query}, headers=headers)

    async def send(
        self, body: Any, who: Person | None = None, *, method: str = "POST", **headers: str
    ) -> httpx.Response:
        """Send any body as JSON, or a map of parameters with GET."""
        if who is not None:
            headers["authorization"] = f"Bearer {who.token}"
        async with httpx.AsyncClient(timeout=60) as client:
            if method == "GET":
                return await client.get(f"{self.url}/graphql", params=body, headers=headers)
            return await client.post(f"{self.url}/graphql", json=body, headers=headers)


@asynccontextmanager
async def served(tmp_path: Path, **settings: Any) -> AsyncIterator[Served]:
    """Serve the product in this loop."""
    app = create_app(settings_for(tmp_path, worker_in_server=False, **settings))
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    async with app.state.server.opened() as deps:
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Served(f"http://127.0.0.1:{port}", deps)
        finally:
            await app.state.server.drain()
            await server.shutdown()
