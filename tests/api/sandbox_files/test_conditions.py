"""Who reads or replaces a file may say which version it is to be."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.api.sandbox_files.conftest import Site, tarred

pytestmark = pytest.mark.bubblewrap


async def test_conditions(site: Site) -> None:
    tag = (await site.ask("PUT", "f", content=b"0123456789")).headers["etag"]

    async def get(method: str = "GET", **headers: str) -> tuple[int, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        found = await site.ask(method, "f", headers=named)
        assert found.headers["etag"] == tag
        return found.status_code, found.content

    assert await get(if_none_match=tag) == (304, b"")
    assert await get("HEAD", if_none_match=f'"x", W/{tag}') == (304, b"")
    assert await get(if_none_match="*") == (304, b"")
    assert await get(if_none_match='"other"') == (200, b"0123456789")
    assert await get(range="bytes=1-2", if_range=tag) == (206, b"12")
    assert await get(range="bytes=1-2", if_range='"other"') == (200, b"0123456789")
    assert await get(range="bytes=1-2", if_range=f"W/{tag}") == (200, b"0123456789")
    await site.ask("PUT", "f", content=b"9876543210")
    changed = await site.ask("GET", "f", headers={"range": "bytes=1-2", "if-range": tag})
    assert (changed.status_code, changed.content) == (200, b"9876543210")


async def test_who_replaces_a_file_may_say_which(site: Site) -> None:
    async def put(content: bytes, path: str = "f", **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        found = await site.ask("PUT", path, content=content, headers=named)
        if found.is_success:
            return found.status_code, found.headers["etag"]
        return found.status_code, found.json()["error"]["code"]

    failed = (412, "CONFLICT")
    assert await put(b"0", if_match="*") == failed
    assert await put(b"0", if_match='"old"') == failed
    assert await site.names() == []
    status, first = await put(b"one", if_none_match="*")
    assert status == 201
    assert await put(b"0", if_none_match="*") == failed
    assert await put(b"0", if_none_match=f'"x", W/{first}') == failed
    for refused in (
        '"old"',
        f"W/{first}",
        '"*"',
        f'"{first}"',
        f'{first}, "',
        first.strip('"'),
        "",
    ):
        assert (await put(b"0", if_match=refused))[0] in (400, 412), refused
    assert await put(b"0", if_none_match="nonsense") == (400, "INVALID")
    assert (await site.ask("GET", "f")).content == b"one"
    status, second = await put(b"second", if_match=f'"x" , {first}')
    assert (status, second != first) == (200, True)
    assert await put(b"0", if_match=first) == failed
    status, third = await put(b"third!", if_match="*", if_none_match=first)
    assert status == 200
    long_ago = "Sat, 01 Jan 2000 00:00:00 GMT"
    assert await put(b"0", if_unmodified_since=long_ago) == failed
    # The tag tells more than the date; what is no date is none.
    assert (await put(b"fourth", if_unmodified_since=long_ago, if_match=third))[0] == 200
    assert (await put(b"fourth", if_unmodified_since="Fri, 31 Dec 9999 23:59:59 -2359"))[0] == 200
    for no_date in ("yesterday", "Sun, 06 Nov 99999999999 08:49:37 GMT"):
        assert (await put(b"fourth", if_unmodified_since=no_date))[0] == 200
    assert (await put(b"0", path="new", if_unmodified_since=long_ago))[0] == 201
    assert (await put(b"0", path="f", if_none_match='"x"', if_match="*"))[0] == 200
    tag = (await site.ask("HEAD", "f")).headers["etag"]
    for method in ("GET", "HEAD"):
        assert (await site.ask(method, "f", headers={"if-match": tag})).status_code == 200
        assert (await site.ask(method, "f", headers={"if-match": third})).status_code == 412
    unpacked = await site.ask(
        "PUT", "d", "archive", content=tarred(("a", b"1")), headers={"if-match": "*"}
    )
    assert (unpacked.status_code, unpacked.json()["error"]["code"]) == (400, "INVALID")
    assert sorted(await site.names()) == ["f", "new"]


async def test_of_those_who_replace_one_version_at_once_one_does(site: Site) -> None:
    tag = (await site.ask("PUT", "f", content=b"0")).headers["etag"]
    release = asyncio.Event()

    async def held(data: bytes) -> AsyncIterator[bytes]:
        yield data
        await release.wait()
        yield data

    async def replace(number: int) -> int:
        content = held(b"%d" % number * (number + 1))
        headers = {"if-match": tag}
        return (await site.ask("PUT", "f", content=content, headers=headers)).status_code

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(replace(number)) for number in range(6)]
        # All of them have begun inside, where each found the version that it is for.
        async with asyncio.timeout(60):
            while len(await site.names()) < 7:  # noqa: ASYNC110 - it is told to nobody.
                await asyncio.sleep(0.02)
        release.set()
    codes = [task.result() for task in asked]
    assert sorted(codes) == [200] + [412] * 5
    winner = codes.index(200)
    assert (await site.ask("GET", "f")).content == b"%d" % winner * (winner + 1) * 2
    assert await site.names() == ["f"]
    # One that came before all of an upload did, is not lost either.
    tag = (await site.ask("HEAD", "f")).headers["etag"]
    release.clear()
    late = asyncio.ensure_future(
        site.ask("PUT", "f", content=held(b"l"), headers={"if-match": tag})
    )
    async with asyncio.timeout(60):
        while len(await site.names()) < 2:  # noqa: ASYNC110 - as above.
            await asyncio.sleep(0.02)
    inside = (await site.node()).client(site.box)
    run = await inside.execute("echo inside > f", timeout_s=30, output_limit_bytes=1000)
    await run.result()
    release.set()
    assert (await late).status_code == 412
    assert (await site.ask("GET", "f")).content == b"inside\n"
