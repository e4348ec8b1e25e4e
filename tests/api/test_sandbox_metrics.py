"""What the process tells of its sandboxes to whoever measures it."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.sandbox_metrics import SandboxMetrics
from services.sandboxes import lifecycle
from services.sandboxes.counts import TOTALS, Totals
from services.sandboxes.live import Live
from services.sandboxes.pool import WarmPool
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import Launch, launch, ran, where

pytestmark = pytest.mark.bubblewrap
__all__ = ["launch", "where"]  # Fixtures.


def told(metrics: SandboxMetrics) -> dict[str, float]:
    """Read the metrics as a scraper does."""
    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_without_sandboxes_there_are_zeros_and_no_rate() -> None:
    found = told(SandboxMetrics((), Totals()))
    assert found["noosphere_sandbox_pool_ready"] == 0
    assert found["noosphere_sandbox_pool_hit_rate"] != found["noosphere_sandbox_pool_hit_rate"]
    assert found["noosphere_sandbox_execution_seconds_count"] == 0
    assert found['noosphere_sandbox_creation_seconds_count{start="warm"}'] == 0


def test_durations_fall_into_buckets_that_add_up() -> None:
    totals = Totals(iter((10.0, 10.02, 20.0, 20.3)).__next__)
    totals.begin("a")
    totals.added(Live("a", "pool-1", None, {}))
    totals.begin("b")
    totals.added(Live("b", "b", None, {}))
    totals.executed("EXITED", 0.05)
    totals.executed("EXITED", 2.0)
    totals.executed("TIMED_OUT", 10_000.0)
    found = told(SandboxMetrics((), totals))
    name = "noosphere_sandbox_creation_seconds"
    assert found[f'{name}_bucket{{le="0.01",start="warm"}}'] == 0
    assert found[f'{name}_bucket{{le="0.025",start="warm"}}'] == 1
    assert found[f'{name}_bucket{{le="+Inf",start="warm"}}'] == 1
    assert found[f'{name}_sum{{start="cold"}}'] == pytest.approx(0.3)
    name = "noosphere_sandbox_execution_seconds"
    buckets = [found[f'{name}_bucket{{le="{le}"}}'] for le in ("0.01", "0.05", "3600.0", "+Inf")]
    assert buckets == [0, 1, 2, 3]
    assert found[f"{name}_count"] == 3
    assert found['noosphere_sandbox_executions_total{reason="EXITED"}'] == 2
    assert found['noosphere_sandbox_executions_total{reason="TIMED_OUT"}'] == 1


async def test_what_lives_what_is_ready_and_what_ran_is_told(launch: Launch) -> None:
    server = await launch(sandbox_pool=(("python", 1),))
    ada = await server.person("ada")
    node = await server.host.node()
    pool = node.pool
    assert isinstance(pool, WarmPool)
    metrics = SandboxMetrics([(node, pool)], TOTALS)
    while pool.ready == 0:
        pool._filled.clear()
        await pool._filled.wait()
    before = told(metrics)
    assert before["noosphere_sandbox_pool_ready"] == 1
    warm = await lifecycle.create(server.deps, ada)
    await lifecycle.create(server.deps, ada, resources=Resources(pids=40))
    await ran(server.deps, ada, warm.id, "exit 3")
    await lifecycle.pause(server.deps, ada, sandbox_id=warm.id)

    found = told(metrics)

    live = "noosphere_sandboxes_live"
    assert found[f'{live}{{driver="bubblewrap",state="running"}}'] == 1
    assert found[f'{live}{{driver="bubblewrap",state="paused"}}'] == 1
    assert found[f'{live}{{driver="bubblewrap",state="ending"}}'] == 0
    assert found["noosphere_sandbox_pool_hits_total"] == 1
    assert found["noosphere_sandbox_pool_misses_total"] == 0
    assert found["noosphere_sandbox_pool_hit_rate"] == 1
    assert found["noosphere_sandbox_pool_breakers_open"] == 0
    reason = 'noosphere_sandbox_executions_total{reason="EXITED"}'
    assert found[reason] - before.get(reason, 0) == 1
    for start in ("warm", "cold"):
        name = f'noosphere_sandbox_creation_seconds_count{{start="{start}"}}'
        assert found[name] - before[name] == 1
