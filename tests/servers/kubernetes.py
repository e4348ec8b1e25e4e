"""A double of a Kubernetes cluster: the real protocol over real sockets, one namespace of Pods.

Create, get, list by labels, watch with bookmarks and expiry, attach over WebSockets of v4 and v5,
resize, patch and delete with grace; authentication, the roles, quota, security standard and
network policies of deploy/kubernetes, and strict validation by the schema of the API's own client.
Containers are local processes (tests/servers/kubelet.py). What a cluster may do wrong can be set.
"""

import asyncio
import base64
import contextlib
import copy
import json
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web

from tests.servers import certificates
from tests.servers import kubernetes_rules as rules
from tests.servers.kubelet import Container
from tests.servers.kubernetes_rules import Refusal

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
NAMESPACE = "noosphere-sandboxes"
DIGEST = "sha256:" + "0123456789abcdef" * 4
_GRACE_S = 0.02  # A second of a real cluster.

# Enough for kubectl to find Pods.
_DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": ["create", "delete", "get", "list", "patch", "watch"],
            }
        ],
    },
}

Pod = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Kubernetes:
    """`async with Kubernetes(directory) as cluster:`, then give `cluster.kubeconfig` to a client.

    `log` has a line for every request; `oddities` are those of the kubelet.
    """

    def __init__(self, directory: Path) -> None:
        self.kubeconfig = directory / "kubeconfig"
        self.token = "first-token"
        self.access = rules.Access()
        self.namespaces: set[str] = set()
        self.quota: dict[str, str] = {}
        self.policies: list[dict[str, Any]] = []
        self.runtime_classes: set[str] = set()
        self.version = {"major": "1", "minor": "34", "gitVersion": "v1.34.1"}
        self.images = {"sandbox:1"}
        self.oddities: dict[str, Any] = {}
        self.network_is_open = False
        self.is_full = False
        self.node_answers = True
        self.room_bytes = 8 << 30
        self.protocols: tuple[str, ...] = ("v5.channel.k8s.io", "v4.channel.k8s.io")
        self.metrics: dict[str, str] | None = None
        self.expires_by_status = False
        self.busy = 0
        self.created = asyncio.Event()
        self.holds_creation: asyncio.Event | None = None
        self.holds_start: asyncio.Event | None = None
        self.log: list[str] = []
        self.sent = 0  # Bytes to standard inputs.
        self.awaited = 1 << 60
        self.has_sent = asyncio.Event()  # As many as are awaited.
        self.watches: list[str] = []  # The versions that clients went on from.
        self.watching = asyncio.Event()
        self.attached: list[str] = []  # The protocols spoken.
        self.pods: dict[str, Pod] = {}
        self._containers: dict[str, Container] = {}
        self._sockets: dict[str, list[web.WebSocketResponse]] = {}
        self._watchers: dict[asyncio.Queue[Any], web.Request] = {}
        self._history: list[tuple[int, str, Pod]] = []
        self._revision = 1000
        self._oldest = 1000
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._authority = b""
        self.port = 0

    async def __aenter__(self) -> "Kubernetes":
        application = web.Application(client_max_size=4 << 20)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        context, self._authority = certificates.serving(self.kubeconfig.parent)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.write_kubeconfig()
        for name in ("namespace", "access", "network-policy", "quota"):
            self.apply(MANIFESTS / f"{name}.yaml")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for container in self._containers.values():
            await container.aclose()
        self.cut_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    def write_kubeconfig(self) -> None:
        """Write the file that clients read, with the token that is good now."""
        authority = base64.b64encode(self._authority).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "tests",
                    "contexts": [{"name": "tests", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": self.token}}],
                }
            )
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def apply(self, manifest: Path) -> None:
        """Take in what a file of deploy/kubernetes says."""
        for thing in yaml.safe_load_all(manifest.read_text()):
            kind, name = thing["kind"], thing["metadata"]["name"]
            if kind == "Namespace":
                self.namespaces.add(name)
            elif kind in ("Role", "ClusterRole"):
                self.access.rules.extend(thing["rules"])
            elif kind == "NetworkPolicy":
                self.policies.append(thing)
            elif kind == "ResourceQuota":
                self.quota = thing["spec"]["hard"]
            elif kind == "RuntimeClass":
                self.runtime_classes.add(name)

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

    # Requests.

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.log.append(f"{request.method} {request.path}")
        try:
            self._authenticate(request)
            return await self._route(request)
        except Refusal as refusal:
            headers = {"Retry-After": "0"} if refusal.code == 429 else {}
            return web.json_response(refusal.status(), status=refusal.code, headers=headers)

    def _authenticate(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        if self.busy:
            self.busy -= 1
            raise Refusal(429, "TooManyRequests", "too many requests, please try again later")

    async def _route(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        match parts:
            case ["version"]:
                return web.json_response(self.version)
            case ["api"] | ["apis"] | ["api", "v1"]:
                return web.json_response(_DISCOVERY[request.path.rstrip("/")])
            case ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]:
                return await self._review(request)
            case ["apis", "node.k8s.io", "v1", "runtimeclasses", name]:
                self._authorize("get", "node.k8s.io", "runtimeclasses")
                if name not in self.runtime_classes:
                    raise Refusal(404, "NotFound", f'runtimeclasses "{name}" not found')
                return web.json_response({"kind": "RuntimeClass", "metadata": {"name": name}})
            case ["apis", "networking.k8s.io", "v1", "namespaces", _, "networkpolicies"]:
                self._authorize("list", "networking.k8s.io", "networkpolicies")
                return web.json_response({"kind": "NetworkPolicyList", "items": self.policies})
            case ["apis", "metrics.k8s.io", "v1beta1", "namespaces", _, "pods", name]:
                return self._measure(name)
            case ["api", "v1", "namespaces", namespace, "pods", *rest]:
                return await self._route_pods(request, namespace, rest)
        raise Refusal(404, "NotFound", "the server could not find the requested resource")

    async def _route_pods(
        self, request: web.Request, namespace: str, rest: Sequence[str]
    ) -> web.StreamResponse:
        match request.method, rest:
            case "POST", []:
                return await self._create(request, namespace)
            case "GET", []:
                if request.query.get("watch") == "true":
                    return await self._watch(request)
                return self._list(request)
            case "GET", [name]:
                self._authorize("get", "", "pods")
                return web.json_response(self._shown(name))
            case "DELETE", [name]:
                return await self._delete(request, name)
            case "PATCH", [name]:
                self._authorize("patch", "", "pods")
                return await self._patch(request, name)
            case "PATCH", [name, "resize"]:
                self._authorize("patch", "", "pods/resize")
                return await self._resize(request, name)
            case "GET", [name, "attach"]:
                self._authorize("get", "", "pods/attach")
                self._authorize("create", "", "pods/attach")
                return await self._attach(request, name)
        raise Refusal(405, "MethodNotAllowed", "the server does not allow this method")

    def _authorize(self, verb: str, group: str, resource: str) -> None:
        if not self.access.allows(verb, group, resource):
            raise Refusal(
                403,
                "Forbidden",
                f'{resource} is forbidden: User "system:serviceaccount:noosphere:noosphere" cannot'
                f' {verb} resource "{resource}" in API group "{group}"',
            )

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        allowed = self.access.allows(asked["verb"], asked.get("group", ""), resource)
        return web.json_response({**body, "status": {"allowed": allowed}}, status=201)

    def _measure(self, name: str) -> web.Response:
        self._authorize("get", "metrics.k8s.io", "pods")
        if self.metrics is None or name not in self.pods:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        return web.json_response({"containers": [{"name": "sandbox", "usage": self.metrics}]})

    # Pods.

    def _found(self, name: str) -> Pod:
        if name not in self.pods:
            raise Refusal(404, "NotFound", f'pods "{name}" not found')
        return self.pods[name]

    def _shown(self, name: str) -> Pod:
        return {key: value for key, value in self._found(name).items() if key != "_reason"}

    async def _create(self, request: web.Request, namespace: str) -> web.Response:
        self._authorize("create", "", "pods")
        pod: Pod = await request.json()
        if request.query.get("fieldValidation") == "Strict":
            rules.check_fields("V1Pod", pod)
        if namespace not in self.namespaces:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        rules.check_pod(pod)
        runtime_class = pod["spec"].get("runtimeClassName")
        if runtime_class and runtime_class not in self.runtime_classes:
            raise Refusal(
                403, "Forbidden", f'pod rejected: RuntimeClass "{runtime_class}" not found'
            )
        rules.check_security(pod)
        name = pod["metadata"]["name"]
        if name in self.pods:
            raise Refusal(409, "AlreadyExists", f'pods "{name}" already exists')
        living = [p for p in self.pods.values() if p["status"]["phase"] in ("Pending", "Running")]
        rules.check_quota(self.quota, pod, living)
        pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        pod["status"] = {"phase": "Pending"}
        self._change("ADDED", pod)
        self._spawn(self._run(pod))
        self.created.set()
        if self.holds_creation is not None:
            await self.holds_creation.wait()
        return web.json_response(self._shown(name), status=201)

    def _list(self, request: web.Request) -> web.Response:
        self._authorize("list", "", "pods")
        selector = request.query.get("labelSelector", "")
        found = [
            self._shown(name)
            for name, pod in sorted(self.pods.items())
            if rules.selected(pod["metadata"].get("labels") or {}, selector)
        ]
        # Pages are short, so that clients must ask for the next one.
        start = int(request.query.get("continue", "0"))
        size = min(int(request.query.get("limit", "1000000")), 2)
        if "limit" not in request.query:
            size = len(found)
        metadata = {"resourceVersion": str(self._revision)}
        if start + size < len(found):
            metadata["continue"] = str(start + size)
        return web.json_response(
            {"kind": "PodList", "metadata": metadata, "items": found[start : start + size]}
        )

    async def _delete(self, request: web.Request, name: str) -> web.Response:
        self._authorize("delete", "", "pods")
        options = await request.json() if request.can_read_body else {}
        pod = self._found(name)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != pod["metadata"]["uid"]:
            raise Refusal(409, "Conflict", "the UID in the precondition does not match")
        if "deletionTimestamp" not in pod["metadata"]:
            grace_s = options.get(
                "gracePeriodSeconds", pod["spec"]["terminationGracePeriodSeconds"]
            )
            pod["metadata"] |= {
                "deletionTimestamp": now(),
                "deletionGracePeriodSeconds": grace_s,
            }
            self._change("MODIFIED", pod)
            if self.node_answers:
                self._spawn(self._terminate(name, pod, grace_s))
        return web.json_response(self._shown(name))

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

    async def _patch(self, request: web.Request, name: str) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            raise Refusal(415, "UnsupportedMediaType", "the body of the request was unknown")
        pod, body = self._found(name), json.loads(await request.text())
        if set(body) != {"metadata"} or set(body["metadata"]) != {"annotations"}:
            raise Refusal(422, "Invalid", "pod updates may not change these fields")
        pod["metadata"]["annotations"] |= body["metadata"]["annotations"]
        self._change("MODIFIED", pod)
        return web.json_response(self._shown(name))

    async def _resize(self, request: web.Request, name: str) -> web.Response:
        if request.content_type != "application/strategic-merge-patch+json":
            raise Refusal(415, "UnsupportedMediaType", "the body of the request was unknown")
        if tuple(int(self.version[key]) for key in ("major", "minor")) < (1, 33):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        pod, body = self._found(name), json.loads(await request.text())
        (wanted,) = body["spec"]["containers"]
        (container,) = pod["spec"]["containers"]
        for kind in ("requests", "limits"):
            container["resources"][kind] |= wanted["resources"][kind]
        fits = rules.quantity(container["resources"]["requests"]["memory"]) <= self.room_bytes
        pending = {
            "type": "PodResizePending",
            "status": "True",
            "reason": "Infeasible",
            "message": "Node didn't have enough capacity: memory",
        }
        pod["status"]["conditions"] = [] if fits else [pending]
        self._change("MODIFIED", pod)
        if fits:
            self._spawn(self._put_in_force(pod))
        return web.json_response(self._shown(name))

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

    # Watches.

    def _change(self, kind: str, pod: Pod) -> None:
        self._revision += 1
        pod["metadata"]["resourceVersion"] = str(self._revision)
        if kind != "DELETED":
            self.pods[pod["metadata"]["name"]] = pod
        shown = copy.deepcopy({key: value for key, value in pod.items() if key != "_reason"})
        self._history.append((self._revision, kind, shown))
        for queue in self._watchers:
            queue.put_nowait({"type": kind, "object": shown})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self._authorize("watch", "", "pods")
        version = request.query["resourceVersion"]
        self.watches.append(version)
        if int(version) < self._oldest and self.expires_by_status:
            raise Refusal(410, "Expired", f"too old resource version: {version}")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for revision, kind, pod in self._history:
            if revision > int(version):
                queue.put_nowait({"type": kind, "object": pod})
        if int(version) < self._oldest:
            gone = Refusal(410, "Expired", f"too old resource version: {version}").status()
            queue.put_nowait({"type": "ERROR", "object": gone})
            queue.put_nowait(None)
        self._watchers[queue] = request
        self.watching.set()
        selector = request.query.get("labelSelector", "")
        try:
            while (event := await queue.get()) is not None:
                labels = event["object"].get("metadata", {}).get("labels") or {}
                if event["type"] in ("BOOKMARK", "ERROR") or rules.selected(labels, selector):
                    line = json.dumps(event).encode() + b"\n"
                    # In two parts, as the network may deliver it.
                    await response.write(line[:100])
                    await response.write(line[100:])
        except ConnectionError:
            return response
        finally:
            del self._watchers[queue]
        await response.write_eof()
        return response

    # Attach.

    async def _attach(self, request: web.Request, name: str) -> web.StreamResponse:
        pod = self._found(name)
        container = self._containers.get(name)
        if container is None:
            raise Refusal(400, "BadRequest", f"container sandbox of pod {name} is not running")
        wanted = {key for key in ("stdin", "stdout", "stderr") if request.query.get(key) == "true"}
        if not wanted or request.query.get("container") != "sandbox":
            raise Refusal(400, "BadRequest", "you must specify at least 1 of stdin, stdout, stderr")
        socket = web.WebSocketResponse(protocols=self.protocols, max_msg_size=32 << 20)
        await socket.prepare(request)
        self.attached.append(socket.ws_protocol or "")
        for number in (1, 2, 3):  # Real servers begin with an empty message on each.
            await socket.send_bytes(bytes((number,)))
        self._sockets.setdefault(name, []).append(socket)
        try:
            async for message in socket:
                if message.type is not WSMsgType.BINARY or not message.data:
                    continue
                if message.data[0] == 0 and pod["spec"]["containers"][0].get("stdin"):
                    self.sent += len(message.data) - 1
                    if self.sent >= self.awaited:
                        self.has_sent.set()
                    await container.write(message.data[1:])
        finally:
            self._sockets[name].remove(socket)
        return socket

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
