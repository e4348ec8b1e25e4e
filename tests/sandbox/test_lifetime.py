"""From creation to removal, on every driver."""

import asyncio
import os
import threading
from contextlib import aclosing

import pytest

from sandbox.base import DriverEventKind, SandboxState
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import Reason, SandboxClient
from sandbox.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    PolicyUnsupportedError,
    SandboxError,
    SandboxLostError,
    TemplateError,
)
from sandbox.limits import Limits
from sandbox.policy import NetworkPolicy, Policy
from sandbox.records import Record
from tests.sandbox.conftest import MIB, Box, Boxes


async def test_a_sandbox_is_listed_with_its_labels(boxes: Boxes) -> None:
    box = await boxes.make(labels={"owner": "someone", "colour": "blue"})
    await boxes.make(labels={"owner": "someone", "colour": "red"})
    (info,) = await boxes.driver.list({"colour": "blue", **boxes.run_label})
    assert (info.sandbox_id, info.state, info.owned) == (box.id, SandboxState.RUNNING, True)
    assert info.labels["owner"] == "someone"
    assert info.created_at is not None
    assert len(await boxes.driver.list(boxes.run_label)) == 2
    await boxes.driver.remove(box.id)
    assert await boxes.driver.list({"colour": "blue", **boxes.run_label}) == []


async def test_an_id_is_taken_once(boxes: Boxes) -> None:
    box = await boxes.make()
    with pytest.raises(ConflictError):
        await boxes.make(sandbox_id=box.id)
    _, out, _ = await box.run("echo still mine")
    assert out == b"still mine\n"


async def test_two_sandboxes_share_nothing(boxes: Boxes) -> None:
    one, two = await boxes.make(), await boxes.make()
    await one.run("echo secret > /workspace/f; echo secret > /tmp/f")
    result, out, _ = await two.run("cat /workspace/f /tmp/f")
    assert (out, result.exit_code) == (b"", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"sandbox_id": ""},
        {"sandbox_id": "a/../b"},
        {"sandbox_id": "x" * 65},
        {"limits": Limits(memory_bytes=-1)},
        {"limits": Limits(pids=0)},
        {"limits": Limits(cpu_millis=0)},
        {"limits": Limits(disk_bytes=-5)},
        {"limits": Limits(memory_bytes=128 * MIB, disk_bytes=128 * MIB)},
        {"policy": Policy(env={"A\0": "b"})},
    ],
)
async def test_specs_that_make_no_sense_are_refused(
    boxes: Boxes, changes: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgumentError):
        await boxes.driver.create(boxes.spec(**changes))
    boxes.ids = {name for name in boxes.ids if name and "/" not in name}
    assert await boxes.driver.list(boxes.run_label) == []


async def test_policies_that_cannot_be_enforced_are_refused(boxes: Boxes) -> None:
    with pytest.raises(PolicyUnsupportedError):
        await boxes.make(policy=Policy(network=NetworkPolicy("bridge")))  # type: ignore[arg-type]
    with pytest.raises(PolicyUnsupportedError):
        await boxes.make(limits=Limits(network_bytes_per_s=1000))
    assert await boxes.driver.list(boxes.run_label) == []


async def test_an_image_that_is_not_there_is_refused(boxes: Boxes) -> None:
    assert await boxes.driver.has_image(boxes.image)
    assert not await boxes.driver.has_image("noosphere-no-such-image")
    with pytest.raises(TemplateError):
        await boxes.make(image="noosphere-no-such-image")
    assert await boxes.driver.list(boxes.run_label) == []


async def test_a_paused_sandbox_stands_still_and_goes_on(box: Box) -> None:
    if (await box.driver.capabilities()).items["pause"] != "ENFORCED":
        pytest.skip("Pausing is not available here.")
    counter = "import itertools\nfor n in itertools.count(): print(n)"
    execution = await box.start(["python3", "-c", counter], timeout_s=60)
    async with aclosing(execution.output()) as output:
        await anext(output)
        await box.driver.pause(box.id)
        await box.driver.pause(box.id)
        (info,) = [i for i in await box.driver.list({}) if i.sandbox_id == box.id]
        assert info.state is SandboxState.PAUSED
        before = (await box.driver.stats(box.id)).cpu_ms
    # Everything that was on its way is read; then nothing comes.
    silent = False
    async with aclosing(execution.output()) as output:
        while not silent:
            try:
                async with asyncio.timeout(0.5):
                    await anext(output)
            except TimeoutError:
                silent = True
    assert (await box.driver.stats(box.id)).cpu_ms == before
    await box.driver.resume(box.id)
    async with aclosing(execution.output()) as output, asyncio.timeout(20):
        await anext(output)
    await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


async def test_time_spent_paused_is_not_the_executions(box: Box) -> None:
    if (await box.driver.capabilities()).items["pause"] != "ENFORCED":
        pytest.skip("Pausing is not available here.")
    execution = await box.start("read x; echo $x", timeout_s=3, keep_stdin_open=True)
    await box.driver.pause(box.id)
    await asyncio.sleep(3.5)  # The subject of this test is time itself.
    await box.driver.resume(box.id)
    await execution.write_stdin(b"in time\n")
    assert [chunk.data async for chunk in execution.output()] == [b"in time\n"]
    assert (await execution.result()).reason is Reason.EXITED


async def test_a_paused_sandbox_can_be_stopped_and_removed(boxes: Boxes) -> None:
    if (await boxes.driver.capabilities()).items["pause"] != "ENFORCED":
        pytest.skip("Pausing is not available here.")
    one, two = await boxes.make(), await boxes.make()
    for box in (one, two):
        await boxes.driver.pause(box.id)
    await boxes.driver.stop(one.id)
    await boxes.driver.remove(two.id)
    infos = await boxes.driver.list(boxes.run_label)
    assert [(i.sandbox_id, i.state) for i in infos] == [(one.id, SandboxState.STOPPED)]


async def test_losing_the_sandbox_ends_what_ran_in_it(boxes: Boxes) -> None:
    box = await boxes.make()
    execution = await box.start("echo on; sleep 600", timeout_s=700)
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"on\n"
        async with asyncio.timeout(20):
            await boxes.driver.stop(box.id)
            assert [chunk async for chunk in output] == []
    result = await execution.result()
    assert (result.reason, result.exit_code, result.stdout_bytes) == (Reason.SANDBOX_LOST, None, 3)
    with pytest.raises(SandboxLostError):
        await box.start("true")
    with pytest.raises(SandboxLostError):
        await box.client.files.read("x")
    assert box.client.is_lost
    with pytest.raises(ConflictError):
        await boxes.driver.open_channel(box.id)
    with pytest.raises(NotFoundError):
        await boxes.driver.connect(box.id)
    await boxes.driver.stop(box.id)


async def test_events_tell_of_an_end(boxes: Boxes) -> None:
    box = await boxes.make()
    async with aclosing(boxes.driver.events()) as events:
        # Only a second sandbox's end proves that the engine's stream is being read.
        stopping = asyncio.ensure_future(boxes.driver.stop(box.id))
        async with asyncio.timeout(30):
            if boxes.driver.name == "docker":
                async for event in events:
                    if (event.kind, event.sandbox_id) == (DriverEventKind.DIED, box.id):
                        break
        await stopping


async def test_what_does_not_exist_is_not_found(boxes: Boxes) -> None:
    for act in (
        boxes.driver.connect, boxes.driver.pause, boxes.driver.stop,
        boxes.driver.stats, boxes.driver.open_channel,
    ):  # fmt: skip
        with pytest.raises(NotFoundError):
            await act("no-such-sandbox")
    await boxes.driver.remove("no-such-sandbox")


async def test_usage_grows_with_work(box: Box) -> None:
    before = await box.driver.stats(box.id)
    await box.python("x = b'1' * (30 << 20)\nfor _ in range(3_000_000): pass")
    after = await box.driver.stats(box.id)
    if before.cpu_ms is None:
        pytest.skip("Nothing counts here.")
    assert after.cpu_ms is not None
    assert after.cpu_ms > before.cpu_ms
    assert after.memory_peak_bytes is None or after.memory_peak_bytes > 30 * MIB


async def test_limits_can_be_changed_while_it_runs(boxes: Boxes) -> None:
    if (await boxes.driver.capabilities()).items["memory"] != "ENFORCED":
        pytest.skip("Memory is not enforced for the whole sandbox here.")
    box = await boxes.make(limits=Limits(memory_bytes=96 * MIB, disk_bytes=MIB))
    program = "x = b'1' * (150 << 20)"
    assert (await box.python(program))[0].reason is Reason.OOM_KILLED
    await boxes.driver.update(box.id, limits=Limits(memory_bytes=384 * MIB, disk_bytes=MIB))
    assert (await box.python(program))[0].exit_code == 0
    await boxes.driver.update(box.id, limits=Limits(memory_bytes=96 * MIB, disk_bytes=MIB))
    assert (await box.python(program))[0].reason is Reason.OOM_KILLED


async def test_a_new_channel_takes_over_and_ends_the_old_executions(boxes: Boxes) -> None:
    box = await boxes.make()
    first = await box.start("echo $$ > pid; echo up; cat", keep_stdin_open=True)
    async with aclosing(first.output()) as output:
        assert (await anext(output)).data == b"up\n"
    again = Box(box.driver, box.handle, await boxes.client(box.id))
    assert (await first.result()).reason is Reason.SANDBOX_LOST
    _, out, _ = await again.run("kill -0 $(cat pid) 2>&1 || echo gone")
    assert out.endswith(b"gone\n")
    assert await again.client.files.read("pid")


async def test_a_channel_is_taken_over_in_the_middle_of_a_frame(boxes: Boxes) -> None:
    box = await boxes.make()
    channel = await boxes.driver.open_channel(box.id)
    # A server that died while it wrote: a header that promises more than ever came.
    channel.write(b"\x15\x00\x00\x00\x07\x00\x03\x00\x00half of a file")
    await channel.drain()
    await channel.aclose()
    again = Box(box.driver, box.handle, await boxes.client(box.id))
    result, out, _ = await again.run("echo whole")
    assert (out, result.exit_code) == (b"whole\n", 0)
    assert await again.client.files.list(".") == []


async def test_cancelled_creation_leaves_nothing(boxes: Boxes) -> None:
    for steps in (1, 3, 6, 10, 20):
        task = asyncio.ensure_future(boxes.driver.create(boxes.spec()))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await boxes.driver.list(boxes.run_label) == []


async def test_a_creation_cancelled_while_it_writes_leaves_nothing(
    wrapped: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(wrapped.driver, BubblewrapDriver)
    records = wrapped.driver._records
    write = records.write
    loop = asyncio.get_running_loop()
    begun, written, go = asyncio.Event(), asyncio.Event(), threading.Event()

    def slowly(record: Record) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(60)
        write(record)
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(records, "write", slowly)
    async with asyncio.timeout(60):
        task = asyncio.ensure_future(wrapped.driver.create(wrapped.spec()))
        await begun.wait()
        task.cancel()
        # Whoever does not wait for the thread has removed everything by then.
        await asyncio.wait({task}, timeout=0.5)
        go.set()
        await written.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await wrapped.driver.list(wrapped.run_label) == []


async def test_cycles_leak_no_descriptor(boxes: Boxes) -> None:
    async def cycle() -> None:
        box = await boxes.make()
        assert (await box.run("echo hi"))[1] == b"hi\n"
        await box.client.aclose()
        await boxes.driver.remove(box.id)

    await cycle()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await cycle()
    # The engine's connection pool may keep one more or less.
    assert abs(len(os.listdir("/proc/self/fd")) - before) <= 2
    assert await boxes.driver.list(boxes.run_label) == []


async def test_messages_name_no_path_of_the_host(boxes: Boxes) -> None:
    messages = []
    for work in (
        boxes.make(image="noosphere-no-such-image"),
        boxes.driver.connect("absent"),
        boxes.make(limits=Limits(pids=-1)),
    ):
        with pytest.raises(SandboxError) as caught:
            await work
        messages.append(caught.value.message)
    assert all(message and "/var/" not in message for message in messages)


async def test_closing_the_client_ends_its_executions(boxes: Boxes) -> None:
    box = await boxes.make()
    execution = await box.start("sleep 600")
    await box.client.aclose()
    assert (await execution.result()).reason is Reason.SANDBOX_LOST
    client = await SandboxClient.connect(await boxes.driver.open_channel(box.id))
    await client.aclose()
