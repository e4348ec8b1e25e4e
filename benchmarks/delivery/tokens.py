"""Token latency: many answers stream from a model at once, each followed by one subscriber."""

import asyncio
import time
from contextlib import ExitStack
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
    """So many answers, each of so many tokens a second.

    They begin evenly over `ramp_s` seconds, so that not all begin and end at once; for `seconds`
    all are under way, and that is what is measured. `bus` is the Redis, None for the embedded bus.
    The server writes the answers itself unless there are `workers`, processes of their own.
    """

    streams: int
    rate: float
    ramp_s: float
    seconds: float
    bus: Redis | None
    workers: int = 0

    @property
    def tokens(self) -> int:
        """The tokens of each answer."""
        return round(self.rate * (self.ramp_s + self.seconds))


def measure_tokens(data_dir: Path, case: TokenCase) -> dict[str, float]:
    """Run a round on a fresh server, with its workers or with the one it has in itself."""
    assert case.bus or not case.workers, "workers need Redis"
    if case.bus is not None:
        case.bus.flush()
    with ExitStack() as stack:
        model = Child(PacedModel)
        stack.callback(model.close)
        environment = {
            "NOOSPHERE_REDIS_URL": case.bus.url if case.bus else "",
            "NOOSPHERE_LLM_BASE_URL": f"http://127.0.0.1:{model.call('serve')}/v1",
            "NOOSPHERE_LLM_API_KEY": "none",
            "NOOSPHERE_LLM_MODEL": "paced",
            # The model says nothing until all subscribers are there.
            "NOOSPHERE_LLM_CHUNK_TIMEOUT": "1000",
            "NOOSPHERE_ANSWER_TIMEOUT": "1000",
            "NOOSPHERE_WORKER_CONCURRENCY": "1000",
            "NOOSPHERE_WORKER_IN_SERVER": str(not case.workers),
            "NOOSPHERE_POINTS_PER_MINUTE": "0",
            "NOOSPHERE_SANDBOX_DRIVER": "off",
            "NOOSPHERE_LOG_LEVEL": "warning",
        }
        products = [Product(data_dir, **environment)]
        products += [
            Product(data_dir, command="worker", **environment) for _ in range(case.workers)
        ]
        for product in products:
            stack.callback(product.close)
            product.start()
        return _measure(products, model, case)


def _measure(products: list[Product], model: Child, case: TokenCase) -> dict[str, float]:
    port = products[0].port
    pids = [product.process.pid for product in products if product.process is not None]
    token, conversations = asyncio.run(_begin(products[0].url, case.streams))
    sign_in = {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + _WAIT_S
    while (waiting := model.call("waiting")) < case.streams:
        assert time.monotonic() < deadline, f"{waiting} of {case.streams} answers were begun"
        time.sleep(0.2)
    for pid in pids:
        processes.settle(pid, within_s=_WAIT_S)
    with crowd(1) as subscribers:
        wanted = [Subscription(id_, number, sign_in) for number, id_ in enumerate(conversations)]
        subscribers.connect(port, wanted, 50)
        processes.settle(pids[0])
        subscribers.follow(_MARK)
        model.begin("write", case.tokens, case.rate, case.ramp_s)
        time.sleep(case.ramp_s)
        before_s = sum(map(processes.cpu_s, pids))
        time.sleep(case.seconds)
        cpu_s = sum(map(processes.cpu_s, pids)) - before_s
        begun, ended = model.result()
        subscribers.received()
        seen, streams = subscribers.tokens(case.tokens, begun, ended)
    assert streams == set(range(case.streams)), "two subscribers heard the same answer"
    p50_ms, p99_ms = percentiles_ms(seen.latencies)
    return {
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "tokens_per_s": len(seen.latencies) / (ended - begun) * 1e9,
        "cores": cpu_s / case.seconds,
    }


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
