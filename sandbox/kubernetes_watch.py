"""What the Pods of the namespace are now: one list, then a watch that outlives its connections."""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from sandbox.kubernetes_api import BROKEN, Api, StatusError
from sandbox.kubernetes_pod import Pod

log = logging.getLogger(__name__)

PAGE = 500
WATCH_S = 240  # The server ends a watch then, and it is taken up where it ended.
SILENCE_S = WATCH_S + 30.0
LINE_BYTES = 8 * 1024 * 1024
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 15.0

Listener = Callable[[Pod | None, Pod | None], None]


class ExpiredError(Exception):
    """The place to go on from is too old: the server has forgotten what came after it."""


class PodWatch:
    """Calls `listener(before, after)` for every change; None stands for a Pod that is not there.

    `pods` are by name. What happened while no connection stood is told once there is one again,
    as the difference: a Pod that came and went in between is never told of.
    """

    def __init__(self, api: Api, namespace: str, selector: str, listener: Listener) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._listener = listener
        self._version = ""
        self._task: asyncio.Task[None] | None = None
        self._changes: dict[str, set[asyncio.Event]] = {}
        self.pods: dict[str, Pod] = {}

    async def start(self) -> None:
        """List once, then follow. Raises StatusError and errors of the connection."""
        await self._list()
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def change(self, name: str, seen: Pod | None, timeout_s: float) -> Pod | None:
        """The Pod as soon as it differs from what was `seen`; as it is when the time is over."""
        event = asyncio.Event()
        self._changes.setdefault(name, set()).add(event)
        try:
            if _version(self.pods.get(name)) == _version(seen):
                async with asyncio.timeout(timeout_s):
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            waiting = self._changes[name]
            waiting.discard(event)
            if not waiting:
                del self._changes[name]
        return self.pods.get(name)

    def tell(self, pod: Pod) -> None:
        """Take in what an answer showed, unless the watch was faster."""
        name = pod["metadata"]["name"]
        held = self.pods.get(name)
        if held is None or _number(held) < _number(pod):
            self._set(name, pod)

    def forget(self, name: str) -> None:
        """Take in that an answer said there is no such Pod."""
        self._set(name, None)

    def _set(self, name: str, pod: Pod | None) -> None:
        before = self.pods.pop(name, None)
        if pod is not None:
            self.pods[name] = pod
        if before is None and pod is None:
            return
        for event in self._changes.get(name, ()):
            event.set()
        self._listener(before, pod)

    async def _list(self) -> None:
        found: dict[str, Pod] = {}
        params = {"labelSelector": self._selector, "limit": str(PAGE)}
        while True:
            page = await self._api.request("GET", self._path, params=params)
            found |= {pod["metadata"]["name"]: pod for pod in page.get("items") or ()}
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            params["continue"] = metadata["continue"]
        self._version = metadata.get("resourceVersion", "")
        for name in self.pods.keys() - found.keys():
            self._set(name, None)
        for name, pod in found.items():
            held = self.pods.get(name)
            if held is None or held["metadata"] != pod["metadata"]:
                self._set(name, pod)

    async def _run(self) -> None:
        delay_s = FIRST_DELAY_S
        is_lost = False
        while True:
            try:
                if is_lost:
                    await self._list()
                    is_lost = False
                began = time.monotonic()
                async for _ in self._follow():
                    delay_s = FIRST_DELAY_S
                if time.monotonic() - began > LONGEST_DELAY_S:
                    continue  # The server ended it in good order.
            except ExpiredError:
                log.info("The watch of the cluster is listed anew.")
                is_lost = True
            except StatusError as error:
                # To list is also how credentials are renewed.
                is_lost = error.status in (401, 410) or is_lost
                log.warning("The watch of the cluster is refused: %s", error)
            except BROKEN as error:
                log.warning("The watch of the cluster broke off: %r", error)
            # Many servers that lost the same connection must not come back as one.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _follow(self) -> AsyncIterator[None]:
        """Take changes in until the server ends the watch; yields after each."""
        params = {
            "watch": "true",
            "labelSelector": self._selector,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        async with self._api.stream(self._path, params, silence_s=SILENCE_S) as content:
            async for line in _lines(content):
                self._take(line)
                yield

    def _take(self, line: bytes) -> None:
        try:
            event: Mapping[str, Any] = json.loads(line)
            kind, thing = event["type"], event["object"]
        except (ValueError, KeyError, TypeError) as error:
            raise aiohttp.ClientPayloadError("The watch sent what is no event.") from error
        if kind == "ERROR":
            if thing.get("code") == 410:
                raise ExpiredError
            raise StatusError(int(thing.get("code", 500)), "", str(thing.get("message", "")))
        metadata = thing.get("metadata") or {}
        self._version = metadata.get("resourceVersion", self._version)
        if kind in ("ADDED", "MODIFIED"):
            self._set(metadata["name"], thing)
        elif kind == "DELETED":
            self._set(metadata["name"], None)


def _version(pod: Pod | None) -> str:
    return "" if pod is None else str(pod["metadata"].get("resourceVersion", ""))


def _number(pod: Pod) -> int:
    """How late a version is. Servers number them so, though they promise it only since 1.35."""
    version = _version(pod)
    return int(version) if version.isdigit() else 0


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to a limit; the reader's own are too short for some Pods."""
    held = bytearray()
    while data := await content.readany():
        held += data
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end])
            del held[: end + 1]
            if line.strip():
                yield line
        if len(held) > LINE_BYTES:
            raise aiohttp.ClientPayloadError("The watch sent an event without an end.")
