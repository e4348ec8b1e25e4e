"""`make`'s environment: made once, kept while the locks stay, refused in clear words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SCRIPT = _ROOT / "deploy" / "environment"


def _environment(folder: Path, *locks: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_SCRIPT, *locks],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHON": sys.executable,
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose locks ask for nothing, so that nothing is downloaded."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def test_the_environment_is_made_once_and_follows_its_locks(folder: Path) -> None:
    first = _environment(folder, "requirements.lock")
    assert first.returncode == 0, first.stderr
    assert "Installing requirements.lock" in first.stderr
    assert (folder / ".venv/bin/python").exists()

    again = _environment(folder, "requirements.lock")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    more = _environment(folder, "requirements.lock", "requirements-dev.lock")
    assert "Installing requirements-dev.lock" in more.stderr
    assert "Creating" not in more.stderr
    less = _environment(folder, "requirements.lock")
    assert less.stderr == "", "the larger environment holds the smaller"

    (folder / "requirements.lock").write_text("# changed\n")
    assert "Installing requirements.lock" in _environment(folder, "requirements.lock").stderr


def test_an_installation_that_fails_is_tried_again(folder: Path) -> None:
    (folder / "requirements.lock").write_text("no-such-package==0\n")
    for _ in range(2):
        failed = _environment(folder, "requirements.lock", PIP_NO_INDEX="1", UV_OFFLINE="1")
        assert failed.returncode != 0
    (folder / "requirements.lock").write_text("# nothing\n")
    mended = _environment(folder, "requirements.lock")
    assert mended.returncode == 0, mended.stderr


def test_an_old_python_is_refused(folder: Path) -> None:
    old = folder / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused = _environment(folder, "requirements.lock", PYTHON=str(old))
    assert refused.returncode == 1
    assert "is not Python 3.11 or newer" in refused.stderr
    assert not (folder / ".venv").exists()


def test_a_python_without_venv_is_explained(folder: Path) -> None:
    bare = folder / "python-bare"
    bare.write_text(
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    bare.chmod(0o755)
    # Without uv, which could make the environment in its place.
    tools = folder / "tools"
    tools.mkdir()
    for name in ("sh", "rm", "cmp", "cp", "cat"):
        found = next(p for d in ("/usr/bin", "/bin") if (p := Path(d) / name).exists())
        (tools / name).symlink_to(found)
    refused = _environment(folder, "requirements.lock", PYTHON=str(bare), PATH=str(tools))
    assert refused.returncode == 1
    assert "apt-get install python3-venv" in refused.stderr


def test_make_lists_its_targets() -> None:
    listed = subprocess.run(
        ["make"], cwd=_ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    targets = {line.split()[1] for line in listed.stdout.splitlines()}
    assert targets >= {"help", "serve", "test", "check", "lock", "graphiql", "bench", "clean"}
