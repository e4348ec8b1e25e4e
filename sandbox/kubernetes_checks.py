"""What a cluster enforces: what it promises, and what a Pod found when it started."""

from collections.abc import Mapping
from typing import Any

from sandbox.base import Capabilities, Enforcement, SandboxSpec
from sandbox.errors import PolicyUnsupportedError, TemplateError
from sandbox.kubernetes_pod import DRIVER, ID, MANAGED, KubernetesOptions
from sandbox.limits import Limits

_UNLIMITED = 1 << 60  # What version 1 of control groups says for none.
_PAGE = 64 * 1024


def broken(
    found: Mapping[str, str], limits: Limits, options: KubernetesOptions, *, uid: int
) -> dict[str, str]:
    """What does not hold in a Pod, by item of `Capabilities`, each with what was found.

    Raises TemplateError for a Python that the agent cannot use. What the Pod cannot see (gVisor
    shows no control groups) is not held against it.
    """
    version = tuple(int(part) for part in found.get("python", "0").split("."))
    if version < (3, 8):
        raise TemplateError(
            f"The image has Python {found.get('python')}; the agent needs 3.8 or newer."
        )
    faults: dict[str, str] = {}
    if found.get("Uid") != str(uid):
        faults["uid"] = f"it runs as user {found.get('Uid')}"
    loose = [name for name in ("CapPrm", "CapEff", "CapBnd") if int(found.get(name, "1"), 16)]
    if loose:
        faults["isolation"] = f"it has capabilities ({', '.join(loose)})"
    elif found.get("NoNewPrivs", "1") != "1":
        faults["isolation"] = "programs may gain privileges"
    elif found.get("root.readonly") != "1":
        faults["isolation"] = "its root file system can be written"
    elif found.get("token") != "0":
        faults["isolation"] = "it was given a token of the cluster"
    # A runtime with a kernel of its own (gVisor, Kata) filters at another place.
    if not options.runtime_class and found.get("Seccomp") != "2":
        faults["syscalls"] = "no filter of system calls is in force"
    if found.get("network") != "0":
        faults["network"] = "the API server can be reached from inside"
    if _beyond(found.get("cgroup.memory", ""), limits.memory_bytes):
        faults["memory"] = f"its limit is {found['cgroup.memory']}"
    if _unbound_cpu(found, limits.cpu_millis):
        faults["cpu"] = f"its limit is {found['cgroup.cpu']}"
    for place, size in (("/workspace", limits.disk_bytes), ("/tmp", limits.tmp_bytes)):  # noqa: S108
        if int(found.get(f"size.{place}", "0")) > size + _PAGE:
            faults["disk"] = f"{place} has {found[f'size.{place}']} bytes"
    return faults


def _beyond(told: str, limit: int) -> bool:
    if not told:
        return False
    return not told.isdigit() or int(told) >= min(_UNLIMITED, limit + _PAGE)


def _unbound_cpu(found: Mapping[str, str], cpu_millis: int) -> bool:
    told = found.get("cgroup.cpu", "").split()
    if not told:
        return False
    if told[0] in ("max", "-1"):
        # Nodes with the static CPU manager give whole CPUs away instead of counting time.
        return int(found.get("cpus", "0")) * 1000 > cpu_millis
    if len(told) < 2:
        return False  # Version 1 keeps the period in another file.
    # The kernel takes no less than a millisecond of each period.
    return int(told[0]) * 1000 > max(cpu_millis, 10) * int(told[1]) * 1.01 + 1000 * 1000


def parse(report: bytes) -> dict[str, str]:
    """The lines of a Pod's report. Raises TemplateError for what no report is."""
    try:
        lines = [line.partition("=") for line in report.decode("ascii").splitlines()]
    except UnicodeDecodeError as error:
        raise TemplateError("The image's Python is not one that the agent can use.") from error
    return {name: value for name, _, value in lines}


def refuse(faults: Mapping[str, str], spec: SandboxSpec) -> None:
    """Raise PolicyUnsupportedError if a fault touches what must hold or was asked for."""
    asked = spec.policy.required | spec.demanded
    reasons = [f"{item} ({why})" for item, why in faults.items() if item in asked]
    if reasons:
        raise PolicyUnsupportedError(f"The cluster does not enforce {', '.join(reasons)}.")


def denies_all(policies: Mapping[str, Any]) -> bool:
    """Whether of these NetworkPolicies one selects every sandbox, and none lets it out or in."""
    labels = {**MANAGED, ID: "any"}
    chosen = [
        policy.get("spec") or {}
        for policy in policies.get("items") or ()
        if _selects((policy.get("spec") or {}).get("podSelector") or {}, labels)
    ]
    directions = {kind for spec in chosen for kind in spec.get("policyTypes") or ()}
    # Policies add up: a single rule opens what all the others closed.
    opened = any(spec.get("ingress") or spec.get("egress") for spec in chosen)
    return directions >= {"Ingress", "Egress"} and not opened


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector takes Pods with these labels; the ones that ask for values: `In` alone."""
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression.get("key"), expression.get("operator")
        holds = {
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
            "In": labels.get(key) in (expression.get("values") or ()),
        }
        if not holds.get(operator, False):
            return False
    return True


def capabilities(
    options: KubernetesOptions,
    *,
    is_closed: bool | None,
    faults: Mapping[str, str],
    can_resize: bool,
    version: str,
    notes: tuple[str, ...] = (),
) -> Capabilities:
    """What holds for Pods of this cluster.

    `is_closed`: the NetworkPolicy is there, is not, or cannot be looked for (None). `faults` are
    what the last Pod found: whatever was promised, that is how it is.
    """
    full, none = Enforcement.ENFORCED, Enforcement.UNAVAILABLE
    filtered = bool(options.seccomp_profile) or options.accepts_default_seccomp
    items = {
        "isolation": full,
        "network": full if is_closed else none,
        "syscalls": full if filtered else none,
        # Nobody has tried whether another kernel keeps code from it.
        "agent": none if options.runtime_class else full,
        "uid": full,
        "memory": full,
        "cpu": full,
        # By RLIMIT_NPROC of a user of its own, which gVisor accepts and ignores.
        "pids": none if options.runtime_class else full,
        "disk": full,
        "disk_image": none,
        "inodes": none,
        "network_bandwidth": none,
        "pause": none,
    }
    said = [f"Kubernetes {version}", *notes]
    said.append(
        "memory and CPU can change while a sandbox runs"
        if can_resize
        else "limits cannot change while a sandbox runs"
    )
    if options.runtime_class:
        said.append(f"RuntimeClass {options.runtime_class}; the number of processes is not limited")
    if is_closed is None:
        said.append("network: unknown, for this account may not list NetworkPolicies")
    elif not is_closed:
        said.append(
            f"network: no NetworkPolicy closes the namespace {options.namespace};"
            " install deploy/kubernetes/network-policy.yaml"
        )
    if not options.seccomp_profile:
        fate = "which the configuration accepts" if filtered else "which is not ours"
        said.append(f"system calls: the runtime's default profile, {fate}")
    for item, why in faults.items():
        items[item] = none
        said.append(f"{item}: not enforced, {why}")
    return Capabilities(DRIVER, items, tuple(said))
