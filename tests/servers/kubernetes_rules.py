"""What the double's API server refuses, in the words of a real one: who, what and how much."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes_asyncio import client

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_SCALARS: Mapping[str, type | tuple[type, ...]] = {
    "str": (str, int),  # Quantities may be numbers.
    "int": int,
    "bool": bool,
}
_UNITS = {"": 1, "m": 0.001, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1e3, "M": 1e6}

# Enough for kubectl to find Pods.
DISCOVERY = {
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


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of the double.
    """An answer that is a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


def quantity(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if found is None or found[2] not in _UNITS:
        raise Refusal(400, "BadRequest", f"quantities must match the regular expression: {text}")
    return float(found[1]) * _UNITS[found[2]]


def check_fields(kind: str, value: Any, path: str = "") -> None:
    """Refuse fields and types that the API's own schema, as the client has it, does not know."""
    if kind in _SCALARS:
        if not isinstance(value, _SCALARS[kind]):
            raise Refusal(400, "BadRequest", f"{path}: cannot unmarshal into {kind}")
        return
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise Refusal(400, "BadRequest", f"{path}: cannot unmarshal into a list")
        for index, entry in enumerate(value):
            check_fields(kind[5:-1], entry, f"{path}[{index}]")
        return
    if kind.startswith("dict("):
        for key, entry in value.items():
            check_fields(kind[5:-1].split(", ")[1], entry, f"{path}.{key}")
        return
    model = getattr(client, kind, None)
    if model is None:  # datetime, object
        return
    names = {json: name for name, json in model.attribute_map.items()}
    for key, entry in value.items():
        if key not in names:
            raise Refusal(
                400,
                "BadRequest",
                f'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown '
                f'field "{path.removeprefix(".")}.{key}"',
            )
        if entry is not None:
            check_fields(model.openapi_types[names[key]], entry, f"{path}.{key}")
    try:
        # The constructor holds what the schema says of single values.
        model(**{names[key]: entry for key, entry in value.items()})
    except ValueError as error:
        raise Refusal(422, "Invalid", f"{path}: {error}") from error


def check_pod(pod: Mapping[str, Any]) -> None:
    """Refuse a Pod as the server's validation does, in the parts that sandboxes use."""
    faults = list(_faults(pod))
    if faults:
        name = pod["metadata"].get("name", "")
        raise Refusal(422, "Invalid", f'Pod "{name}" is invalid: {"; ".join(faults)}')


def _faults(pod: Mapping[str, Any]) -> Iterable[str]:
    metadata, spec = pod["metadata"], pod["spec"]
    if not _NAME.fullmatch(metadata.get("name", "")) or len(metadata["name"]) > 253:
        yield "metadata.name: a lowercase RFC 1123 subdomain must consist of lower case …"
    for key, value in (metadata.get("labels") or {}).items():
        name = key.rpartition("/")[2]
        if len(value) > 63 or not _LABEL.fullmatch(value):
            yield f"metadata.labels: Invalid value: {value!r}"
        if not name or len(name) > 63 or not _LABEL.fullmatch(name):
            yield f"metadata.labels: Invalid value: {key!r}"
    if sum(map(len, (metadata.get("annotations") or {}).values())) > 256 * 1024:
        yield "metadata.annotations: Too long: may not be more than 262144 bytes"
    if spec.get("dnsPolicy") == "None" and not (spec.get("dnsConfig") or {}).get("nameservers"):
        yield "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver"
    deadline = spec.get("activeDeadlineSeconds", 1)
    if not 1 <= deadline <= 2**31 - 1:
        yield "spec.activeDeadlineSeconds: Invalid value"
    context = spec.get("securityContext") or {}
    for field_name in ("runAsUser", "runAsGroup", "fsGroup"):
        if not 0 <= context.get(field_name, 0) <= 2**31 - 1:
            yield f"spec.securityContext.{field_name}: must be between 0 and 2147483647, inclusive"
    profile = context.get("seccompProfile") or {}
    if (profile.get("type") == "Localhost") != bool(profile.get("localhostProfile")):
        yield "spec.securityContext.seccompProfile.localhostProfile: must be set with Localhost"
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    for container in spec["containers"]:
        resources = container.get("resources") or {}
        for key, asked in (resources.get("requests") or {}).items():
            if quantity(asked) > quantity((resources.get("limits") or {}).get(key, asked)):
                yield f"resources.requests: {key} must be less than or equal to its limit"
        for mount in container.get("volumeMounts") or ():
            if mount["name"] not in volumes:
                yield f"volumeMounts: Not found: {mount['name']}"


def check_security(pod: Mapping[str, Any]) -> None:
    """Refuse what the standard `restricted` of Pod Security Admission forbids."""
    spec = pod["spec"]
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    context = spec.get("securityContext") or {}
    if (context.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("seccompProfile")
    if context.get("runAsUser") == 0:
        found.append("runAsUser=0")
    if any("hostPath" in volume for volume in spec.get("volumes") or ()):
        found.append("restricted volume types")
    for container in spec["containers"]:
        own = container.get("securityContext") or {}
        if own.get("privileged"):
            found.append("privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append("allowPrivilegeEscalation != false")
        if (own.get("capabilities") or {}).get("drop") != ["ALL"]:
            found.append("unrestricted capabilities")
        if not (own.get("runAsNonRoot") or context.get("runAsNonRoot")):
            found.append("runAsNonRoot != true")
    if found:
        raise Refusal(
            403,
            "Forbidden",
            f'pods "{pod["metadata"]["name"]}" is forbidden: violates PodSecurity'
            f' "restricted:latest": {", ".join(found)}',
        )


def check_quota(
    hard: Mapping[str, str], pod: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> None:
    """Refuse a Pod that takes more than a ResourceQuota leaves."""
    asked = _uses(pod)
    used: dict[str, float] = {}
    for other in others:
        for key, amount in _uses(other).items():
            used[key] = used.get(key, 0) + amount
    for key, most in hard.items():
        if key in asked and used.get(key, 0) + asked[key] > quantity(most):
            raise Refusal(
                403,
                "Forbidden",
                f'pods "{pod["metadata"]["name"]}" is forbidden: exceeded quota: sandboxes,'
                f" requested: {key}={asked[key]:g}, used: {key}={used.get(key, 0):g},"
                f" limited: {key}={most}",
            )


def _uses(pod: Mapping[str, Any]) -> dict[str, float]:
    total: dict[str, float] = {"pods": 1}
    for container in pod["spec"]["containers"]:
        for key, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            total[f"limits.{key}"] = total.get(f"limits.{key}", 0) + quantity(amount)
    return total


@dataclass
class Access:
    """Who may do what: rules of Roles and ClusterRoles, all bound to the one account."""

    rules: list[Mapping[str, Any]] = field(default_factory=list)
    denied: set[tuple[str, str]] = field(default_factory=set)

    def allows(self, verb: str, group: str, resource: str) -> bool:
        if (verb, resource) in self.denied:
            return False
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and (verb in rule["verbs"] or "*" in rule["verbs"])
            for rule in self.rules
        )


def selected(labels: Mapping[str, str], selector: str) -> bool:
    """Whether labels meet a selector of `key`, `key=value` and `!key`, with commas between."""
    for part in filter(None, selector.split(",")):
        key, equals, value = part.partition("=")
        if equals and labels.get(key) != value:
            return False
        if not equals and (key.removeprefix("!") in labels) == key.startswith("!"):
            return False
    return True
