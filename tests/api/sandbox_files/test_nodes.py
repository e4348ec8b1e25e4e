"""Files of sandboxes that live at another node."""

import asyncio
import os
import secrets
from pathlib import Path

import pytest

from app.runtime import running
from services.sandboxes import lifecycle
from tests.api.sandbox_files.conftest import (
    MIB,
    SMALL,
    Site,
    broken_off,
    in_pieces,
    listening,
    until_only,
)
from tests.fixtures import Api, settings_for

pytestmark = pytest.mark.bubblewrap


@pytest.mark.redis
async def test_either_node_serves_the_sandboxes_of_the_other(
    tmp_path: Path, redis_url: str
) -> None:
    common = {"redis_url": redis_url, "sandbox_driver": "bubblewrap"}
    database = f"sqlite+aiosqlite:///{tmp_path / 'shared.sqlite3'}"
    near = settings_for(tmp_path / "near", database_url=database, node_id="near", **common)
    other = settings_for(tmp_path / "other", database_url=database, node_id="other", **common)
    async with running(other) as hosting, listening(near) as (asking, port):
        api = Api(asking)
        ada = await api.person("ada")
        box = await lifecycle.create(hosting, ada.viewer, resources=SMALL)
        assert box.node_id == "other"
        site = Site(asking, port, api, ada, box.id)
        data = secrets.token_bytes(9 * MIB + 1)
        made = await site.ask("PUT", "a/file", content=in_pieces(data))
        assert made.status_code == 201, made.text
        assert (await site.ask("GET", "a/file")).content == data
        part = await site.ask("GET", "a/file", headers={"range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, data[-5:])
        packed = await site.ask("GET", "a?format=tar.gz", "archive")
        back = await site.ask("PUT", "b?format=tar.gz", "archive", content=packed.content)
        assert back.json()["archive"] == {"sizeBytes": len(data), "entries": 1}
        full = await site.ask("PUT", "c", content=in_pieces(bytes(30 * MIB), MIB))
        assert (full.status_code, full.json()["error"]["code"]) == (507, "LIMIT")
        assert (await site.ask("GET", "nothing")).status_code == 404
        lost = await site.ask("PUT", "a/file", content=b"1", headers={"if-match": '"old"'})
        assert (lost.status_code, lost.json()["error"]["code"]) == (412, "CONFLICT")
        won = {"if-match": made.headers["etag"]}
        assert (await site.ask("PUT", "a/file", content=b"1", headers=won)).status_code == 200
        there = Site(hosting, port, api, ada, box.id)
        await broken_off(there, f"PUT /sandboxes/{box.id}/files/new", os.urandom(3 * MIB))
        await until_only(there, "a", "b")
        node = await there.node()
        async with asyncio.timeout(60):
            while len(node.relays):  # noqa: ASYNC110 - whoever clears tells nobody.
                await asyncio.sleep(0.05)
