"""Accounts: registration and profile."""

import logging
import unicodedata
from collections.abc import Callable

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from models.accounts import Role, User
from services import access, changes
from services.accounts import passwords, roles, sessions
from services.accounts.sessions import Client, Credentials
from services.base import Deps, Viewer, work
from services.contention import repeatable
from services.errors import UserError, UserErrorCode, UserErrors
from services.text import clean

log = logging.getLogger("noosphere.accounts")
# A whole office behind one address may register at once; a flood may not.
_REGISTRATION_FACTOR = 100


@access.rule(User)
def _users(viewer: Viewer) -> ColumnElement[bool]:
    return User.id == viewer.user_id


def _username(value: str) -> str:
    name = unicodedata.normalize("NFKC", clean(value, "username", max_chars=50, multiline=False))
    name = name.strip().casefold()
    if len(name) < 2 or not all(char.isalnum() or char in "._-" for char in name):
        raise UserError(
            UserErrorCode.INVALID,
            "The username must have 2 to 50 letters, digits, dots, dashes or underscores.",
            ("username",),
        )
    return name


def _email(value: str) -> str:
    clean(value, "email", max_chars=255, multiline=False)
    try:
        # Reserved names such as .test are what people use when they try the product.
        checked = validate_email(value.strip(), check_deliverability=False, test_environment=True)
    except EmailNotValidError as error:
        raise UserError(
            UserErrorCode.INVALID, f"This is not an e-mail address: {error}", ("email",)
        ) from error
    return checked.normalized.casefold()


def _display_name(value: str) -> str:
    return clean(value, "display_name", max_chars=100, multiline=False).strip()


async def register(
    deps: Deps,
    *,
    username: str,
    email: str,
    password: str,
    display_name: str | None,
    client: Client,
) -> tuple[Credentials, User]:
    """Open an account and sign in. The first account becomes admin when none exists.

    Raises UserErrors naming every input at fault, CONFLICT when the name or address is taken,
    FORBIDDEN when registration is closed.
    """
    errors: list[UserError] = []
    values: dict[str, str] = {}
    given: tuple[tuple[str, Callable[[str], str], str | None], ...] = (
        ("username", _username, username),
        ("email", _email, email),
        ("password", passwords.check, password),
        ("display_name", _display_name, display_name),
    )
    for name, check, value in given:
        try:
            if value is not None:
                values[name] = check(value)
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserErrors(errors)
    values.setdefault("display_name", username.strip())
    if deps.options.registration == "closed":
        raise UserError(
            UserErrorCode.FORBIDDEN,
            "Registration is closed on this server; ask an administrator for an account.",
        )
    address = client.ip_address or "nowhere"
    await sessions.throttle(deps, f"registration:address:{address}", _REGISTRATION_FACTOR)
    await _refuse_taken(deps, values["username"], values["email"])
    password_hash = await passwords.hash_password(values.pop("password"))
    try:
        async with work(deps) as unit:
            # Two first registrations at once must not make two administrators.
            await unit.session.execute(
                select(Role.id).where(Role.name == "admin").with_for_update()
            )
            user = User(password_hash=password_hash, **values)
            unit.session.add(user)
            await unit.session.flush()
            unit.open_topic(changes.topic(user.id))
            is_first = not await roles.admin_exists(unit)
            await roles.grant(unit, user.id, ["admin" if is_first else "user"])
            credentials = await sessions.open_session(unit, user.id, client)
            await unit.session.flush()
            row = user.frozen()
    except IntegrityError as error:
        await _refuse_taken(deps, values["username"], values["email"])
        raise UserError(UserErrorCode.CONFLICT, "Somebody registered the same.") from error
    if is_first:
        log.warning("no administrator existed: the new account is admin: %s", row.username)
    return credentials, row


async def _refuse_taken(deps: Deps, username: str, email: str) -> None:
    async with deps.db.reading() as connection:
        found = (
            await connection.execute(
                select(User.username, User.email).where(
                    (User.username.in_((username, email))) | (User.email.in_((email, username)))
                )
            )
        ).all()
    errors = []
    if any(username in (row.username, row.email) for row in found):
        errors.append(
            UserError(
                UserErrorCode.CONFLICT, "This username is taken; choose another.", ("username",)
            )
        )
    if any(email in (row.email, row.username) for row in found):
        errors.append(
            UserError(
                UserErrorCode.CONFLICT,
                "This e-mail address has an account already; sign in instead.",
                ("email",),
            )
        )
    if errors:
        raise UserErrors(errors)


@repeatable
async def update(
    deps: Deps,
    viewer: Viewer,
    *,
    display_name: str | None = None,
    email: str | None = None,
) -> User:
    """Change the viewer's own profile; None leaves a value as it is."""
    user_id = viewer.id
    try:
        async with work(deps) as unit:
            user = await unit.lock(User, user_id)
            if user is None:
                raise UserError(UserErrorCode.NOT_FOUND, "Your account is gone.")
            if display_name is not None:
                user.display_name = _display_name(display_name)
            if email is not None:
                user.email = _email(email)
            await unit.session.flush()
            return user.frozen()
    except IntegrityError as error:
        raise UserError(
            UserErrorCode.CONFLICT, "This e-mail address has another account.", ("email",)
        ) from error


async def change_password(
    deps: Deps, viewer: Viewer, *, current_password: str, new_password: str
) -> None:
    """Change the viewer's password and end all their other sign-ins.

    Raises UserError INVALID when the present password is wrong.
    """
    user_id = viewer.id
    passwords.check(new_password, name="new_password")
    await sessions.throttle(deps, f"password:{user_id}", 1)
    async with deps.db.reading() as connection:
        stored = await connection.scalar(select(User.password_hash).where(User.id == user_id))
    if not await passwords.verify(current_password[:1000], stored):
        raise UserError(
            UserErrorCode.INVALID, "The current password is wrong.", ("current_password",)
        )
    renewed = await passwords.hash_password(new_password)
    async with work(deps) as unit:
        user = await unit.lock(User, user_id)
        if user is None:
            raise UserError(UserErrorCode.NOT_FOUND, "Your account is gone.")
        user.password_hash = renewed
        await sessions.revoke_all(unit, user_id, reason="password changed", keep=viewer.session_id)
