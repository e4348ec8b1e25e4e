"""The command line: serve, worker, migrate, seed, doctor, schema, explain.

A command loads what it needs itself, so that help comes at once.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import ConfigurationError

if TYPE_CHECKING:
    from app.config import Settings

VERSION = "0.1.0"
EXIT_CONFIGURATION = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give the process's exit code (2 for a configuration that cannot be used)."""
    arguments = _parser().parse_args(argv)
    overrides = {
        name: value
        for name in ("host", "port", "data_dir")
        if (value := getattr(arguments, name, None)) is not None
    }
    try:
        from app.config import load, unknown
        from app.logs import configure

        settings = load(**overrides)
        for told in unknown():
            sys.stderr.write(f"noosphere: {told}\n")
        configure(settings.log_level, settings.log_format)
        return int(arguments.command(settings, arguments))
    except ConfigurationError as error:
        sys.stderr.write(f"noosphere: {error}\n")
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Noosphere, the self-hosted backend for AI applications.",
        epilog="Configuration comes from environment variables NOOSPHERE_*; the README lists them.",
    )
    parser.add_argument("--version", action="version", version=f"noosphere {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Any, help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(command=command)
        sub.add_argument("--data-dir", type=Path, help="data directory (NOOSPHERE_DATA_DIR)")
        return sub

    serve = add("serve", _serve, "Serve the graph over HTTP and WebSocket, and run tasks.")
    serve.add_argument("--host", help="address to listen on (NOOSPHERE_HOST)")
    serve.add_argument("--port", type=int, help="port to listen on (NOOSPHERE_PORT)")
    add("worker", _work, "Run tasks only; needs NOOSPHERE_REDIS_URL.")
    migrate = add("migrate", _migrate, "Bring the database up to date, or to a revision.")
    migrate.add_argument("revision", nargs="?", default="head", help="head, base or a revision")
    add("seed", _seed, "Add built-in roles, tools and templates that are missing.")
    doctor = add("doctor", _doctor, "Tell what works here: database, bus, sandboxes, provider.")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add("schema", _schema, "Print the GraphQL schema.")
    explain = add("explain", _explain, "Tell the plan, points and statements of an operation.")
    explain.epilog = (
        "For example: python -m app explain list.graphql --variables '{\"first\": 10}' --as alice. "
        "Nothing is run without --as, and nothing but queries with it."
    )
    explain.add_argument("file", metavar="FILE", help="document; - reads standard input")
    explain.add_argument("--operation", metavar="NAME", help="which one, where there are several")
    explain.add_argument(
        "--variables", metavar="JSON", default="{}", help="its variables; @FILE reads a file"
    )
    explain.add_argument(
        "--as", metavar="USER", dest="username", help="run the query as this user (a username)"
    )
    return parser


def _run(main_coroutine: Any) -> Any:
    import uvloop

    return uvloop.run(main_coroutine)


def _serve(settings: "Settings", _arguments: argparse.Namespace) -> int:
    return int(_run(_serve_forever(settings)))


async def _serve_forever(settings: "Settings") -> int:
    import uvicorn

    from app.graphql_outlet import WebSocketProtocol
    from app.http_protocol import HttpProtocol
    from app.server import create_app
    from app.serving import Server

    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        # Opened below, so that a configuration that cannot be used ends in one line.
        lifespan="off",
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        server_header=False,
        # Compression would hide a reader that stalls, and costs time on every event.
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        ws_max_size=settings.max_body_bytes + 1024,
    )
    with _listening(settings) as listener:
        async with app.state.server.opened():
            await Server(config, app, on_ready=_welcome).serve(sockets=[listener])
    return 0


def _listening(settings: "Settings") -> socket.socket:
    """Take the port before anything else is opened. Raises ConfigurationError when it is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"NOOSPHERE_HOST={settings.host} NOOSPHERE_PORT={settings.port} cannot be listened on "
            f"({error.strerror or error}): expected a free port of this machine"
        ) from error
    listener.setblocking(False)
    return listener


def _welcome(settings: "Settings", deps: Any, port: int) -> None:
    host = "localhost" if settings.host in ("0.0.0.0", "127.0.0.1", "::") else settings.host  # noqa: S104
    base = f"http://{host}:{port}"
    lines = [
        f"Noosphere {VERSION} is ready.",
        f"  GraphiQL   {base}/graphql" if settings.graphiql else "",
        f"  GraphQL    {base}/graphql (POST), ws://{host}:{port}/graphql",
        f"  Health     {base}/healthz  {base}/readyz  {base}/metrics",
        f"  Database   {deps.db.url.render_as_string(hide_password=True)}",
        f"  Bus        {'Redis' if settings.redis_url else 'in this process'}",
        f"  Assistant  {deps.provider.name} ({deps.provider.model})",
        f"  Sandboxes  {deps.sandboxes.summary}",
    ]
    sys.stdout.write("\n".join(line for line in lines if line) + "\n")
    sys.stdout.flush()


def _work(settings: "Settings", _arguments: argparse.Namespace) -> int:
    if not settings.redis_url:
        raise ConfigurationError(
            "NOOSPHERE_REDIS_URL is empty: expected the Redis that `serve` uses, "
            "because a worker is a process of its own"
        )
    return int(_run(_work_forever(settings)))


async def _work_forever(settings: "Settings") -> int:
    from app import memory
    from app.runtime import running
    from app.tracing import tracing
    from app.worker import working
    from models import journal

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        deps = await stack.enter_async_context(running(settings))
        traced = await stack.enter_async_context(tracing(settings, deps))
        if traced is not None:
            stack.callback(journal.listen(deps.db.engine.sync_engine))
        await stack.enter_async_context(working(deps, traced))
        memory.settle()
        sys.stdout.write(f"Noosphere {VERSION} worker {deps.bus.node_id} is ready.\n")
        sys.stdout.flush()
        await stopping.wait()
    return 0


def _migrate(settings: "Settings", arguments: argparse.Namespace) -> int:
    async def go() -> int:
        from app.database import MigrationError, migrate, revision
        from models.database import Database

        settings.data_dir.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database)
        try:
            before = await revision(database)
            await migrate(database, arguments.revision)
            after = await revision(database)
        except MigrationError as error:
            raise ConfigurationError(str(error)) from error
        finally:
            await database.aclose()
        sys.stdout.write(f"The database was at {before or 'nothing'}, now at {after}.\n")
        return 0

    return int(_run(go()))


def _seed(settings: "Settings", _arguments: argparse.Namespace) -> int:
    async def go() -> int:
        from app.beside import seed

        await seed(settings)
        sys.stdout.write("Built-in roles, tools and templates are there.\n")
        return 0

    return int(_run(go()))


def _doctor(settings: "Settings", arguments: argparse.Namespace) -> int:
    async def go() -> int:
        from app.doctor import examine

        report = await examine(settings)
        text = json.dumps(report.data, indent=2) if arguments.json else report.text
        sys.stdout.write(text + "\n")
        return 0 if report.is_healthy else 1

    return int(_run(go()))


def _explain(settings: "Settings", arguments: argparse.Namespace) -> int:
    async def go() -> int:
        from app.explain import explain

        told = await explain(
            settings,
            _read(arguments.file),
            source="standard input" if arguments.file == "-" else arguments.file,
            operation=arguments.operation,
            variables=_variables(arguments.variables),
            username=arguments.username,
        )
        sys.stdout.write(told + "\n")
        return 0

    return int(_run(go()))


def _read(name: str) -> str:
    """Give the text of a file, or of standard input. Raises ConfigurationError."""
    try:
        return (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode()
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name} is not text in UTF-8") from error


def _variables(text: str) -> dict[str, Any]:
    try:
        variables = json.loads(_read(text[1:]) if text.startswith("@") else text)
    except ValueError as error:
        raise ConfigurationError(f"--variables is no JSON: {error}") from error
    if not isinstance(variables, dict):
        raise ConfigurationError("--variables must be an object of names and values")
    return variables


def _schema(_settings: "Settings", _arguments: argparse.Namespace) -> int:
    import schema

    sys.stdout.write(schema.build().as_str() + "\n")
    return 0
