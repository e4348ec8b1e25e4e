"""The list of all attempts, which every driver is put to."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
DRIVERS = ("bubblewrap", "docker")


def named(items: list[pytest.Item], driver: str) -> list[str]:
    """Attempts on a driver, as `file: test: attempt`, in the order of their files."""
    found = []
    for item in items:
        call = getattr(item, "callspec", None)
        if item.path.parent != HERE or call is None or call.params.get("site") != driver:
            continue
        test = item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
        which = call.id.removeprefix(driver).removeprefix("-")
        found.append(f"{item.path.stem.removeprefix('test_')}: {test}{which and ': '}{which}")
    return sorted(found)


def test_every_attempt_is_listed_and_made_on_every_driver(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    files = {item.path for item in items}
    if not files.issuperset(HERE.glob("test_*.py")) or request.config.option.keyword:
        pytest.skip("Only some of the attempts were chosen.")
    listed = (HERE / "attempts.txt").read_text(encoding="utf-8").splitlines()
    for driver in DRIVERS:
        made = named(items, driver)
        assert len(made) >= 40
        assert made == listed, f"attempts.txt shall have: {chr(10).join(made)}"
