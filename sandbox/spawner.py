"""A small process of its own that starts bubblewrap for the server.

Forking a server with threads is unsafe and slow, and bubblewrap's --die-with-parent fires when
the thread that forked it ends. This process has one thread and little memory. It ends when the
server does (its socket then closes), and with it every sandbox.

It speaks JSON over a SOCK_SEQPACKET socket on descriptor 0. A request brings descriptors:
standard error, the channel, the system call filter, then files. In the child they have the
numbers 2, 10, 11, 12, …; this file runs alone and imports the standard library only.
"""

import array
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

CLONE_NEWNS = 0x20000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000
STAGE = "/mnt"  # Covered by a private mount in the child; nothing of the host changes.
FIRST_FD = 10
LIBC = ctypes.CDLL(None, use_errno=True)


def check(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: bytes, target: str, kind: bytes, flags: int, data: str) -> None:
    check(
        LIBC.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data.encode()),
        f"mount {kind.decode()}",
    )


def stage(filesystems: list[dict[str, Any]]) -> None:
    """Mount tmpfs with limits on size and inodes, which bubblewrap itself cannot limit."""
    check(LIBC.unshare(CLONE_NEWNS), "unshare")
    mount(b"none", "/", b"none", MS_REC | MS_PRIVATE, "")
    mount(b"noosphere", STAGE, b"tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=0755")
    for each in filesystems:
        folder = f"{STAGE}/{each['name']}"
        os.mkdir(folder)
        mount(b"noosphere", folder, b"tmpfs", MS_NOSUID | MS_NODEV, each["options"])


def become(request: dict[str, Any], fds: list[int]) -> None:
    """In the child: groups, limits, filesystems, user, descriptors, bubblewrap."""
    for path in request["procs"]:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)
    if request["filesystems"]:
        stage(request["filesystems"])
    for name, value in request["rlimits"].items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (least, least))
    if request["uid"] is not None:
        os.setgroups([])
        os.setresgid(request["uid"], request["uid"], request["uid"])
        os.setresuid(request["uid"], request["uid"], request["uid"])
    # Out of the way first: a target number may be the number of another source.
    high = [os.dup(fd) for fd in fds]
    moved = [_above(fd, FIRST_FD + len(high)) for fd in high]
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1):
        os.dup2(null, target)
    os.dup2(moved[0], 2)
    for index, fd in enumerate(moved[1:]):
        os.dup2(fd, FIRST_FD + index)
    os.closerange(3, FIRST_FD)
    os.closerange(FIRST_FD + len(moved) - 1, 4096)
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    os.execve(request["argv"][0], request["argv"], {})  # noqa: S606 - the point of this file.


def _above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD, least)


def spawn(request: dict[str, Any], fds: list[int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            become(request, fds)
    except BaseException as error:  # noqa: BLE001 - the child must end here whatever happened.
        os.write(fds[0], f"spawner: {error}\n".encode())
    os._exit(126)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    size = 1 << 20
    data, ancillary, _, _ = control.recvmsg(size, socket.CMSG_SPACE(64 * 4))
    fds = array.array("i")
    for _, kind, body in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.sendall(json.dumps({"exit": pid, "status": status}).encode())


def main() -> None:
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal's Ctrl-C reaches the whole group; the server decides when sandboxes end.
        signal.signal(number, signal.SIG_IGN)
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == read:
                os.read(read, 4096)
                reap(control)
                continue
            request, fds = receive(control)
            if request is None:
                sys.exit(0)
            try:
                answer = {"id": request["id"], "pid": spawn(request, fds)}
            except OSError as error:
                answer = {"id": request["id"], "error": str(error)}
            control.sendall(json.dumps(answer).encode())
            for each in fds:
                os.close(each)


if __name__ == "__main__":
    main()
