"""A double of a Kubernetes cluster: the real protocol over real sockets, one namespace of Pods.

Create, get, list by labels, watch with bookmarks and expiry, attach over WebSockets of v4 and v5,
resize, patch and delete with grace; authentication, the roles, quota, security standard and
network policies of deploy/kubernetes, and strict validation by the schema of the API's own client.
Containers are local processes (tests/servers/kubelet.py). What a cluster may do wrong can be set.
"""

import asyncio
import base64
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web

from tests.servers import certificates
from tests.servers import kubernetes_rules as rules
from tests.servers.kubernetes_cluster import DIGEST, Cluster, Pod, now
from tests.servers.kubernetes_rules import Refusal

__all__ = ["DIGEST", "MANIFESTS", "NAMESPACE", "Kubernetes"]

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
NAMESPACE = "noosphere-sandboxes"


class Kubernetes(Cluster):
    """`async with Kubernetes(directory) as cluster:`, then give `cluster.kubeconfig` to a client.

    `log` has a line for every request; `oddities` are those of the kubelet.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.kubeconfig = directory / "kubeconfig"
        self.token = "first-token"
        self.access = rules.Access()
        self.namespaces: set[str] = set()
        self.quota: dict[str, str] = {}
        self.policies: list[dict[str, Any]] = []
        self.runtime_classes: set[str] = set()
        self.version = {"major": "1", "minor": "34", "gitVersion": "v1.34.1"}
        self.room_bytes = 8 << 30
        self.protocols: tuple[str, ...] = ("v5.channel.k8s.io", "v4.channel.k8s.io")
        self.metrics: dict[str, str] | None = None
        self.expires_by_status = False
        self.busy = 0
        self.created = asyncio.Event()
        self.holds_creation: asyncio.Event | None = None
        self.log: list[str] = []
        self.sent = 0  # Bytes to standard inputs.
        self.awaited = 1 << 60
        self.has_sent = asyncio.Event()  # As many as are awaited.
        self.watches: list[str] = []  # The versions that clients went on from.
        self.watching = asyncio.Event()
        self.attached: list[str] = []  # The protocols spoken.
        self._runner: web.AppRunner | None = None
        self._authority = b""

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
        await self.aclose()
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
                return web.json_response(rules.DISCOVERY[request.path.rstrip("/")])
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

    # Watches.

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
