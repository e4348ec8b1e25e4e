"""Time that is taken from a whole sandbox is told from that which others in it take."""

from pathlib import Path

import pytest

from sandbox.inside.lateness import SCHEDULED, Lateness


def told(path: Path, waited_s: float) -> None:
    path.write_text(f"471762 {int(waited_s * 1e9)} 2\n")


def test_waiting_for_a_processor_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "schedstat"
    told(path, 100)
    lateness = Lateness(str(path))
    now = lateness.last_turn
    for turn in range(1, 5):
        told(path, 100 + 9 * turn)
        now += 10
        assert lateness.turn(now, 1) == pytest.approx(0, abs=1e-6)


def test_standing_still_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "schedstat"
    told(path, 100)
    lateness = Lateness(str(path))
    now = lateness.last_turn
    # Turns that come at once do without a look.
    path.unlink()
    for _ in range(9):
        now += 0.1
        assert lateness.turn(now, 0.1) == pytest.approx(0, abs=1e-6)
    told(path, 100.5)
    now += 60
    assert lateness.turn(now, 1) == pytest.approx(58.5)
    now += 60
    assert lateness.turn(now, 1) == pytest.approx(59)


def test_where_no_kernel_tells_all_of_it_is_lost(tmp_path: Path) -> None:
    lateness = Lateness(str(tmp_path / "none"))
    assert lateness.turn(lateness.last_turn + 60, 1) == pytest.approx(59)


def test_this_kernel_tells() -> None:
    if not Path(SCHEDULED).exists():
        pytest.skip("The kernel does not count it.")
    waited = Lateness().waited_s()
    assert 0 <= waited < 1e9
    assert Lateness().waited_s() >= waited
