"""What a worker process does while it writes answers: it appends to their topics on the bus."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from benchmarks.delivery.texts import TEXT_CHARS, event_text
from services.conversations import threads
from services.conversations.messages import text_key
from services.events.lane import RUN_ID
from services.events.redis import RedisBus
from services.events.scripts import APPEND
from services.events.wire import pack

_BATCH_COMMANDS = 128


class _Recorder:
    """Takes the place of a bus's commands and keeps them, packed, instead of sending them."""

    def __init__(self, run_id: bytes) -> None:
        self.packed: list[bytes] = []
        self._run_id = run_id

    async def execute(self, *arguments: Any) -> int:
        """Keep a command."""
        words = [self._run_id if argument is RUN_ID else argument for argument in arguments]
        self.packed.append(
            pack(*[word if isinstance(word, bytes) else str(word).encode() for word in words])
        )
        return 1


class Publisher:
    """Appends series of texts; its coroutines are called through a `Child`.

    `messages` are the growing messages of the topics: conversation and message ids.
    """

    def __init__(self, url: str, messages: list[tuple[str, str]]) -> None:
        self._url = url
        self._growing = [
            (threads.topic(conversation), text_key(message, 0))
            for conversation, message in messages
        ]
        self._packed: list[bytes] = []
        self._paced: dict[str, Any] = {}

    async def prepare(self, kind: str, series: dict[str, Any]) -> None:
        """Note the series that `publish` begins: `burst` or `paced`."""
        self._packed, self._paced = [], {}
        if kind == "paced":
            self._paced = series
            return
        async with Redis.from_url(self._url) as redis:
            run_id = str((await redis.info("server"))["run_id"]).encode()
            await redis.script_load(APPEND.source)
        bus = RedisBus(self._url, "recorder")
        # The very commands the bus would send, made before the clock starts.
        recorder = _Recorder(run_id)
        bus._state, bus._commands = "running", recorder  # type: ignore[assignment]
        first, count, now_ns = series["first"], series["count"], time.monotonic_ns()
        for number in range(first, first + count):
            is_last = number == first + count - 1
            await self._append_all(bus, series["topics"], number, now_ns, is_last=is_last)
        self._packed = recorder.packed

    async def publish(self) -> int:
        """Publish the series; gives the time of the first event in nanoseconds."""
        return await (self._publish_paced() if self._paced else self._publish_burst())

    async def _append_all(
        self, bus: RedisBus, topics: int, number: int, now_ns: int, *, is_last: bool
    ) -> None:
        for topic, (name, key) in enumerate(self._growing[:topics]):
            text = event_text(topic, number, now_ns, is_last=is_last)
            await bus.append(name, {"key": key, "offset": number * TEXT_CHARS, "text": text})

    async def _publish_burst(self) -> int:
        wire = RedisBus(self._url, "burst-publisher")._wire()
        await wire.open()
        begun = time.monotonic_ns()
        for start in range(0, len(self._packed), _BATCH_COMMANDS):
            batch = self._packed[start : start + _BATCH_COMMANDS]
            await wire.send(b"".join(batch))
            missing = len(batch)
            while missing:
                answers = await wire.receive()
                errors = [answer for answer in answers if isinstance(answer, Exception)]
                if errors:
                    raise errors[0]
                missing -= len(answers)
        await wire.close()
        return begun

    async def _publish_paced(self) -> int:
        series = self._paced
        bus = RedisBus(self._url, "paced-publisher")
        await bus.start()
        try:
            begun = time.monotonic_ns()
            for index in range(series["count"]):
                left_s = index / series["rate"] - (time.monotonic_ns() - begun) / 1e9
                if left_s > 0:
                    await asyncio.sleep(left_s)
                is_last = index == series["count"] - 1
                number, now_ns = series["first"] + index, time.monotonic_ns()
                await self._append_all(bus, series["topics"], number, now_ns, is_last=is_last)
        finally:
            await bus.aclose()
        return begun
