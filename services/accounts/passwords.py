"""Passwords (argon2id) and tokens (random, stored hashed)."""

import asyncio
import functools
import hashlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.errors import UnavailableError, UserError, UserErrorCode
from services.text import clean

T = TypeVar("T")
# RFC 9106, second recommended option: 64 MiB, 3 passes, 4 lanes.
_hasher = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)
# Hashing is heavy on purpose; two at a time keep memory and cores for everybody else.
_MAX_WAITING = 200
_pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="argon2")


def check(password: str, *, name: str = "password") -> str:
    """Give the password if it may be used. Raises UserError otherwise; it is never echoed."""
    clean(password, name, max_chars=200)
    if len(password) < 8:
        raise UserError(
            UserErrorCode.INVALID, "The password must have at least 8 characters.", (name,)
        )
    return password


async def hash_password(password: str) -> str:
    """Hash a password with argon2id, in a thread."""
    return await _queued(_hasher.hash, password)


async def verify(password: str, password_hash: str | None) -> bool:
    """Check a password in a thread. With no hash it takes as long and says no."""
    return await _queued(_verify, password, password_hash)


async def _queued(function: Callable[..., T], *arguments: object) -> T:
    """Run in the pool, unless so many wait already that an answer would come too late."""
    if _pool._work_queue.qsize() >= _MAX_WAITING:
        raise UnavailableError("Too many people sign in right now; try again in a moment.", 5.0)
    return await asyncio.get_running_loop().run_in_executor(_pool, function, *arguments)


def _verify(password: str, password_hash: str | None) -> bool:
    try:
        _hasher.verify(password_hash or _unknown(), password.encode("utf-8", "replace"))
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


@functools.cache
def _unknown() -> str:
    return _hasher.hash(secrets.token_urlsafe(16))


def new_token() -> str:
    """Make a token of 256 random bits."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Hash a token for storage and look-up; a random token needs no salt."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
