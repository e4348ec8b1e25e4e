"""The first program of a Pod: it tells what it finds, then becomes the agent that it is sent.

This file travels as the text of `python3 -c` in the Pod's manifest, so it needs Python 3.8, the
standard library alone, and no dollar sign: Kubernetes expands those in commands. Nothing of the
user's has run when it measures, so what it tells is true; the server refuses the sandbox where
the cluster left out a part of what the manifest asks for.

It waits for the magic word, because what is written before somebody attaches is lost: answers
with the word, a length and lines of `name=value`; reads a length and the agent's text; runs it.
"""

import errno
import os
import resource
import select
import socket
import struct
import sys

MAGIC = b"NSBOOT1\n"
PATIENCE_S = 300.0  # For a server that creates the Pod and dies before it attaches.
REACH_S = 0.5
MAX_SOURCE = 4 * 1024 * 1024
STATUS = ("Uid", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
GROUPS = {
    "memory": ("memory.max", "memory/memory.limit_in_bytes"),
    "cpu": ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_quota_us"),
    "pids": ("pids.max", "pids/pids.max"),
}
# Of each process, for good: Pods have no way to ask for them.
LIMITS = (
    (resource.RLIMIT_NOFILE, 1024),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, 64 * 1024),
    (resource.RLIMIT_MSGQUEUE, 64 * 1024),
    (resource.RLIMIT_SIGPENDING, 1024),
)
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a place.


def begin_reaching() -> "socket.socket | None":
    """Begin to connect to the API server, whose address every container is told."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdigit():
        return None
    attempt = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    attempt.setblocking(False)
    if attempt.connect_ex((host, int(port))) not in (0, errno.EINPROGRESS):
        attempt.close()
        return None
    return attempt


def reached(attempt: "socket.socket | None") -> bool:
    """Whether the connection stands: the network is open then."""
    if attempt is None:
        return False
    _, ready, _ = select.select([], [attempt], [], REACH_S)
    done = bool(ready) and attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    attempt.close()
    return done


def first_line(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return ""


def facts(is_reached: bool) -> "dict[str, str]":
    """What this container is, as its own kernel tells."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    with open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in STATUS:
                found[name] = value.split()[0]
    for name, files in GROUPS.items():
        lines = [first_line("/sys/fs/cgroup/" + file) for file in files]
        found["cgroup." + name] = next((line for line in lines if line), "")
    for place in ("/workspace", "/tmp"):  # noqa: S108 - the places that are measured.
        size = os.statvfs(place)
        found["size." + place] = str(size.f_blocks * size.f_frsize)
    found["cpus"] = str(len(os.sched_getaffinity(0)))
    found["root.readonly"] = str(int(bool(os.statvfs("/").f_flag & os.ST_RDONLY)))
    found["token"] = str(int(os.path.exists(TOKEN)))
    found["network"] = str(int(is_reached))
    return found


def exactly(size: int) -> bytes:
    """That many bytes of standard input, and not one of those behind."""
    data = b""
    while len(data) < size:
        part = os.read(0, min(size - len(data), 65536))
        if not part:
            sys.exit("The channel ended before the agent came.")
        data += part
    return data


def limit() -> None:
    for which, most in LIMITS:
        _, hard = resource.getrlimit(which)
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (value, value))


def tell(found: "dict[str, str]") -> None:
    text = "\n".join(name + "=" + value for name, value in found.items()).encode()
    answer = MAGIC + struct.pack(">I", len(text)) + text
    while answer:
        answer = answer[os.write(1, answer) :]


def main() -> None:
    attempt = begin_reaching()
    if not select.select([0], [], [], PATIENCE_S)[0]:
        sys.exit("Nobody attached.")
    if exactly(len(MAGIC)) != MAGIC:
        sys.exit("Whoever attached does not speak this protocol.")
    tell(facts(reached(attempt)))
    (size,) = struct.unpack(">I", exactly(4))
    if size > MAX_SOURCE:
        sys.exit("The agent is larger than any agent is.")
    source = exactly(size)
    limit()
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8")
    exec(compile(source, "agent", "exec"), {"__name__": "__main__"})  # noqa: S102 - its purpose.


if __name__ == "__main__":
    main()
