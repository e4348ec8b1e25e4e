"""Passwords as the product hashes them, which other tests do at the least cost it takes."""

import pytest
from argon2 import PasswordHasher

from services.accounts import passwords


async def test_passwords_are_hashed_as_rfc_9106_recommends(
    hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_hasher", hasher)
    hashed = await passwords.hash_password("correct horse")
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await passwords.verify("correct horse", hashed)
    assert not await passwords.verify("wrong horse", hashed)
