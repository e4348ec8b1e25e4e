"""The command line: help, one clear line for what cannot work, and each command's work."""

import asyncio
import hashlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.product import ROOT, Client, Product

NEWEST = max(path.name for path in (ROOT / "migrations" / "versions").glob("0*.py"))[:4]


def app(
    *arguments: str, given: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m app` to its end."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NOOSPHERE_")}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_command() -> None:
    result = app("--help")
    assert result.returncode == 0
    for command in ("serve", "worker", "migrate", "seed", "doctor", "schema", "explain"):
        assert command in result.stdout
        assert app(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PORT", "seventy", "integer"),
        ("PORT", "70000", "65535"),
        ("DATABASE_URL", "postgresql://host/db", "mysql+aiomysql"),
        ("DATABASE_URL", "nonsense", "expected a URL"),
        ("REDIS_URL", "host:6379", "redis://"),
        ("SANDBOX_DRIVER", "chroot", "bubblewrap"),
        ("LLM_BASE_URL", "llm.example.org", "https://"),
        ("CORS_ORIGINS", "app.example.org", "https://"),
        ("LOG_LEVEL", "loud", "warning"),
        ("ACCESS_TOKEN_TTL", "-1", "greater"),
    ],
)
def test_a_bad_value_stops_the_start_with_one_line_that_names_it(
    name: str, value: str, expected: str, tmp_path: Path
) -> None:
    settings = {"NOOSPHERE_DATA_DIR": str(tmp_path / "data"), f"NOOSPHERE_{name}": value}
    result = app("serve", **settings)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert f"NOOSPHERE_{name}" in line
    assert value in line
    assert expected in line
    assert not (tmp_path / "data").exists()


def test_a_driver_that_is_not_installed_stops_the_start_with_one_line(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text('import sys\nsys.modules["asyncmy"] = None\n')
    result = app(
        "serve",
        PYTHONPATH=str(hidden),
        NOOSPHERE_DATA_DIR=str(tmp_path / "data"),
        NOOSPHERE_DATABASE_URL="mysql+asyncmy://somebody:secret@localhost/name",
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "NOOSPHERE_DATABASE_URL" in line
    assert "`pip install asyncmy`" in line
    assert not (tmp_path / "data").exists()


def test_a_secret_is_not_shown_when_it_is_refused(tmp_path: Path) -> None:
    result = app("serve", NOOSPHERE_LLM_API_KEY="sk-secret", NOOSPHERE_DATA_DIR=str(tmp_path))
    assert result.returncode == 2
    assert "NOOSPHERE_LLM_MODEL" in result.stderr
    assert "sk-secret" not in result.stderr


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        result = app("serve", "--port", port, "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"NOOSPHERE_PORT={port}" in line


def test_a_data_directory_serves_one_process(tmp_path: Path) -> None:
    with Product(tmp_path / "data", NOOSPHERE_SANDBOX_DRIVER="off").started():
        result = app("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 2
    assert "in use by another process" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.redis
@pytest.mark.parametrize(
    ("first_has_redis", "second_has_redis"), [(False, False), (True, False), (False, True)]
)
def test_servers_of_one_database_share_a_redis_wherever_their_data_are(
    first_has_redis: bool, second_has_redis: bool, tmp_path: Path, redis_url: str
) -> None:
    shared = {
        "NOOSPHERE_SANDBOX_DRIVER": "off",
        "NOOSPHERE_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/shared.sqlite3",
    }
    redis = {"NOOSPHERE_REDIS_URL": redis_url}
    first, second = (redis if has else {} for has in (first_has_redis, second_has_redis))
    with Product(tmp_path / "one", **shared, **first).started():
        result = app(
            "serve", "--port", "0", "--data-dir", str(tmp_path / "two"), **shared, **second
        )
    assert result.returncode == 2
    assert "shared.sqlite3 is in use by another process" in result.stderr
    assert "NOOSPHERE_REDIS_URL" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.redis
def test_a_node_id_is_of_one_process_and_free_once_that_was_killed(
    tmp_path: Path, redis_url: str
) -> None:
    common = {
        "NOOSPHERE_SANDBOX_DRIVER": "off",
        "NOOSPHERE_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/shared.sqlite3",
        "NOOSPHERE_REDIS_URL": redis_url,
        "NOOSPHERE_NODE_ID": "east-1",
    }
    with Product(tmp_path / "one", **common).started() as first:
        result = app("serve", "--port", "0", "--data-dir", str(tmp_path / "two"), **common)
        assert result.returncode == 2
        assert "NOOSPHERE_NODE_ID=east-1 is in use by another process" in result.stderr
        assert "Traceback" not in result.stderr
        first.kill()
        Product(tmp_path / "two", **common).start().close()


def test_a_database_that_does_not_answer_is_said_in_one_line(tmp_path: Path) -> None:
    url = "mysql+aiomysql://noosphere:hidden@127.0.0.1:1/noosphere"
    result = app("serve", "--port", "0", "--data-dir", str(tmp_path), NOOSPHERE_DATABASE_URL=url)
    assert result.returncode == 2
    assert "NOOSPHERE_DATABASE_URL" in result.stderr
    assert "hidden" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_redis_that_does_not_answer_is_said_in_one_line(tmp_path: Path) -> None:
    result = app("worker", "--data-dir", str(tmp_path), NOOSPHERE_REDIS_URL="redis://127.0.0.1:1/0")
    assert result.returncode == 2
    assert "NOOSPHERE_REDIS_URL" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_alone_asks_for_redis(tmp_path: Path) -> None:
    result = app("worker", "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 2
    assert "NOOSPHERE_REDIS_URL" in result.stderr


def test_migrate_goes_up_and_down_and_says_where_it_is(tmp_path: Path) -> None:
    directory = ("--data-dir", str(tmp_path / "data"))
    assert f"was at nothing, now at {NEWEST}" in app("migrate", *directory).stdout
    assert f"was at {NEWEST}, now at None" in app("migrate", *directory, "base").stdout
    assert f"now at {NEWEST}" in app("migrate", *directory).stdout


def test_an_outdated_database_is_refused_when_it_may_not_be_migrated(tmp_path: Path) -> None:
    result = app(
        "serve", "--port", "0", "--data-dir", str(tmp_path), NOOSPHERE_MIGRATE_ON_START="false"
    )
    assert result.returncode == 2
    assert "python -m app migrate" in result.stderr


def test_schema_prints_the_committed_contract() -> None:
    result = app("schema")
    assert result.returncode == 0
    assert result.stdout == (ROOT / "schema" / "schema.graphql").read_text(encoding="utf-8")


def test_a_variable_nobody_knows_is_told_with_the_nearest(tmp_path: Path) -> None:
    result = app(
        *("doctor", "--data-dir", str(tmp_path / "data")),
        NOOSPHERE_SANDBOX_DRIVER="off",
        NOOSPHERE_LOG_LEVLE="info",
        NOOSPHERE_XQZW="1",
    )
    assert result.returncode == 0
    assert [line for line in result.stderr.splitlines() if "is not known" in line] == [
        "noosphere: NOOSPHERE_LOG_LEVLE is not known: did you mean NOOSPHERE_LOG_LEVEL?",
        "noosphere: NOOSPHERE_XQZW is not known",
    ]


def test_doctor_tells_what_works_here(tmp_path: Path) -> None:
    result = app("doctor", "--data-dir", str(tmp_path / "data"), NOOSPHERE_SANDBOX_DRIVER="off")
    assert result.returncode == 0, result.stderr
    assert "database" in result.stdout
    assert "bubblewrap" in result.stdout
    assert "not there yet" in result.stdout
    # It looks, and makes nothing.
    assert not (tmp_path / "data").exists()


async def test_explain_tells_plan_points_and_statements_beside_a_server(tmp_path: Path) -> None:
    document = tmp_path / "list.graphql"
    document.write_text(
        "query List($n: Int) { conversations(first: $n) { nodes { id title "
        "messages(last: 2) { nodes { id author { id username } } } } } }"
    )
    product = Product(tmp_path / "data", NOOSPHERE_SANDBOX_DRIVER="off")
    try:
        product.start()
        client = Client(product.url)
        await client.register("asker")
        await client.aclose()
        told = await asyncio.to_thread(
            app,
            *("explain", str(document), "--variables", '{"n": 3}', "--as", "asker"),
            NOOSPHERE_DATA_DIR=str(product.data_dir),
        )
    finally:
        product.close()
    assert told.returncode == 0, told.stderr
    assert "executor plan" in told.stdout
    assert "author (once for all, columns id username)" in told.stdout
    # There is no conversation, so there are no messages to read.
    assert re.search(r"^statements 1 in \d+\.\d ms$", told.stdout, re.MULTILINE)
    assert re.search(r"^ +\d+\.\d ms  SELECT .* FROM conversations", told.stdout, re.MULTILINE)


def test_explain_reads_a_document_and_variables_from_anywhere(tmp_path: Path) -> None:
    document = "query One($n: Int!) { conversations(first: $n) { nodes { id } } } query Two { "
    document += "viewer { id } }"
    (tmp_path / "variables.json").write_text('{"n": 40}')
    arguments = ["--operation", "One", "--variables", f"@{tmp_path / 'variables.json'}"]
    told = app("explain", "-", *arguments, given=document, NOOSPHERE_DATA_DIR=str(tmp_path / "d"))
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0] == "operation query One"
    assert lines[1] == f"document sha256:{hashlib.sha256(document.encode()).hexdigest()}"
    assert "(at most 45 objects)" in lines[2]
    assert lines[3:6] == ["executor plan", "", "Query { }"]
    assert lines[-1].startswith("statements are told with --as USER")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("document", "arguments", "expected"),
    [
        ("{\n  nothing }", [], "some.graphql:2:3: Cannot query field 'nothing'"),
        ("query A { viewer { id } } query B { viewer { id } }", [], "Name it with --operation."),
        ("{ viewer { id } }", ["--operation", "C"], "Unknown operation named 'C'"),
        ("{ viewer { id } }", ["--variables", "@missing.json"], "missing.json cannot be read"),
        ("\udcff", [], "some.graphql is not text in UTF-8"),
        ("{ viewer { id } }", ["--variables", "{"], "no JSON"),
        ("{ viewer { id } }", ["--variables", "[]"], "object of names"),
        ("{ viewer { id } }", ["--as", "nobody"], "there is no database"),
        ("mutation { sessionRevoke { errors { code } } }", ["--as", "nobody"], "is a mutation"),
        (
            'subscription { conversationEvents(conversationId: "x") { __typename } }',
            ["--as", "nobody"],
            "is a subscription",
        ),
    ],
)
def test_explain_says_what_it_cannot_explain(
    document: str, arguments: list[str], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.graphql"
    path.write_bytes(document.encode(errors="surrogateescape"))
    told = app("explain", str(path), *arguments, NOOSPHERE_DATA_DIR=str(tmp_path / "data"))
    assert told.returncode == 2
    assert expected in told.stderr
    assert told.stdout == ""
    assert not (tmp_path / "data").exists()
