"""The Pods of one namespace: made, found, followed, changed and deleted."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import aiohttp

from sandbox import kubernetes_checks as checks
from sandbox import kubernetes_pod as pods
from sandbox.base import DriverEvent, DriverEventKind, ResourceUsage
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
)
from sandbox.events import Broadcast
from sandbox.kubernetes_api import Api, StatusError, answers
from sandbox.kubernetes_pod import KubernetesOptions, Pod
from sandbox.kubernetes_watch import PodWatch
from sandbox.limits import Limits

CLOSED_FOR_S = 30.0  # How long the look at NetworkPolicies counts.
RESIZES = (1, 33)
NEEDED = (
    ("create", "pods"),
    ("get", "pods"),
    ("list", "pods"),
    ("watch", "pods"),
    ("delete", "pods"),
    ("get", "pods/attach"),
    ("create", "pods/attach"),
)
_IMAGE = re.compile(
    r"(?=.{1,512}$)[A-Za-z0-9][A-Za-z0-9._:-]*(/[a-z0-9][a-z0-9._-]*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_PATCH = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"


def is_image_name(image: str) -> bool:
    return _IMAGE.fullmatch(image) is not None


class Cluster:
    """One cluster with one account. Methods raise StatusError and errors of the connection."""

    def __init__(self, options: KubernetesOptions, events: Broadcast) -> None:
        self._options = options
        self._api = Api(options)
        self._events = events
        self._pods = f"/api/v1/namespaces/{quote(options.namespace, safe='')}/pods"
        self._watch = PodWatch(
            self._api, quote(options.namespace, safe=""), pods.ID, self._on_change
        )
        self._closed: tuple[float, bool | None] | None = None
        self._digests: dict[str, str] = {}
        self._version: Mapping[str, Any] = {}

    async def start(self) -> None:
        """Load the credentials, list and begin to follow. Raises DriverUnavailableError."""
        await self._api.start()
        try:
            async with answers("list and watch sandboxes"):
                self._version = await self._api.request("GET", "/version")
                await self._watch.start()
        except (NotFoundError, ResourceExhaustedError) as error:
            raise DriverUnavailableError(error.message) from error

    async def aclose(self) -> None:
        await self._watch.aclose()
        await self._api.aclose()

    @property
    def version(self) -> str:
        return str(self._version.get("gitVersion", "?"))

    @property
    def can_resize(self) -> bool:
        """Whether Pods of this version can change their resources while they run."""
        digits = [re.sub(r"\D.*", "", str(self._version.get(key, ""))) for key in _NUMBERS]
        return all(digits) and tuple(map(int, digits)) >= RESIZES

    @property
    def pods(self) -> Mapping[str, Pod]:
        """The Pods as the watch knows them, by name."""
        return self._watch.pods

    # What the cluster allows.

    async def check(self) -> None:
        """Raise DriverUnavailableError, with what to install, unless sandboxes can be made."""
        refused = [f"{verb} {thing}" for verb, thing in NEEDED if not await self._may(verb, thing)]
        if refused:
            raise DriverUnavailableError(
                f"This account may not {', '.join(refused)} in the namespace"
                f" {self._options.namespace}; install deploy/kubernetes/access.yaml."
            )
        if self._options.runtime_class:
            await self._require_runtime_class(self._options.runtime_class)

    async def _may(self, verb: str, thing: str) -> bool:
        resource, _, subresource = thing.partition("/")
        attributes = {"namespace": self._options.namespace, "verb": verb, "resource": resource}
        if subresource:
            attributes["subresource"] = subresource
        async with answers("ask what it may do"):
            review = await self._api.request(
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                body={
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SelfSubjectAccessReview",
                    "spec": {"resourceAttributes": attributes},
                },
            )
        return bool((review.get("status") or {}).get("allowed"))

    async def _require_runtime_class(self, name: str) -> None:
        async with answers("look for the RuntimeClass"):
            try:
                await self._api.request(
                    "GET", f"/apis/node.k8s.io/v1/runtimeclasses/{quote(name, safe='')}"
                )
            except StatusError as error:
                if error.status == 404:
                    raise DriverUnavailableError(
                        f"The cluster has no RuntimeClass {name}; see"
                        " deploy/kubernetes/runtime-class.yaml."
                    ) from error
                if error.status != 403:  # Not ours to see: the first Pod tells.
                    raise

    async def is_closed(self) -> bool | None:
        """Whether a NetworkPolicy closes the namespace; None where we may not look."""
        now = time.monotonic()
        if self._closed is not None and now - self._closed[0] < CLOSED_FOR_S:
            return self._closed[1]
        namespace = quote(self._options.namespace, safe="")
        found: bool | None
        async with answers("look at NetworkPolicies"):
            try:
                policies = await self._api.request(
                    "GET", f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
                )
                found = checks.denies_all(policies)
            except StatusError as error:
                if error.status != 403:
                    raise
                found = None
        self._closed = (now, found)
        return found

    # Pods.

    def _path(self, name: str) -> str:
        return f"{self._pods}/{quote(name, safe='')}"

    async def create(self, body: Mapping[str, Any]) -> Pod:
        # A server that does not know a field must say so, not leave it out.
        params = {"fieldValidation": "Strict"}
        pod = await self._api.request("POST", self._pods, params=params, body=body)
        self._watch.tell(pod)
        return pod

    async def get(self, name: str) -> Pod | None:
        try:
            pod = await self._api.request("GET", self._path(name))
        except StatusError as error:
            if error.status != 404:
                raise
            self._watch.forget(name)
            return None
        self._watch.tell(pod)
        return pod

    async def find(self, selector: str) -> Sequence[Pod]:
        params = {"labelSelector": selector}
        answer = await self._api.request("GET", self._pods, params=params)
        return list(answer.get("items") or ())

    async def next(self, name: str, seen: Pod | None, timeout_s: float) -> Pod | None:
        """The Pod once it changed; after `timeout_s` as the server says it is."""
        changed = await self._watch.change(name, seen, timeout_s)
        if changed is not None and changed is not seen:
            return changed
        return await self.get(name)

    async def delete(self, name: str, *, uid: str) -> None:
        """Let the Pod be ended, at most a second after its processes are asked to end.

        Not with a grace of 0: the API would forget the Pod while its processes still run.
        """
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 1,
            "preconditions": {"uid": uid},
        }
        try:
            await self._api.request("DELETE", self._path(name), body=body)
        except StatusError as error:
            if error.status not in (404, 409):  # Gone, or another one of that name by now.
                raise

    async def attach(self, name: str) -> aiohttp.ClientWebSocketResponse:
        params = {"container": pods.CONTAINER, "stdin": "true", "stdout": "true", "stderr": "true"}
        return await self._api.attach(f"{self._path(name)}/attach", params)

    async def annotate(self, name: str, limits: Limits) -> None:
        """Write down the limits, for a server that attaches later."""
        notes = {"metadata": {"annotations": {pods.LIMITS: json.dumps(asdict(limits))}}}
        self._watch.tell(
            await self._api.request("PATCH", self._path(name), body=notes, content_type=_PATCH)
        )

    async def resize(self, name: str, pod: Pod, limits: Limits, *, timeout_s: float) -> None:
        """Change memory and CPU, and wait until the node has done it.

        Raises ResourceExhaustedError where the node has no room, having asked for the former
        resources again; PolicyUnsupportedError where the cluster refuses.
        """
        before = pod["spec"]["containers"][0]["resources"]
        try:
            shown = await self._ask_resize(name, pods.resources(limits))
        except StatusError as error:
            if error.status not in (400, 403, 404, 405, 422):
                raise
            raise PolicyUnsupportedError(
                "The cluster cannot change the limits of a sandbox that runs.",
                engine=error.message[:500],
            ) from error
        deadline = time.monotonic() + timeout_s
        while not _is_resized(shown, limits):
            left_s = deadline - time.monotonic()
            refusal = _resize_refusal(shown)
            if refusal is not None or left_s <= 0:
                await self._ask_resize(name, before)
                raise ResourceExhaustedError(
                    "The node has no room for the new limits.",
                    resource=Resource.HOST,
                    engine=refusal or "",
                )
            after = await self.next(name, shown, min(3.0, left_s))
            if after is None or pods.has_ended(after):
                raise ConflictError("The sandbox has ended.", state="stopped")
            shown = after

    async def _ask_resize(self, name: str, resources: Mapping[str, Any]) -> Pod:
        wanted = {
            kind: {key: amounts[key] for key in ("cpu", "memory")}
            for kind, amounts in resources.items()
        }
        body = {"spec": {"containers": [{"name": pods.CONTAINER, "resources": wanted}]}}
        pod = await self._api.request(
            "PATCH", f"{self._path(name)}/resize", body=body, content_type=_STRATEGIC
        )
        self._watch.tell(pod)
        return pod

    async def usage(self, name: str) -> ResourceUsage:
        namespace = quote(self._options.namespace, safe="")
        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/{quote(name, safe='')}"
        try:
            metrics = await self._api.request("GET", path)
        except StatusError as error:
            if error.status in (403, 404, 503):  # No metrics server, or nothing measured yet.
                return ResourceUsage()
            raise
        total = 0
        for container in metrics.get("containers") or ():
            total += quantity((container.get("usage") or {}).get("memory", "0"))
        return ResourceUsage(memory_bytes=total)

    # What happens.

    def digest(self, image: str) -> str | None:
        if "@" in image:
            return image.rpartition("@")[2]
        return self._digests.get(image)

    def _on_change(self, before: Pod | None, after: Pod | None) -> None:
        known = after if after is not None else before
        if known is None:
            return
        sandbox_id = pods.annotations(known).get(pods.ID)
        if sandbox_id is None:
            return
        if after is not None:
            self._learn_digest(after)
        had_ended = before is not None and pods.has_ended(before)
        if had_ended or not (after is None or pods.has_ended(after)):
            return
        at = datetime.now(UTC)
        if after is not None and pods.out_of_memory(after):
            self._events.emit(DriverEvent(DriverEventKind.OOM, sandbox_id, at))
        self._events.emit(DriverEvent(DriverEventKind.DIED, sandbox_id, at))

    def _learn_digest(self, pod: Pod) -> None:
        image = pods.annotations(pod).get(pods.IMAGE)
        found = str(pods.container_status(pod).get("imageID", "")).rpartition("sha256:")
        if image and found[1] and len(found[2]) == 64:
            self._digests[image] = f"sha256:{found[2]}"


_NUMBERS = ("major", "minor")
_SUFFIXES = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1000, "M": 10**6, "G": 10**9}


def quantity(text: str) -> int:
    """Bytes of a quantity as the metrics server writes them; 0 for what it does not write."""
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix) and text.removesuffix(suffix).isdigit():
            return int(text.removesuffix(suffix)) * factor
    return int(text) if text.isdigit() else 0


def _is_resized(pod: Pod, limits: Limits) -> bool:
    """Whether the node has put the resources in force that the Pod asks for now."""
    shown = (pods.container_status(pod).get("resources") or {}).get("limits") or {}
    conditions = {
        condition.get("type")
        for condition in (pod.get("status") or {}).get("conditions") or ()
        if condition.get("status") == "True"
    }
    return (
        not conditions & {"PodResizePending", "PodResizeInProgress"}
        and _cpu(str(shown.get("cpu", ""))) == limits.cpu_millis
        and quantity(str(shown.get("memory", ""))) == limits.memory_bytes
    )


def _cpu(text: str) -> int:
    """Thousandths of a CPU: servers write 2000m as 2."""
    if text.endswith("m") and text[:-1].isdigit():
        return int(text[:-1])
    return int(text) * 1000 if text.isdigit() else -1


def _resize_refusal(pod: Pod) -> str | None:
    """What the node says against a resize, or None while it may come."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodResizePending" and condition.get("status") == "True":
            reason = f"{condition.get('reason', '')}: {condition.get('message', '')}"
            return reason[:500]
    return None
