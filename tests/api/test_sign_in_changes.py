"""Changes of sign-ins in use: known at the commit here, soon elsewhere, with and without a bus."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from app import session_lookout, session_watch
from app.auth import context_known, context_of_request, watches
from app.runtime import running
from app.session_watch import CHANGED, REVOKED
from models.accounts import AuthSession, Permission, Role, RolePermission, User
from models.base import now
from services.accounts import lookout, passwords, roles, sessions, users
from services.base import Deps, work
from services.errors import UnauthenticatedError
from services.events.base import BusUnavailableError
from tests.api.holding import holding, in_database, refreshed, until
from tests.api.people import CLIENT, sign_up
from tests.api.test_sign_ins import asking, known
from tests.fixtures import Person, Statements, settings_for
from tests.servers import require
from tests.services.events.redis_server import RedisServer

Change = Callable[[Deps, Person, Person], Awaitable[object]]


async def _deactivate(deps: Deps, _admin: Person, ann: Person) -> None:
    async with work(deps) as unit:
        await unit.session.execute(update(User).where(User.id == ann.id).values(is_active=False))


async def _change_password(deps: Deps, _admin: Person, ann: Person) -> None:
    hashed = await passwords.hash_password("correct horse 1")
    async with work(deps) as unit:
        await unit.session.execute(
            update(User).where(User.id == ann.id).values(password_hash=hashed)
        )
        other = await sessions.open_session(unit, ann.id, CLIENT)
    viewer = await sessions.authenticate(deps, other.token)
    await users.change_password(
        deps, viewer, current_password="correct horse 1", new_password="new donkey 1"
    )


CHANGES: dict[str, Change] = {
    "revoked": lambda deps, _, ann: sessions.revoke(deps, ann.viewer),
    "renewed": lambda deps, _, ann: refreshed(deps, ann),
    "roles": lambda deps, admin, ann: roles.assign(
        deps, admin.viewer, user_id=ann.id, roles=["viewer"]
    ),
    "password": _change_password,
}


async def _hangs(*_: Any) -> None:
    await asyncio.Event().wait()


async def _fails(*_: Any) -> None:
    raise OSError("The database is away.")


async def _is_away(*_: Any) -> None:
    raise BusUnavailableError("Redis is away.")


class HeldBack:
    """What the first to read the rows of sign-ins has read comes to it when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = sessions._read
        self._has_read, self._may_come = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(sessions, "_read", self)

    async def __call__(self, *asked: Any) -> Any:
        rows = await self._read(*asked)
        if not self._has_read.is_set():
            self._has_read.set()
            await self._may_come.wait()
        return rows

    async def has_read(self) -> None:
        async with asyncio.timeout(60):
            await self._has_read.wait()

    def come(self) -> None:
        self._may_come.set()


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lookout, "_LOOK_S", 10_000.0)
    monkeypatch.setattr(session_lookout, "_SURE_S", 10_000.0)


# ---- in the process that makes the change


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_holds_at_once_here_though_the_bus_is_away(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    info = await known(deps, ann)
    monkeypatch.setattr(deps.bus, "publish", _is_away)
    await CHANGES[change](deps, admin, ann)
    assert context_known(deps, info) is None
    if change == "roles":
        assert (await context_of_request(deps, info)).viewer.roles == {"viewer"}
    else:
        with pytest.raises(UnauthenticatedError):
            await context_of_request(deps, info)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_holds_here_before_the_bus_was_asked(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    info = await known(deps, ann)
    asked = asyncio.Event()

    async def silent(*_: Any) -> None:
        asked.set()
        await _hangs()

    monkeypatch.setattr(deps.bus, "publish", silent)
    task = asyncio.ensure_future(CHANGES[change](deps, admin, ann))
    try:
        async with asyncio.timeout(60):
            await asked.wait()
        assert context_known(deps, info) is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_connections_end_here_though_the_bus_is_away(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_look(monkeypatch)
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    bob = await sign_up(deps, "bob")
    (_, of_ann), (_, of_bob), (_, of_admin) = [
        await holding(deps, person.token) for person in (ann, bob, admin)
    ]
    monkeypatch.setattr(deps.bus, "publish", _is_away)
    await sessions.revoke(deps, ann.viewer)
    assert of_ann.reason == REVOKED
    await roles.assign(deps, admin.viewer, user_id=bob.id, roles=["viewer"])
    async with asyncio.timeout(10):
        assert await of_bob.until_ended() == CHANGED
    assert of_admin.reason is None


@pytest.mark.redis
async def test_changes_hold_while_redis_is_gone(tmp_path: Path) -> None:
    require("redis")
    server = RedisServer()
    await server.start()
    try:
        async with running(settings_for(tmp_path, redis_url=server.url)) as deps:
            admin = await sign_up(deps, "admin", "admin")
            people = [await sign_up(deps, name, "admin") for name in ("ann", "bob", "carl")]
            infos = [await known(deps, person) for person in people]
            await server.kill()
            ann, bob, carl = people
            await roles.assign(deps, admin.viewer, user_id=ann.id, roles=["user"])
            await sessions.revoke(deps, bob.viewer)
            await refreshed(deps, carl)
            assert [context_known(deps, info) for info in infos] == [None] * 3
            context = await context_of_request(deps, infos[0])
            assert context.viewer.roles == {"user"}
            for info in infos[1:]:
                with pytest.raises(UnauthenticatedError):
                    await context_of_request(deps, info)
    finally:
        await server.aclose()


async def test_an_operation_of_a_socket_has_the_rights_of_its_moment(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    state, holder = await holding(deps, ann.token)
    read, gate = sessions.standing, asyncio.Event()
    watch = watches(deps).watch(ann.viewer)

    async def slow(deps: Deps, session_id: str, *, is_active: bool = False) -> Any:
        if asyncio.current_task() is watching:
            await gate.wait()
        return await read(deps, session_id, is_active=is_active)

    watching = watches(deps)._tasks[watch]
    monkeypatch.setattr(sessions, "standing", slow)
    await roles.assign(deps, admin.viewer, user_id=ann.id, roles=["viewer"])
    # The watch has not read them yet.
    assert holder.reason is None
    assert (await state.make_context("x")).viewer.roles == {"viewer"}
    await in_database(deps, ann, revoked_at=now())
    with pytest.raises(UnauthenticatedError):
        await state.make_context("y")
    gate.set()
    await holder.until_ended()


# ---- read while it changes


async def test_who_is_revoked_while_the_watch_reads_is_never_known_again(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    watch = watches(deps).watch(ann.viewer)
    read = HeldBack(monkeypatch)
    await deps.bus.publish(f"viewer:{ann.id}", {"changed": "roles"})
    await read.has_read()
    await sessions.revoke(deps, ann.viewer)
    assert watch.ended == REVOKED
    task = watches(deps)._tasks[watch]
    read.come()
    while not task.done():
        assert context_known(deps, info) is None
        await asyncio.sleep(0)
    assert context_known(deps, info) is None


async def test_what_was_read_before_a_renewal_is_not_relied_on(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    watch = watches(deps).watch(ann.viewer)
    read = HeldBack(monkeypatch)
    watch.doubt()
    await read.has_read()
    after = await refreshed(deps, ann)
    read.come()
    await until(lambda: watch.token_hash is not None)
    assert watch.token_hash == passwords.hash_token(after.token)
    assert context_known(deps, info) is None


async def test_what_this_process_announced_is_acted_on_once(deps: Deps) -> None:
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    await known(deps, ann)
    watch = watches(deps).watch(ann.viewer)
    doubts = watch._doubts
    async with deps.bus.attach(f"viewer:{ann.id}") as tap:
        await roles.assign(deps, admin.viewer, user_id=ann.id, roles=["user"])
        assert await tap.get(60) is not None
    assert watch._doubts == doubts + 1
    # What another process announces is another matter.
    await deps.bus.publish(f"viewer:{ann.id}", {"changed": "roles", "node": "another"})
    assert watch._doubts == doubts + 2


# ---- made by others, and never announced


async def _delete_session(deps: Deps, _admin: Person, ann: Person) -> None:
    async with work(deps) as unit:
        await unit.session.execute(
            delete(AuthSession).where(AuthSession.id == ann.viewer.session_id)
        )


async def _take_role(deps: Deps, _admin: Person, ann: Person) -> None:
    async with work(deps) as unit:
        await roles.grant(unit, ann.id, [])


async def _take_permission(deps: Deps, _admin: Person, _ann: Person) -> None:
    async with work(deps) as unit:
        role = select(Role.id).where(Role.name == "user").scalar_subquery()
        permission = select(Permission.id).where(Permission.name == "plans:write").scalar_subquery()
        await unit.session.execute(
            delete(RolePermission).where(
                RolePermission.role_id == role, RolePermission.permission_id == permission
            )
        )


UNTOLD: dict[str, tuple[Change, str]] = {
    "revoked": (lambda deps, _, ann: in_database(deps, ann, revoked_at=now()), REVOKED),
    "deleted": (_delete_session, REVOKED),
    "deactivated": (_deactivate, REVOKED),
    "roles": (_take_role, CHANGED),
    "permissions": (_take_permission, CHANGED),
}


@pytest.mark.parametrize("change", UNTOLD)
async def test_what_nobody_announced_is_seen_by_the_next_look(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(session_watch, "_RECHECK_S", 10_000.0)
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    _, untouched = await holding(deps, admin.token)
    info, (_, holder) = await known(deps, ann), await holding(deps, ann.token)
    action, reason = UNTOLD[change]
    await action(deps, admin, ann)
    assert await holder.until_ended() == reason
    assert context_known(deps, info) is None
    assert untouched.reason is None


async def test_a_renewal_nobody_announced_is_seen_by_the_next_look(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "_RECHECK_S", 10_000.0)
    ann = await sign_up(deps, "ann")
    info, (_, holder) = await known(deps, ann), await holding(deps, ann.token)
    await in_database(deps, ann, token_hash=passwords.hash_token("another"))
    await until(lambda: context_known(deps, info) is None)
    with pytest.raises(UnauthenticatedError):
        await context_of_request(deps, info)
    # The session goes on with the new one.
    assert (await context_of_request(deps, asking("another"))).viewer.user_id == ann.id
    assert holder.reason is None


async def test_one_look_serves_all_and_reads_no_sign_in_anew(
    deps: Deps, statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_look(monkeypatch)
    people = [await sign_up(deps, f"ann{number}") for number in range(10)]
    for person in people:
        await holding(deps, person.token)
    monkeypatch.undo()
    statements.sent.clear()
    await watches(deps)._lookout._look()
    # The rights of the roles, and how all of them stand.
    assert len(statements.reads()) == 2
    for person in people:
        assert watches(deps).known(person.token) is not None


# ---- while nobody can look


@pytest.mark.parametrize("failure", ["hangs", "fails"])
async def test_nothing_is_known_while_nobody_can_look(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, statements: Statements, failure: str
) -> None:
    monkeypatch.setattr(session_lookout, "_LOOK_S", 0.1)
    monkeypatch.setattr(session_lookout, "_REST_S", 0.05)
    monkeypatch.setattr(session_lookout, "_SURE_S", 0.5)
    ann = await sign_up(deps, "ann")
    info, (state, holder) = await known(deps, ann), await holding(deps, ann.token)
    look = lookout.changed_among

    monkeypatch.setattr(lookout, "changed_among", _hangs if failure == "hangs" else _fails)
    await until(lambda: context_known(deps, info) is None)
    # Whoever comes now is read anew; no longer than a look is good for is he known.
    statements.sent.clear()
    assert (await context_of_request(deps, info)).viewer.user_id == ann.id
    assert (await state.make_context("x")).viewer.user_id == ann.id
    assert len(statements.reads()) == 2

    with monkeypatch.context() as outage:
        outage.setattr(sessions, "_read", _fails)
        with pytest.raises(OSError, match="away"):
            await context_of_request(deps, info)
        with pytest.raises(OSError, match="away"):
            await state.make_context("y")
    statements.sent.clear()
    monkeypatch.setattr(lookout, "changed_among", look)
    await until(lambda: context_known(deps, info) is not None)
    # A look was enough: nobody's sign-in was read again.
    assert not [text for text in statements.reads() if "last_active_at" in text]
    assert holder.reason is None
