"""What is told over HTTP and GraphQL of files that ClamAV is asked about."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.sandbox_files.conftest import MIB, Site, in_pieces, site_in, tarred, until_only
from tests.servers.clamd import HARMFUL, NAME, Clamd, running

pytestmark = [pytest.mark.bubblewrap, pytest.mark.clamd]
WRITE = """mutation ($input: SandboxFileWriteInput!) {
  sandboxFileWrite(input: $input) { file { path verdict } errors { code message path } }
}"""
LOOK = """query ($id: ID!) {
  sandbox(id: $id) { files { path verdict } findings { edges { node { path rule engine } } } }
}"""


@pytest.fixture
async def daemon(clamd_program: str, tmp_path: Path) -> AsyncIterator[Clamd]:
    (tmp_path / "clamd").mkdir()
    async with running(clamd_program, tmp_path / "clamd", StreamMaxLength="4M") as daemon:
        yield daemon


@pytest.fixture
async def site(daemon: Clamd, tmp_path: Path) -> AsyncIterator[Site]:
    async with site_in(tmp_path, clamav_url=daemon.url) as made:
        yield made


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


async def write(site: Site, path: str, content: bytes) -> dict[str, Any]:
    given = {"sandboxId": site.box, "path": path, "content": content.decode()}
    found: dict[str, Any] = await site.api.run(WRITE, site.ada, input=given)
    return found


async def look(site: Site) -> tuple[dict[str, str], set[tuple[str, str, str]]]:
    found = await site.api.run(LOOK, site.ada, id=site.box)
    findings = [edge["node"] for edge in found["findings"]["edges"]]
    return (
        {file["path"]: file["verdict"] for file in found["files"]},
        {(each["path"], each["rule"], each["engine"]) for each in findings},
    )


async def test_every_way_in_is_scanned(site: Site) -> None:
    large = os.urandom(2 * MIB)
    for data in (HARMFUL, large + HARMFUL + large[:1000]):
        status, code, message = refusal(await site.ask("PUT", "put", content=in_pieces(data)))
        assert (status, code) == (400, "INVALID")
        assert f"clamav: {NAME}" in message
        assert "quarantine" in message
    answer = await site.ask("PUT", "tree?format=tar", "archive", content=tarred(("a", HARMFUL)))
    status, code, message = refusal(answer)
    assert (status, code) == (400, "INVALID")
    assert f"tree/a, was taken for harmful (clamav: {NAME})" in message
    written = await write(site, "written", HARMFUL)
    assert written["file"] is None
    (error,) = written["errors"]
    assert (error["code"], error["path"]) == ("INVALID", ["input", "content"])
    assert f"clamav: {NAME}" in error["message"]
    await until_only(site)
    found = {(path, NAME, "clamav") for path in ("put", "tree/a", "written")}
    assert await look(site) == ({}, found)

    # Beyond what the daemon takes nobody says that it is clean.
    for path, data in (("clean", large), ("large", large * 3)):
        assert (await site.ask("PUT", path, content=in_pieces(data))).status_code == 201
    assert (await write(site, "small", b"good"))["file"]["verdict"] == "CLEAN"
    verdicts = {"clean": "CLEAN", "large": "UNSCANNED", "small": "CLEAN"}
    assert await look(site) == (verdicts, found)


async def test_while_it_is_away_files_are_refused_with_a_reason(site: Site, daemon: Clamd) -> None:
    await site.ask("PUT", "f", content=b"old")
    await daemon.stop()
    asked = [
        await site.ask("PUT", "f", content=in_pieces(os.urandom(3 * MIB))),
        await site.ask("PUT", "tree?format=tar", "archive", content=tarred(("a", b"good"))),
    ]
    for answer in asked:
        status, code, message = refusal(answer)
        assert (status, code, answer.headers["retry-after"]) == (503, "UNAVAILABLE", "1")
        assert message == "Files cannot be scanned right now, so none is taken in; try again soon."
    (error,) = (await write(site, "f", b"new"))["errors"]
    assert error["code"] == "UNAVAILABLE"
    await until_only(site, "f")
    assert (await site.ask("GET", "f")).content == b"old"
    await daemon.start()
    assert (await site.ask("PUT", "f", content=b"new")).status_code == 200
