"""A running server that lives through every request, and logs no bug."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.product import Client, Product

VIEWER = "{ viewer { id username } }"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    server = Product(
        tmp_path_factory.mktemp("product") / "data",
        NOOSPHERE_SANDBOX_DRIVER="off",
        NOOSPHERE_EMBEDDED_WORD_DELAY_MS="0",
    )
    with server.started():
        yield server


@pytest.fixture(autouse=True)
async def the_server_lives_and_logs_no_bug(product: Product) -> AsyncIterator[None]:
    logged = len(product.output())
    yield
    async with httpx.AsyncClient(base_url=product.url, timeout=60) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        answer = await http.post("/graphql", json={"query": VIEWER})
        assert answer.json()["data"] == {"viewer": None}
    assert product.process is not None
    assert product.process.poll() is None
    # The last is what uvicorn says, with a traceback of its own, when it closes with 1007.
    said = "\n".join(
        line
        for line in product.output()[logged:].splitlines()
        if "Invalid UTF-8 sequence received from client" not in line
    )
    assert "Traceback" not in said, said[-4000:]
    assert '"error"' not in said.lower(), said[-4000:]


@pytest.fixture
async def client(product: Product, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with Client(product.url) as made:
        await made.register(f"u{abs(hash(request.node.nodeid)) % 10**12}")
        yield made
