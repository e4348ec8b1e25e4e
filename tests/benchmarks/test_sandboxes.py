"""The benchmark of sandboxes runs, measures everything, and sees a bar that is missed."""

import pytest

from benchmarks import sandboxes
from benchmarks.sandboxes import Result, Sizes, judged

SMALL = Sizes(
    warm=2,
    cold=2,
    executions=5,
    lines=5,
    timeouts=1,
    stream_bytes=1_000_000,
    workers=1,
    stall_s=0.1,
    cycles=2,
)
TITLES = [
    *(f"{name}, p50 ms" for name in sandboxes.TIMES),
    *sandboxes.RATES,
    *sandboxes.MOST,
]


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    lines = [line for line in capsys.readouterr().out.splitlines() if "   bar " in line]
    return {line[:40].strip(): float(line[40:].split()[0]) for line in lines}


def exec_beside(out: str) -> float:
    (beside,) = (line for line in out.splitlines() if line.startswith("docker exec beside"))
    (ratio,) = (line for line in out.splitlines() if line.startswith("docker exec / execution"))
    assert float(ratio[40:].split()[0]) > 0
    return float(beside[40:])


@pytest.mark.bubblewrap
def test_a_small_run_on_bubblewrap_prints_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert sandboxes.main(["bubblewrap"], SMALL) == 0
    found = printed(capsys)
    assert list(found) == TITLES
    # Others mount things meanwhile; `tests/sandbox/test_cycles.py` asks for traces in earnest.
    assert found["traces of cycles"] <= SMALL.cycles
    assert all(value > 0 for name, value in found.items() if name.startswith("warm"))


@pytest.mark.docker
def test_a_small_run_on_docker_stands_beside_the_engine(
    capsys: pytest.CaptureFixture[str], docker_url: str, docker_image: str
) -> None:
    assert sandboxes.main(["docker", "--url", docker_url, "--image", docker_image], SMALL) == 0
    out = capsys.readouterr().out
    assert exec_beside(out) > 0


@pytest.mark.bubblewrap
@pytest.mark.docker
def test_bubblewrap_stands_beside_an_engine_that_is_there(
    capsys: pytest.CaptureFixture[str], docker_url: str, docker_image: str
) -> None:
    options = ["bubblewrap", "--url", docker_url, "--image", docker_image]
    assert sandboxes.main(options, SMALL) == 0
    assert exec_beside(capsys.readouterr().out) > 0


def test_docker_is_not_measured_without_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sandboxes.main(["docker"])
    assert "--image" in capsys.readouterr().err


def test_what_was_not_measured_is_an_error_and_a_missed_bar_is_seen() -> None:
    times = {name: [0.001] * 200 for name in sandboxes.TIMES}
    numbers = {"output, MB/s": 800.0, "executions/s, 8 at once": 250.0}
    lines = {line.name: line for line in judged(Result(times, numbers), 0)}
    assert lines["warm start to first result, p99 ms"].ratio == pytest.approx(15)
    assert lines["line written to received, p50 ms"].ratio == pytest.approx(0.5)
    assert lines["output, MB/s"].ratio == pytest.approx(2)
    assert lines["executions/s, 8 at once"].ratio == pytest.approx(0.5)
    for name in sandboxes.TIMES:
        with pytest.raises(RuntimeError, match=name):
            judged(Result({**times, name: []}, numbers), 0)
    with pytest.raises(RuntimeError, match="executions/s"):
        judged(Result(times, {"output, MB/s": 800.0}), 0)
