"""Token latency: many answers stream from a model at once, each followed by one subscriber."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.delivery import processes
from benchmarks.delivery.child import Child
from benchmarks.delivery.measuring import crowd, percentiles_ms
from benchmarks.delivery.model import PacedModel
from benchmarks.delivery.noosphere import Redis
from benchmarks.delivery.subscribers import Subscription
from tests.api import operations as op
from tests.product import Client, Product

_WAIT_S = 180.0
_MARK = b'"MessageCompleted"'


@dataclass(frozen=True, slots=True)
class TokenCase:
    """So many answers at once, each of so many tokens, at so many a second; the bus, if Redis."""

    streams: int
    tokens: int
    rate: float
    redis: Redis | None


def measure_tokens(data_dir: Path, case: TokenCase) -> dict[str, float]:
    """Run a round on a fresh server that also writes the answers, as `serve` does by itself."""
    if case.redis is not None:
        case.redis.flush()
    model = Child(PacedModel)
    try:
        port = model.call("serve")
        product = Product(
            data_dir,
            NOOSPHERE_REDIS_URL=case.redis.url if case.redis else "",
            NOOSPHERE_LLM_BASE_URL=f"http://127.0.0.1:{port}/v1",
            NOOSPHERE_LLM_API_KEY="none",
            NOOSPHERE_LLM_MODEL="paced",
            NOOSPHERE_WORKER_CONCURRENCY="1000",
            NOOSPHERE_SANDBOX_DRIVER="off",
            NOOSPHERE_LOG_LEVEL="warning",
        ).start()
        try:
            return _measure(product, model, case)
        finally:
            product.close()
    finally:
        model.close()


def _measure(product: Product, model: Child, case: TokenCase) -> dict[str, float]:
    assert product.process is not None
    token, conversations = asyncio.run(_begin(product.url, case.streams))
    sign_in = {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + _WAIT_S
    while (waiting := model.call("waiting")) < case.streams:
        assert time.monotonic() < deadline, f"{waiting} of {case.streams} answers were begun"
        time.sleep(0.2)
    processes.settle(product.process.pid, within_s=_WAIT_S)
    with crowd(1) as subscribers:
        wanted = [Subscription(id_, number, sign_in) for number, id_ in enumerate(conversations)]
        subscribers.connect(product.port, wanted, 50)
        processes.settle(product.process.pid)
        subscribers.follow(_MARK)
        rate = model.call("write", case.tokens, case.rate)
        subscribers.received()
        seen, streams = subscribers.tokens(case.tokens)
    assert streams == set(range(case.streams)), "two subscribers heard the same answer"
    p50_ms, p99_ms = percentiles_ms(seen.latencies)
    return {"p50_ms": p50_ms, "p99_ms": p99_ms, "tokens_per_s": rate}


async def _begin(url: str, streams: int) -> tuple[str, list[str]]:
    client = Client(url)
    await client.register("reader")
    conversations = []
    for _ in range(streams):
        created = await client.run(op.CREATE_CONVERSATION)
        id_ = created["conversationCreate"]["conversation"]["id"]
        sent = await client.run(op.SEND, id=id_, content="Tell me a long story.")
        assert sent["messageSend"]["errors"] == [], sent
        conversations.append(id_)
    await client.aclose()
    return str(client.token), conversations
