"""The lock files: complete, hashed, of one mind, and bound to no registry."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[2]
_RUNTIME, _DEV = _ROOT / "requirements.lock", _ROOT / "requirements-dev.lock"
_PIN = re.compile(r"^(\S+)==([^\s;]+)(?: ; (.+?))? \\$", re.MULTILINE)
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def _pins(lock: Path) -> dict[str, set[str]]:
    """Give the versions of each package; markers may choose among several."""
    pins: dict[str, set[str]] = {}
    for name, version, _marker in _PIN.findall(lock.read_text()):
        pins.setdefault(canonicalize_name(name), set()).add(version)
    return pins


def _project() -> dict[str, Any]:
    return tomllib.loads((_ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("lock", [_RUNTIME, _DEV], ids=lambda lock: lock.name)
def test_a_lock_holds_pins_and_their_hashes_alone(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    strange = [line for line in lines if not _HASH.match(line) and not _PIN.match(f"{line}\n")]
    assert strange == []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if _PIN.match(line):
            assert _HASH.match(following), f"{line} has no hash"


@pytest.mark.parametrize("lock", [_RUNTIME, _DEV], ids=lambda lock: lock.name)
def test_a_lock_names_no_host(lock: Path) -> None:
    text = lock.read_text()
    assert re.findall(r"[a-z]+://|--(?:extra-)?index-url|--find-links|@ ", text) == []


def test_the_runtime_lock_covers_the_dependencies_and_the_small_extras() -> None:
    project = _project()["project"]
    extras = project["optional-dependencies"]
    _covers(_pins(_RUNTIME), [*project["dependencies"], *extras["asyncmy"], *extras["tracing"]])


def test_the_dev_lock_covers_the_dependencies_and_tools() -> None:
    project = _project()
    _covers(
        _pins(_DEV), [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    )


def _covers(pins: dict[str, set[str]], requirements: list[str]) -> None:
    assert requirements
    for text in requirements:
        requirement = Requirement(text)
        versions = pins.get(canonicalize_name(requirement.name), set())
        assert versions, f"{text} is not locked: run make lock"
        for version in versions:
            assert version in requirement.specifier, f"{text} is locked at {version}: run make lock"


def test_tests_run_the_very_versions_that_are_shipped() -> None:
    runtime, dev = _pins(_RUNTIME), _pins(_DEV)
    assert {name: dev.get(name) for name in runtime} == runtime
