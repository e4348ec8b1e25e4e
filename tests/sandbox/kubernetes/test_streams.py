"""Sandboxes of Kubernetes at work: commands and files pass through attached streams."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from sandbox import kubernetes_channel
from sandbox.base import SandboxState
from sandbox.client import Reason
from sandbox.errors import (
    ConflictError,
)
from sandbox.limits import Limits
from sandbox.policy import Policy
from tests.sandbox.conftest import MIB, Box, Boxes
from tests.sandbox.kubernetes.conftest import UNTIL_ENDED, driven, soon
from tests.servers.kubernetes import Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v5.channel.k8s.io"])
async def test_commands_and_files_pass_through_the_attached_stream(
    cluster: Kubernetes, protocol: str
) -> None:
    cluster.protocols = (protocol,)
    async with driven(cluster) as boxes:
        box = await boxes.make()
        program = "import os,sys; os.write(1, bytes(range(256)) * 8192); sys.stderr.write('bad')"
        result, out, err = await box.python(program)
        assert (result.exit_code, err) == (0, b"bad")
        assert out == bytes(range(256)) * 8192
        await box.client.files.write("large", b"\xff\x00\x01" * MIB)
        assert await box.client.files.read("large") == b"\xff\x00\x01" * MIB
        execution = await box.start("read line; echo got $line", keep_stdin_open=True)
        await execution.write_stdin(b"input\n")
        assert [chunk.data async for chunk in execution.output()] == [b"got input\n"]
        assert cluster.attached == [protocol]


async def test_many_commands_run_at_once(podded: Boxes) -> None:
    box = await podded.make()
    done = await asyncio.gather(*(box.run(f"echo {number}") for number in range(20)))
    assert [out for _, out, _ in done] == [f"{number}\n".encode() for number in range(20)]


async def test_an_execution_beyond_its_time_is_killed(podded: Boxes) -> None:
    box = await podded.make()
    result, _, _ = await box.run("tail -f /dev/null & tail -f /dev/null", timeout_s=0.5)
    assert result.reason is Reason.TIMED_OUT
    _, out, _ = await box.run(UNTIL_ENDED)
    assert out == b"ended\n"


async def test_a_stalled_reader_stops_the_program_and_not_the_others(podded: Boxes) -> None:
    box = await podded.make()
    program = "import os\nwhile True: os.write(1, b'x' * 65536)"
    execution = await box.start(
        ["python3", "-c", program], timeout_s=60, output_limit_bytes=1 << 40
    )
    async with aclosing(execution.output()) as output:
        await anext(output)
        _, out, _ = await box.run("echo still here")
        assert out == b"still here\n"
        await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


async def test_the_number_of_processes_is_limited(podded: Boxes) -> None:
    box = await podded.make(limits=Limits(memory_bytes=192 * MIB, disk_bytes=32 * MIB, pids=16))
    program = (
        "import os,time\nn=0\ntry:\n  while n<64:\n    if os.fork()==0: time.sleep(99)\n    n+=1\n"
        "except BlockingIOError: pass\nprint(n)"
    )
    _, out, _ = await box.python(program)
    assert 1 <= int(out) < 16


async def test_a_sandbox_is_listed_with_its_labels(podded: Boxes) -> None:
    odd = {"owner": "somebody & someone " * 9, "a key/with=odd signs": "", "plain": "yes"}
    box = await podded.make(labels=odd)
    await podded.make(labels={**odd, "plain": "no"})
    (info,) = await podded.driver.list({**odd, **podded.run_label})
    assert (info.sandbox_id, info.state, info.owned) == (box.id, SandboxState.RUNNING, True)
    assert info.labels == {**odd, **podded.run_label}
    assert info.created_at is not None
    assert len(await podded.driver.list(podded.run_label)) == 2
    await podded.driver.remove(box.id)
    assert await podded.driver.list({"plain": "yes", **podded.run_label}) == []


async def test_an_id_is_taken_once(podded: Boxes) -> None:
    box = await podded.make()
    with pytest.raises(ConflictError):
        await podded.make(sandbox_id=box.id)
    _, out, _ = await box.run("echo still mine")
    assert out == b"still mine\n"


async def test_ids_that_differ_in_case_are_two(podded: Boxes) -> None:
    one, two = await podded.make(sandbox_id="Same_id"), await podded.make(sandbox_id="same-id")
    await one.client.files.write("f", b"one")
    result, _, _ = await two.run("cat f")
    assert result.exit_code == 1


async def test_a_restarted_server_finds_its_sandboxes_again(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make(labels={"owner": "someone"}, policy=Policy(env={"SECRET": "word"}))
    await box.client.files.write("kept", b"from before")
    lost = await box.start("tail -f /dev/null")
    async with driven(cluster) as later:
        (info,) = await later.driver.list(podded.run_label)
        assert (info.sandbox_id, info.state, info.owned) == (box.id, SandboxState.RUNNING, False)
        handle = await later.driver.connect(box.id)
        # The environment is the server's to keep: whoever may look at Pods would see it.
        assert handle == replace(
            box.handle, policy=replace(box.handle.policy, env={}), created_at=handle.created_at
        )
        again = Box(later.driver, handle, await later.client(box.id))
        assert await again.client.files.read("kept") == b"from before"
        # The first server learns that it no longer speaks for the sandbox.
        assert (await lost.result()).reason is Reason.SANDBOX_LOST
        _, out, _ = await again.run(UNTIL_ENDED)
        assert out == b"ended\n"


async def test_a_server_that_let_go_may_come_back(podded: Boxes) -> None:
    box = await podded.make()
    await box.client.aclose()
    await podded.driver.aclose()
    await podded.driver.start()
    _, out, _ = await Box(podded.driver, box.handle, await podded.client(box.id)).run("echo again")
    assert out == b"again\n"


async def test_a_stream_is_kept_alive_between_frames(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_channel, "KEEPALIVE_S", 0.002)
    cluster.holds_start = asyncio.Event()
    async with driven(cluster) as boxes:
        making = asyncio.ensure_future(boxes.make())
        await soon(cluster.created)
        cluster.holds_start.set()
        box = await making
        cluster.awaited = cluster.sent + 200  # With nothing to say.
        await soon(cluster.has_sent)
        data = bytes(range(256)) * 4096
        for _ in range(5):
            await box.client.files.write("f", data)
            assert await box.client.files.read("f") == data
        await box.client.aclose()
        again = Box(boxes.driver, box.handle, await boxes.client(box.id))
        _, out, _ = await again.run("cat", stdin=b"word")
        assert out == b"word"
