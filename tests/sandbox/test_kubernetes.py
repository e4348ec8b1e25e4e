"""The Kubernetes driver against a double that speaks the real protocol (tests/servers)."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox import kubernetes as driver_module
from sandbox import kubernetes_boot as boot
from sandbox import kubernetes_channel
from sandbox import kubernetes_pod as pods
from sandbox.base import DriverEventKind, Enforcement, Limits, Policy, SandboxState
from sandbox.client import Reason, SandboxClient
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
    TimeoutError_,
)
from sandbox.kubernetes import KubernetesDriver
from sandbox.kubernetes_pod import KubernetesOptions
from tests.sandbox.conftest import MIB, Box, Boxes
from tests.servers.kubernetes import DIGEST, MANIFESTS, NAMESPACE, Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.
IMAGE = "sandbox:1"
UNTIL_ENDED = "while cat /proc/[0-9]*/comm 2>/dev/null | grep -qx tail; do :; done; echo ended"


def options(cluster: Kubernetes, **changes: Any) -> KubernetesOptions:
    values = {"kubeconfig": str(cluster.kubeconfig), "start_timeout_s": 30.0, **changes}
    return KubernetesOptions(**values)


@asynccontextmanager
async def driven(cluster: Kubernetes, **changes: Any) -> AsyncIterator[Boxes]:
    boxes = Boxes(KubernetesDriver(options(cluster, **changes)), IMAGE)
    try:
        await boxes.driver.start()
        yield boxes
    finally:
        await boxes.aclose()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with Kubernetes(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def podded(cluster: Kubernetes) -> AsyncIterator[Boxes]:
    async with driven(cluster) as boxes:
        yield boxes


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(20):
        await event.wait()


# What every driver does.


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


# The Pod.


async def test_the_pod_is_hardened(cluster: Kubernetes, podded: Boxes) -> None:
    limits = Limits(cpu_millis=1500, memory_bytes=256 * MIB, disk_bytes=32 * MIB, pids=40)
    box = await podded.make(limits=limits, policy=Policy(env={"SECRET": "hidden word"}))
    pod = cluster.pods[pods.pod_name(box.id)]
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert (spec["restartPolicy"], spec["automountServiceAccountToken"]) == ("Never", False)
    assert not any((spec["hostNetwork"], spec["hostPID"], spec["hostIPC"]))
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["seccompProfile"] == {
        "type": "Localhost",
        "localhostProfile": "noosphere/sandbox.json",
    }
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["memory"] == str(256 * MIB)
    assert container["resources"]["limits"]["cpu"] == "1500m"
    sizes = {
        volume["name"]: (volume["emptyDir"]["medium"], int(volume["emptyDir"]["sizeLimit"]))
        for volume in spec["volumes"]
    }
    assert sizes == {
        "workspace": ("Memory", 32 * MIB),
        "tmp": ("Memory", 32 * MIB),
        "shm": ("Memory", MIB),
    }
    assert 0 < spec["activeDeadlineSeconds"] <= 60 * 86400
    assert (container["stdin"], container["stdinOnce"], container["tty"]) == (True, False, False)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "hidden word" not in str(pod)
    # And as it is seen from inside.
    _, out, _ = await box.run(
        "df -B1 --output=size /workspace /tmp | tail -n +2; cat /proc/self/status; env; id -u"
    )
    assert out.split()[:2] == [str(32 * MIB).encode()] * 2
    assert b"CapEff:\t0000000000000000" in out
    assert b"NoNewPrivs:\t1" in out
    assert b"KUBERNETES" not in out
    assert out.split()[-1] == str(spec["securityContext"]["runAsUser"]).encode()


async def test_what_pods_cannot_ask_for_is_limited_all_the_same(podded: Boxes) -> None:
    box = await podded.make()
    program = (
        "import resource as r\n"
        "for name in ('NOFILE', 'CORE', 'MEMLOCK', 'MSGQUEUE', 'SIGPENDING', 'NPROC'):\n"
        "    print(*r.getrlimit(getattr(r, 'RLIMIT_' + name)))"
    )
    _, out, _ = await box.python(program)
    most = (1024, 0, 65536, 65536, 1024, 64)
    found = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert all(soft == hard <= limit for (soft, hard), limit in zip(found, most, strict=True))
    # RLIM_INFINITY is told as -1.
    assert min(min(pair) for pair in found) >= 0


async def test_options_reach_the_pod(cluster: Kubernetes) -> None:
    cluster.apply(MANIFESTS / "runtime-class.yaml")
    changes = {
        "runtime_class": "gvisor",
        "image_pull_secret": "registry",
        "service_account": "guests",
        "user_namespaces": True,
        "node_selector": {"pool": "guests"},
    }
    async with driven(cluster, **changes) as boxes:
        await boxes.driver.check()
        box = await boxes.make(image_digest=DIGEST)
        spec = cluster.pods[pods.pod_name(box.id)]["spec"]
        assert spec["runtimeClassName"] == "gvisor"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["serviceAccountName"] == "guests"
        assert spec["hostUsers"] is False
        assert spec["securityContext"]["runAsUser"] < 65536  # All that such a namespace has.
        assert spec["nodeSelector"]["pool"] == "guests"
        assert spec["containers"][0]["image"] == f"{IMAGE}@{DIGEST}"
        assert box.handle.image == IMAGE


async def test_every_sandbox_has_a_user_of_its_own(cluster: Kubernetes, podded: Boxes) -> None:
    await asyncio.gather(*(podded.make() for _ in range(4)))
    users = {pod["spec"]["securityContext"]["runAsUser"] for pod in cluster.pods.values()}
    assert len(users) == 4
    assert min(users) >= pods.UID_BASE
    assert max(users) < 2**31


async def test_the_digest_of_an_image_is_known_once_it_ran(podded: Boxes) -> None:
    assert await podded.driver.image_digest(IMAGE) is None
    await podded.make()
    assert await podded.driver.image_digest(IMAGE) == DIGEST
    assert await podded.driver.image_digest(f"other@{DIGEST}") == DIGEST


# What the cluster does not hold is found before any user code runs.


@pytest.mark.parametrize(
    ("wrong", "demanded", "named"),
    [
        ({"uid": 4711}, frozenset({"uid"}), "user 4711"),
        ({"size": 512 * MIB}, frozenset({"disk"}), "/tmp has"),
        ({"seccomp": False}, frozenset[str](), "no filter of system calls"),
    ],
)
async def test_a_pod_that_is_not_what_was_asked_for_is_refused(
    cluster: Kubernetes, podded: Boxes, wrong: dict[str, Any], demanded: frozenset[str], named: str
) -> None:
    cluster.oddities = wrong
    with pytest.raises(PolicyUnsupportedError, match=named):
        await podded.make(demanded=demanded)
    assert cluster.pods == {}
    items = (await podded.driver.capabilities()).items
    assert Enforcement.UNAVAILABLE in (items["uid"], items["disk"], items["syscalls"])


async def test_a_network_that_heeds_no_policy_is_refused(
    cluster: Kubernetes, podded: Boxes
) -> None:
    cluster.network_is_open = True
    with pytest.raises(PolicyUnsupportedError, match="API server can be reached"):
        await podded.make()
    assert cluster.pods == {}
    assert (await podded.driver.capabilities()).items["network"] is Enforcement.UNAVAILABLE


async def test_without_a_network_policy_nothing_is_made(cluster: Kubernetes) -> None:
    cluster.policies.clear()
    async with driven(cluster) as boxes:
        with pytest.raises(PolicyUnsupportedError, match="network"):
            await boxes.make()
        found = await boxes.driver.capabilities()
        assert found.items["network"] is Enforcement.UNAVAILABLE
        assert any("network-policy.yaml" in note for note in found.notes)
    assert "POST" not in "".join(cluster.log)


async def test_a_network_policy_that_cannot_be_seen_counts_as_none(cluster: Kubernetes) -> None:
    cluster.access.denied.add(("list", "networkpolicies"))
    async with driven(cluster) as boxes:
        found = await boxes.driver.capabilities()
        assert found.items["network"] is Enforcement.UNAVAILABLE
        assert any("unknown" in note for note in found.notes)
        with pytest.raises(PolicyUnsupportedError, match="network"):
            await boxes.make()


async def test_the_default_profile_is_refused_unless_accepted(cluster: Kubernetes) -> None:
    async with driven(cluster, seccomp_profile="") as boxes:
        with pytest.raises(PolicyUnsupportedError, match="syscalls"):
            await boxes.make()
    async with driven(cluster, seccomp_profile="", accepts_default_seccomp=True) as boxes:
        box = await boxes.make()
        context = cluster.pods[pods.pod_name(box.id)]["spec"]["securityContext"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


async def test_what_is_asked_for_and_cannot_be_held_is_refused(podded: Boxes) -> None:
    for changes in (
        {"demanded": frozenset({"inodes"})},
        {"disk": "image"},
        {"limits": Limits(network_bytes_per_s=1000)},
    ):
        with pytest.raises(PolicyUnsupportedError):
            await podded.make(**changes)
    assert await podded.driver.list({}) == []


# Errors of the cluster.


@pytest.mark.parametrize(
    ("oddity", "expected", "named"),
    [
        ({"StartError": 'exec: "python3": executable file not found'}, TemplateError, "python3"),
        (
            {"CreateContainerError": "cannot load seccomp profile /var/lib/kubelet/seccomp/x"},
            DriverUnavailableError,
            r"seccomp\.yaml",
        ),
        ({"CreateContainerError": "unable to apply cgroup"}, TemplateError, "cannot start"),
    ],
)
async def test_containers_that_cannot_start_are_refused(
    cluster: Kubernetes,
    podded: Boxes,
    oddity: dict[str, str],
    expected: type[SandboxError],
    named: str,
) -> None:
    cluster.oddities = oddity
    with pytest.raises(expected, match=named) as refused:
        await podded.make()
    assert "/var/lib" not in refused.value.message
    assert cluster.pods == {}


async def test_an_image_that_is_not_there_is_refused(cluster: Kubernetes, podded: Boxes) -> None:
    with pytest.raises(TemplateError, match="pull"):
        await podded.make(image="no-such-image")
    assert cluster.pods == {}
    with pytest.raises(TemplateError, match="no name"):
        await podded.make(image="no such image")


async def test_a_full_cluster_says_so(cluster: Kubernetes) -> None:
    cluster.is_full = True
    async with driven(cluster, start_timeout_s=0.3) as boxes:
        with pytest.raises(ResourceExhaustedError, match="Insufficient memory") as refused:
            await boxes.make()
        assert refused.value.resource is Resource.HOST
    assert cluster.pods == {}


async def test_a_quota_says_so(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.quota = {"pods": "1"}
    box = await podded.make()
    with pytest.raises(ResourceExhaustedError, match="exceeded quota") as refused:
        await podded.make()
    assert refused.value.resource is Resource.QUOTA
    assert list(cluster.pods) == [pods.pod_name(box.id)]


async def test_what_the_account_may_not_do_is_named(cluster: Kubernetes) -> None:
    async with driven(cluster) as boxes:
        await boxes.driver.check()  # With the roles of deploy/kubernetes it may.
        cluster.access.denied |= {("create", "pods/attach"), ("delete", "pods")}
        with pytest.raises(DriverUnavailableError, match="delete pods, create pods/attach"):
            await boxes.driver.check()
    cluster.access.denied = {("create", "pods")}
    async with driven(cluster) as boxes:
        with pytest.raises(DriverUnavailableError, match="may not create sandboxes"):
            await boxes.make()
    cluster.access.denied = {("watch", "pods"), ("list", "pods")}
    with pytest.raises(DriverUnavailableError, match=r"access\.yaml"):
        await KubernetesDriver(options(cluster)).start()


async def test_a_namespace_or_runtime_class_that_is_not_there_is_named(
    cluster: Kubernetes,
) -> None:
    async with driven(cluster, runtime_class="gvisor") as boxes:
        with pytest.raises(DriverUnavailableError, match="no RuntimeClass gvisor"):
            await boxes.driver.check()
        with pytest.raises(DriverUnavailableError, match="RuntimeClass"):
            await boxes.make()
    cluster.namespaces.clear()
    async with driven(cluster) as boxes:
        with pytest.raises(DriverUnavailableError, match=r"namespace\.yaml"):
            await boxes.make()


async def test_credentials_that_expire_are_loaded_anew(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.token = "second-token"
    cluster.write_kubeconfig()
    box = await podded.make()
    cluster.token = "third-token"
    cluster.write_kubeconfig()
    await podded.client(box.id)  # By a request for an upgrade this time.
    cluster.token = "fourth-token"
    with pytest.raises(DriverUnavailableError, match="credentials"):
        await podded.driver.list({})
    cluster.write_kubeconfig()
    assert len(await podded.driver.list({})) == 1


async def test_a_busy_server_is_asked_again(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.busy = 2
    assert await podded.driver.list({}) == []
    cluster.busy = 100
    with pytest.raises(ResourceExhaustedError, match="busy"):
        await podded.driver.list({})
    cluster.busy = 0


async def test_a_cluster_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with Kubernetes(tmp_path) as cluster:
        driver = KubernetesDriver(options(cluster))
        await driver.start()
    try:
        with pytest.raises(DriverUnavailableError, match="does not answer"):
            await driver.list({})
        assert (await driver.capabilities()).unavailable
    finally:
        await driver.aclose()
    with pytest.raises(DriverUnavailableError, match="does not answer"):
        await KubernetesDriver(options(cluster)).start()


async def test_no_configuration_is_unavailable(tmp_path: Path) -> None:
    driver = KubernetesDriver(KubernetesOptions(kubeconfig=str(tmp_path / "none")))
    with pytest.raises(DriverUnavailableError, match="No Kubernetes cluster"):
        await driver.check()
    assert (await driver.capabilities()).unavailable


# The watch.


async def trouble_cut(cluster: Kubernetes) -> None:
    cluster.cut_watches()


async def trouble_end(cluster: Kubernetes) -> None:
    cluster.bookmark()
    cluster.end_watches()


async def trouble_expired(cluster: Kubernetes) -> None:
    cluster.compact()
    cluster.expire_watches()


async def trouble_expired_status(cluster: Kubernetes) -> None:
    cluster.expires_by_status = True
    cluster.compact()
    cluster.cut_watches()


@pytest.mark.parametrize(
    "trouble", [trouble_cut, trouble_end, trouble_expired, trouble_expired_status]
)
async def test_the_watch_goes_on_after_trouble(
    cluster: Kubernetes, podded: Boxes, trouble: Any
) -> None:
    box = await podded.make()
    await soon(cluster.watching)
    cluster.watching.clear()
    async with aclosing(podded.driver.events()) as events:
        await trouble(cluster)
        await soon(cluster.watching)
        cluster.end_container(pods.pod_name(box.id))
        async with asyncio.timeout(20):
            found = [await anext(events), await anext(events)]
    assert [(event.kind, event.sandbox_id) for event in found] == [
        (DriverEventKind.OOM, box.id),
        (DriverEventKind.DIED, box.id),
    ]


async def test_a_bookmark_is_where_the_watch_goes_on(cluster: Kubernetes, podded: Boxes) -> None:
    await soon(cluster.watching)
    cluster.watching.clear()
    cluster.compact()  # What came before the bookmark is forgotten; the bookmark is not.
    cluster.bookmark()
    cluster.end_watches()
    await soon(cluster.watching)
    assert cluster.watches[-1] == str(cluster._revision)
    assert len(cluster.watches) == 2


async def test_what_vanished_while_nobody_watched_is_told(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make()
    async with aclosing(podded.driver.events()) as events:
        cluster.vanish(pods.pod_name(box.id))
        cluster.cut_watches()
        async with asyncio.timeout(20):
            event = await anext(events)
    assert (event.kind, event.sandbox_id) == (DriverEventKind.DIED, box.id)


async def test_creation_succeeds_beside_a_watch_that_is_dead(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_S", 0.05)
    cluster.access.denied.add(("watch", "pods"))
    async with driven(cluster) as boxes:
        box = await boxes.make()
        _, out, _ = await box.run("echo hello")
        assert out == b"hello\n"
        await boxes.driver.remove(box.id)
    assert cluster.pods == {}


# Ends.


async def test_a_lost_stream_ends_executions_and_not_the_sandbox(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make()
    await box.client.files.write("kept", b"in the sandbox")
    execution = await box.start("tail -f /dev/null")
    cluster.cut_attached()
    assert (await execution.result()).reason is Reason.SANDBOX_LOST
    assert box.client.is_lost
    again = Box(podded.driver, await podded.driver.connect(box.id), await podded.client(box.id))
    assert await again.client.files.read("kept") == b"in the sandbox"
    _, out, _ = await again.run(UNTIL_ENDED)
    assert out == b"ended\n"


@pytest.mark.parametrize("reason", ["OOMKilled", "Error"])
async def test_a_container_that_ends_is_lost(
    cluster: Kubernetes, podded: Boxes, reason: str
) -> None:
    box = await podded.make()
    execution = await box.start("sleep 600")
    async with aclosing(podded.driver.events()) as events:
        cluster.end_container(pods.pod_name(box.id), reason=reason)
        assert (await execution.result()).reason is Reason.SANDBOX_LOST
        async with asyncio.timeout(20):
            kinds = [(await anext(events)).kind]
            if reason == "OOMKilled":
                kinds.append((await anext(events)).kind)
    assert kinds == [DriverEventKind.OOM, DriverEventKind.DIED][reason != "OOMKilled" :]
    (info,) = await podded.driver.list(podded.run_label)
    assert info.state is SandboxState.STOPPED
    with pytest.raises(NotFoundError):
        await podded.driver.connect(box.id)
    with pytest.raises(ConflictError):
        await podded.driver.open_channel(box.id)
    await podded.driver.remove(box.id)
    assert cluster.pods == {}


async def test_an_eviction_is_an_end(cluster: Kubernetes, podded: Boxes) -> None:
    box = await podded.make()
    async with aclosing(podded.driver.events()) as events:
        cluster.evict(pods.pod_name(box.id))
        async with asyncio.timeout(20):
            event = await anext(events)
    assert (event.kind, event.sandbox_id) == (DriverEventKind.DIED, box.id)
    await box.client.wait_lost()


async def test_removal_waits_until_the_node_has_ended_the_processes(
    cluster: Kubernetes, podded: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_S", 0.05)
    box, other = await podded.make(), await podded.make()
    await podded.driver.stop(other.id)
    with pytest.raises(NotFoundError):
        await podded.driver.stop(other.id)
    await podded.driver.remove(other.id)
    await podded.driver.remove("never-was")
    cluster.node_answers = False
    monkeypatch.setattr(driver_module, "REMOVE_TIMEOUT_S", 0.3)
    with pytest.raises(TimeoutError_, match="node did not end"):
        await podded.driver.remove(box.id)
    (info,) = await podded.driver.list(podded.run_label)
    assert (info.sandbox_id, info.state) == (box.id, SandboxState.STOPPED)
    del cluster.pods[pods.pod_name(box.id)]
    await podded.driver.remove(box.id)


async def test_a_cancelled_creation_leaves_nothing(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.holds_creation = asyncio.Event()
    making = asyncio.ensure_future(podded.make())
    await soon(cluster.created)
    making.cancel()
    cluster.holds_creation.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert cluster.pods == {}
    cluster.holds_start = asyncio.Event()
    cluster.created.clear()
    making = asyncio.ensure_future(podded.make())
    await soon(cluster.created)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    cluster.holds_start.set()
    assert cluster.pods == {}
    assert await podded.driver.list({}) == []


async def test_a_pod_of_somebody_else_is_left_alone(cluster: Kubernetes, podded: Boxes) -> None:
    box = await podded.make()
    pod = cluster.pods[pods.pod_name(box.id)]
    del pod["metadata"]["annotations"][pods.ID]
    with pytest.raises(NotFoundError):
        await podded.driver.connect(box.id)
    with pytest.raises(NotFoundError):
        await podded.driver.remove(box.id)
    assert "deletionTimestamp" not in pod["metadata"]
    pod["metadata"]["annotations"][pods.ID] = box.id


# What cannot be done, and what can in newer clusters.


async def test_nothing_can_be_paused(podded: Boxes) -> None:
    box = await podded.make()
    with pytest.raises(PolicyUnsupportedError, match="cannot pause"):
        await podded.driver.pause(box.id)
    await podded.driver.resume(box.id)
    assert (await podded.driver.capabilities()).items["pause"] is Enforcement.UNAVAILABLE
    with pytest.raises(NotFoundError):
        await podded.driver.resume("never-was")


async def test_memory_and_cpu_change_where_the_cluster_can(
    cluster: Kubernetes, podded: Boxes
) -> None:
    limits = Limits(memory_bytes=1024 * MIB, disk_bytes=32 * MIB, pids=64)
    box = await podded.make(limits=limits)
    wanted = replace(limits, memory_bytes=2048 * MIB, cpu_millis=2000)
    assert await podded.driver.update(box.id, limits=wanted) == wanted
    container = cluster.pods[pods.pod_name(box.id)]["spec"]["containers"][0]
    assert container["resources"]["limits"]["cpu"] == "2000m"
    async with driven(cluster) as later:
        assert (await later.driver.connect(box.id)).limits == wanted
    cluster.room_bytes = 3 << 30
    with pytest.raises(ResourceExhaustedError, match="Infeasible"):
        await podded.driver.update(box.id, limits=replace(wanted, memory_bytes=4096 * MIB))
    assert container["resources"]["limits"]["memory"] == str(2048 * MIB)
    assert (await podded.driver.connect(box.id)).limits == wanted
    for change in ({"pids": 65}, {"disk_bytes": 64 * MIB}, {"inodes": 99}):
        with pytest.raises(PolicyUnsupportedError):
            await podded.driver.update(box.id, limits=replace(wanted, **change))


async def test_older_clusters_change_nothing(cluster: Kubernetes) -> None:
    cluster.version = {"major": "1", "minor": "32+", "gitVersion": "v1.32.4-eks"}
    async with driven(cluster) as boxes:
        box = await boxes.make()
        wanted = replace(box.handle.limits, cpu_millis=2000)
        with pytest.raises(PolicyUnsupportedError, match="cpu_millis"):
            await boxes.driver.update(box.id, limits=wanted)
        assert (await boxes.driver.connect(box.id)).limits == box.handle.limits


async def test_memory_is_measured_where_there_is_a_metrics_server(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make()
    assert (await podded.driver.stats(box.id)).memory_bytes is None
    cluster.metrics = {"cpu": "1234567n", "memory": "5Mi"}
    usage = await podded.driver.stats(box.id)
    assert (usage.memory_bytes, usage.cpu_ms) == (5 * MIB, None)


async def test_capabilities_are_told(cluster: Kubernetes, podded: Boxes) -> None:
    found = await podded.driver.capabilities()
    items = found.items
    for item in ("isolation", "network", "syscalls", "uid", "memory", "cpu", "pids", "disk"):
        assert items[item] is Enforcement.ENFORCED, item
    for item in ("inodes", "pause", "network_bandwidth", "disk_image"):
        assert items[item] is Enforcement.UNAVAILABLE, item
    assert found.notes[0] == "Kubernetes v1.34.1"
    assert (podded.driver.survives_server, podded.driver.has_images) == (True, True)
    async with driven(cluster, runtime_class="gvisor") as boxes:
        # Its kernel accepts the limit of processes and does not heed it.
        assert (await boxes.driver.capabilities()).items["pids"] is Enforcement.UNAVAILABLE


async def test_clients_take_a_sandbox_over_from_each_other(podded: Boxes) -> None:
    box = await podded.make()
    channel = await podded.driver.open_channel(box.id)
    second = await SandboxClient.connect(channel)
    assert box.client.is_lost
    _, out, _ = await Box(podded.driver, box.handle, second).run("echo mine")
    assert out == b"mine\n"
    await second.aclose()


# The double.


def test_the_double_serves_the_namespace_of_the_options() -> None:
    assert KubernetesOptions().namespace == NAMESPACE


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is absent")
async def test_kubectl_takes_the_double_for_a_cluster(
    cluster: Kubernetes, podded: Boxes, tmp_path: Path
) -> None:
    """Another client's view of the protocol; and a Pod waits for whoever attaches first."""
    kubectl = ("kubectl", "--kubeconfig", str(cluster.kubeconfig), "--namespace", NAMESPACE)
    kubectl += ("--cache-dir", str(tmp_path / "cache"), "--request-timeout", "30s")

    async def run(*words: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *kubectl, *words, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(40):
            out, _ = await process.communicate()
        assert process.returncode == 0
        return out

    spec = podded.spec(sandbox_id="by-kubectl")
    body = pods.manifest(spec, options(cluster), uid=pods.UID_BASE, creation="x")
    name = body["metadata"]["name"]
    path = tmp_path / "pod.json"
    path.write_text(json.dumps(body))
    await run("create", "--validate=false", "-f", str(path))
    await run("wait", "--for=jsonpath={.status.phase}=Running", "pod", name, "--timeout=20s")
    assert b"by-kubectl" in await run("get", "pods", "-L", pods.ID)
    attached = await asyncio.create_subprocess_exec(
        *kubectl, "attach", "--stdin", "--quiet", name,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert attached.stdin is not None
    assert attached.stdout is not None
    agent = b"import os; os.write(1, b'hello ' + os.read(0, 99))"
    async with asyncio.timeout(40):
        attached.stdin.write(boot.MAGIC)
        head = await attached.stdout.readexactly(len(boot.MAGIC) + 4)
        report = await attached.stdout.readexactly(int.from_bytes(head[-4:], "big"))
        assert b"Seccomp=2" in report
        attached.stdin.write(len(agent).to_bytes(4, "big") + agent + b"world")
        assert await attached.stdout.read() == b"hello world"
        assert await attached.wait() == 0
    await run("delete", "pod", name, "--grace-period=1")
    assert cluster.pods == {}
