"""What the double's cluster holds and does by itself: Pods, their kubelet, and what may go wrong.

`tests/servers/kubernetes.py` serves it.
"""

import asyncio
import contextlib
import copy
import json
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.servers.kubelet import Container
from tests.servers.kubernetes_rules import Refusal

DIGEST = "sha256:" + "0123456789abcdef" * 4
_GRACE_S = 0.02  # A second of a real cluster.


Pod = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cluster:
    """Pods, each with its container, and everybody who watches or is attached."""

    def __init__(self) -> None:
        self.images = {"sandbox:1"}
        self.oddities: dict[str, Any] = {}
        self.network_is_open = False
        self.is_full = False
        self.node_answers = True
        self.holds_start: asyncio.Event | None = None
        self.pods: dict[str, Pod] = {}
        self._containers: dict[str, Container] = {}
        self._sockets: dict[str, list[web.WebSocketResponse]] = {}
        self._watchers: dict[asyncio.Queue[Any], web.Request] = {}
        self._history: list[tuple[int, str, Pod]] = []
        self._revision = 1000
        self._oldest = 1000
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def aclose(self) -> None:
        """End all containers, and break every watch."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for container in self._containers.values():
            await container.aclose()
        self.cut_watches()

    # What happens in the cluster by itself.

    def cut_watches(self) -> None:
        """Break every watch in the middle, as a load balancer does."""
        for request in self._watchers.values():
            if request.transport is not None:
                request.transport.abort()

    def end_watches(self) -> None:
        """End every watch in good order, as servers do after `timeoutSeconds`."""
        for queue in self._watchers:
            queue.put_nowait(None)

    def bookmark(self) -> None:
        """Tell every watch how far it is."""
        version = str(self._revision)
        mark = {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version}}
        for queue in self._watchers:
            queue.put_nowait({"type": "BOOKMARK", "object": mark})

    def compact(self) -> None:
        """Forget all history: watches that go on from before are answered 410."""
        self._revision += 1
        self._oldest = self._revision
        self._history.clear()

    def expire_watches(self) -> None:
        """Tell every watch that its place is forgotten."""
        gone = Refusal(410, "Expired", "too old resource version").status()
        for queue in self._watchers:
            queue.put_nowait({"type": "ERROR", "object": gone})

    def cut_attached(self) -> None:
        """Break every attached stream; the containers run on."""
        for sockets in self._sockets.values():
            for socket in sockets:
                transport = socket._req.transport if socket._req is not None else None
                if transport is not None:
                    transport.abort()

    def end_container(self, name: str, *, reason: str = "OOMKilled", code: int = 137) -> None:
        """End a container for a reason of the kernel's or of its own."""
        self.pods[name]["_reason"] = (reason, code)
        self._containers[name].kill()

    def evict(self, name: str) -> None:
        """End a Pod as nodes do that run out of disk."""
        pod = self.pods[name]
        pod["status"] |= {"reason": "Evicted", "message": "The node was low on resource: disk."}
        self.end_container(name, reason="Error")

    def vanish(self, name: str) -> None:
        """Take a Pod away and tell nobody: watches that list anew find it gone."""
        del self.pods[name]
        self.compact()

    # Pods.

    def _found(self, name: str) -> Pod:
        if name not in self.pods:
            raise Refusal(404, "NotFound", f'pods "{name}" not found')
        return self.pods[name]

    def _shown(self, name: str) -> Pod:
        return {key: value for key, value in self._found(name).items() if key != "_reason"}

    def _change(self, kind: str, pod: Pod) -> None:
        self._revision += 1
        pod["metadata"]["resourceVersion"] = str(self._revision)
        if kind != "DELETED":
            self.pods[pod["metadata"]["name"]] = pod
        shown = copy.deepcopy({key: value for key, value in pod.items() if key != "_reason"})
        self._history.append((self._revision, kind, shown))
        for queue in self._watchers:
            queue.put_nowait({"type": kind, "object": shown})

    async def _put_in_force(self, pod: Pod) -> None:
        """The kubelet's part, after the answer."""
        resources = copy.deepcopy(pod["spec"]["containers"][0]["resources"])
        for amounts in resources.values():  # Servers write amounts in their own way.
            if amounts["cpu"].endswith("000m"):
                amounts["cpu"] = amounts["cpu"].removesuffix("000m")
            if int(amounts["memory"]) % (1 << 20) == 0:
                amounts["memory"] = f"{int(amounts['memory']) >> 20}Mi"
        pod["status"]["containerStatuses"][0]["resources"] = resources
        self._change("MODIFIED", pod)

    async def _terminate(self, name: str, pod: Pod, grace_s: float) -> None:
        """Wait the grace out, kill, and only then forget the Pod."""
        container = self._containers.pop(name, None)
        if container is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s * _GRACE_S):
                    await container.wait()
            await container.aclose()
        if self.pods.get(name) is pod:
            del self.pods[name]
            self._change("DELETED", pod)

    # The kubelet.

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, pod: Pod) -> None:
        name = pod["metadata"]["name"]
        if self.is_full:
            message = "0/3 nodes are available: 3 Insufficient memory."
            condition = {"type": "PodScheduled", "status": "False", "message": message}
            pod["status"]["conditions"] = [{**condition, "reason": "Unschedulable"}]
            self._change("MODIFIED", pod)
            return
        if self.holds_start is not None:
            await self.holds_start.wait()
        if self.pods.get(name) is not pod:
            return
        image = pod["spec"]["containers"][0]["image"]
        if image.partition("@")[0] not in self.images:
            for reason in ("ErrImagePull", "ImagePullBackOff"):
                self._status(pod, "Pending", waiting={"reason": reason, "message": "not found"})
            return
        for reason in ("CreateContainerError", "StartError"):
            if (message := self.oddities.get(reason)) is None:
                continue
            if reason == "StartError":
                ended = {"reason": reason, "exitCode": 128, "message": message}
                self._status(pod, "Failed", terminated=ended)
            else:
                self._status(pod, "Pending", waiting={"reason": reason, "message": message})
            return

        async def output(number: int, data: bytes) -> None:
            await self._pass_on(name, number, data)

        container = await Container.start(
            pod,
            service=("127.0.0.1", self.port),
            is_open=self.network_is_open,
            oddities=self.oddities,
            output=output,
        )
        if self.pods.get(name) is not pod or "deletionTimestamp" in pod["metadata"]:
            await container.aclose()
            return
        self._containers[name] = container
        self._status(pod, "Running", running={"startedAt": now()})
        code = await container.wait()
        if self._containers.get(name) is container:
            del self._containers[name]
            await container.aclose()
            reason, code = pod.pop("_reason", ("Completed" if code == 0 else "Error", code))
            self._status(
                pod,
                "Succeeded" if code == 0 else "Failed",
                terminated={"reason": reason, "exitCode": code, "finishedAt": now()},
            )
            await self._end_streams(name, code)

    def _status(self, pod: Pod, phase: str, **state: Mapping[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        if self.pods.get(pod["metadata"]["name"]) is not pod:
            return
        pod["status"] |= {"phase": phase}
        pod["status"]["containerStatuses"] = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": f"registry.example/sandbox@{DIGEST}",
                "state": state,
                "ready": phase == "Running",
                "resources": container["resources"],
            }
        ]
        self._change("MODIFIED", pod)

    async def _pass_on(self, name: str, number: int, data: bytes) -> None:
        """To all who are attached, as fast as the slowest; to the log, if nobody is."""
        for socket in list(self._sockets.get(name, ())):
            with contextlib.suppress(ConnectionError, RuntimeError):
                await socket.send_bytes(bytes((number,)) + data)

    async def _end_streams(self, name: str, code: int) -> None:
        success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        for socket in list(self._sockets.get(name, ())):
            with contextlib.suppress(ConnectionError, RuntimeError):
                await socket.send_bytes(b"\x03" + json.dumps(success).encode())
                await socket.close()
