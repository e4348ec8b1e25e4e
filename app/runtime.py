"""Everything one process works with, opened in order and closed in reverse."""

import asyncio
import dataclasses
import fcntl
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import memory
from app.bus_metrics import BUSES
from app.config import PREFIX, Settings
from app.database import head, migrate, revision
from app.errors import ConfigurationError
from models.database import Database
from services import system
from services.base import Deps
from services.events import open_bus
from services.events.base import Bus, BusUnavailableError, NodeTakenError
from services.language.embeddings import Embedder
from services.llm import open_provider
from services.llm.base import Provider
from services.sandboxes.host import SandboxHost

log = logging.getLogger("noosphere")
# A server that was killed a moment ago may still hold the database.
_SOLE_WAIT_S = 10
_SECRET_CHARS = 64


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Deps]:
    """Open database, bus, provider and sandbox host; migrate and seed; close them at the end.

    Raises ConfigurationError when the data directory cannot be used or belongs to a running server,
    and when the database is not up to date and may not be migrated.
    """
    prepare(settings.data_dir)
    with sole_owner(settings):
        database = Database(
            settings.database,
            pool_size=settings.database_pool_size,
            max_overflow=settings.database_max_overflow,
            pool_timeout_s=settings.database_pool_timeout,
            pool_recycle_s=settings.database_pool_recycle,
        )
        bus = open_bus(settings.redis_url or None, settings.data_dir, settings.node)
        embedder = Embedder()
        provider = provider_of(settings, embedder)
        host = SandboxHost(
            driver=settings.sandbox_driver,
            docker_url=settings.docker_url or None,
            state_dir=settings.data_dir / "sandboxes",
        )
        options = dataclasses.replace(settings.options(), link_secret=_link_secret(settings))
        deps = Deps(options, database, bus, provider, embedder, host)
        try:
            async with sole_user(database, settings):
                await bring_up_to_date(database, may_migrate=settings.migrate_on_start)
                await _start(bus, settings)
                await system.seed(deps)
                await host.start(deps)
                # A process that only answers may never need its 120 MB; then they are not loaded.
                warming = asyncio.create_task(_warm(embedder, settings.worker_in_server))
                try:
                    with BUSES.exporting(bus):
                        yield deps
                finally:
                    warming.cancel()
                    await asyncio.gather(warming, return_exceptions=True)
        finally:
            await close(deps)


def _link_secret(settings: Settings) -> bytes:
    """Give what links are signed with: as configured, or made once and kept beside the data.

    Raises ConfigurationError when it can be neither read nor written.
    """
    configured = settings.secret_key.get_secret_value()
    if configured:
        return configured.encode()
    place = settings.data_dir / "secret.key"
    try:
        if not place.exists():
            with tempfile.NamedTemporaryFile(dir=settings.data_dir) as draft:
                draft.write(secrets.token_hex(32).encode())
                draft.flush()
                # Processes that share the directory agree on the first: a link replaces nothing.
                with suppress(FileExistsError):
                    place.hardlink_to(draft.name)
        found = place.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{PREFIX}SECRET_KEY is empty, and {place} cannot be kept: {error.strerror}"
        ) from error
    if len(found) < _SECRET_CHARS:
        raise ConfigurationError(
            f"{place} is damaged: expected {_SECRET_CHARS} characters; remove it, or set "
            f"{PREFIX}SECRET_KEY"
        )
    return found


async def close(deps: Deps) -> None:
    """Close everything, the last opened first; what fails is logged."""
    for name, close in (
        ("sandboxes", deps.sandboxes.aclose),
        ("provider", deps.provider.aclose),
        ("embedder", deps.embedder.aclose),
        ("bus", deps.bus.aclose),
        ("database", deps.db.aclose),
    ):
        try:
            await close()
        except Exception:
            log.exception("%s did not close cleanly", name)


async def _warm(embedder: Embedder, is_working: bool) -> None:
    if not is_working:
        return
    try:
        await embedder.warm()
        await asyncio.to_thread(memory.trim)
    except Exception:
        log.exception("sentence embeddings could not be loaded")


def provider_of(settings: Settings, embedder: Embedder) -> Provider:
    """Open what answers people, as configured."""
    return open_provider(
        base_url=settings.llm_base_url or None,
        api_key=settings.llm_api_key.get_secret_value() or None,
        model=settings.llm_model or None,
        connect_timeout_s=settings.llm_connect_timeout,
        first_chunk_timeout_s=settings.llm_first_chunk_timeout,
        chunk_timeout_s=settings.llm_chunk_timeout,
        total_timeout_s=float(settings.answer_timeout),
        max_attempts=settings.llm_max_retries + 1,
        input_usd_per_million=settings.llm_input_price,
        output_usd_per_million=settings.llm_output_price,
        word_delay_s=settings.embedded_word_delay_ms / 1000,
        embedder=embedder,
    )


def prepare(data_dir: Path) -> None:
    """Make the data directory. Raises ConfigurationError when it cannot be written."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Database and logs hold what people said; nobody else on the machine needs to read them.
        data_dir.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"NOOSPHERE_DATA_DIR={data_dir} cannot be written ({error.strerror}): "
            "expected a directory this user may create or write"
        ) from error


@contextmanager
def sole_owner(settings: Settings) -> Iterator[None]:
    """Hold the data directory while the in-process bus is used: it serves one process only."""
    if settings.redis_url:
        yield
        return
    with (settings.data_dir / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"NOOSPHERE_DATA_DIR={settings.data_dir} is in use by another process: "
                "stop it, take another directory, or set NOOSPHERE_REDIS_URL so that several "
                "processes can work together"
            ) from error
        yield


@contextmanager
def _file_held(database: Database, *, is_shared: bool) -> Iterator[None]:
    """Hold the file of an SQLite database, wherever the data directory of its users is."""
    path = database.url.database
    if not path or path == ":memory:":
        yield
        return
    with Path(f"{path}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"the database {path} is in use by another process: stop it, or set the same "
                "NOOSPHERE_REDIS_URL for both so that they can work together"
            ) from error
        yield


@asynccontextmanager
async def sole_user(database: Database, settings: Settings) -> AsyncIterator[None]:
    """Hold a shared database while the in-process bus is used.

    Two servers without Redis, or one with and one without, would both take themselves for the only
    one, run every task twice and end each other's sandboxes.
    """
    if database.is_sqlite:
        with _file_held(database, is_shared=bool(settings.redis_url)):
            yield
        return
    if settings.redis_url:
        yield
        return
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(database.engine.connect())
        except DBAPIError as error:
            raise _unreachable(database) from error
        name = {"name": f"noosphere:{database.url.database}"[:60], "wait": _SOLE_WAIT_S}
        if await connection.scalar(text("SELECT GET_LOCK(:name, :wait)"), name) != 1:
            raise ConfigurationError(
                "the database is in use by another server without NOOSPHERE_REDIS_URL: stop it, or "
                "set NOOSPHERE_REDIS_URL for both so that they can work together"
            )
        await connection.commit()
        yield


async def _start(bus: Bus, settings: Settings) -> None:
    try:
        await bus.start()
    except NodeTakenError as error:
        raise ConfigurationError(
            f"NOOSPHERE_NODE_ID={bus.node_id} is in use by another process at the same Redis: give "
            "each its own, or leave it empty"
        ) from error
    except BusUnavailableError as error:
        if not settings.redis_url:
            raise
        address = urlsplit(settings.redis_url)
        shown = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
        raise ConfigurationError(
            f"NOOSPHERE_REDIS_URL={shown} does not answer: expected a running Redis that lets this "
            "process in"
        ) from error


async def bring_up_to_date(database: Database, *, may_migrate: bool) -> None:
    """Migrate a database, or find it at the newest revision; raises ConfigurationError if not."""
    try:
        if may_migrate:
            await migrate(database)
        elif await revision(database) != head():
            raise ConfigurationError(
                "the database is not up to date: run `python -m app migrate`, "
                "or set NOOSPHERE_MIGRATE_ON_START=true"
            )
    except OSError as error:
        raise _unreachable(database) from error
    except Exception as error:
        if type(error).__name__ in ("OperationalError", "InterfaceError"):
            raise _unreachable(database) from error
        raise


def _unreachable(database: Database) -> ConfigurationError:
    shown = database.url.render_as_string(hide_password=True)
    return ConfigurationError(
        f"NOOSPHERE_DATABASE_URL={shown} does not answer: expected a running database that lets "
        "this user in"
    )
