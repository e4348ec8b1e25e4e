"""A server as users run it, its administrator, and Ann."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.api.http_streams.readers import PAGE, person, product
from tests.product import Client, Product


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = product(
        tmp_path_factory.mktemp("server") / "data",
        NOOSPHERE_CORS_ORIGINS=PAGE,
        NOOSPHERE_EMBEDDED_WORD_DELAY_MS="40",
    )
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="package")
def admin_token(server: Product) -> str:
    """The first to register is the administrator."""

    async def register() -> str:
        async with person(server) as client:
            return client.token or ""

    return asyncio.run(register())


@pytest.fixture
async def ann(server: Product, admin_token: str) -> AsyncIterator[Client]:
    async with person(server) as client:
        yield client
