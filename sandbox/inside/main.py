"""How the agent begins: process 1 inside a sandbox, with one duplex channel of frames.

It trusts the channel and distrusts everything that runs beside it: user code has the same uid, so
the agent is safe only through being process 1 (signals from inside cannot end it), through
PR_SET_DUMPABLE (its memory and descriptors, and those of its children, cannot be opened) and
through the seccomp policy (no ptrace).
"""

import fcntl
import gc
import os
import signal
import sys

from sandbox.inside.core import Agent
from sandbox.inside.processes import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, SIGNALS, prctl

F_SETPIPE_SZ = 1031  # A name in Python 3.10 and later.
# Bytes of the channel that whoever is at its other end can be behind, without the agent's waiting
# for him: with the kernel's 64 KiB they take turns, frame by frame.
CHANNEL_ROOM = 256 * 1024


def widen(channel: int) -> None:
    try:
        fcntl.fcntl(channel, F_SETPIPE_SZ, CHANNEL_ROOM)
    except OSError:
        return  # No pipe, or its size is not ours to choose.


def limit_processes(options: dict[str, str]) -> None:
    import resource

    limits = (
        ("nproc", resource.RLIMIT_NPROC),
        ("address_space", resource.RLIMIT_AS),
        ("file_size", resource.RLIMIT_FSIZE),
    )
    for name, which in limits:
        if name in options:
            resource.setrlimit(which, (int(options[name]), int(options[name])))


def main() -> None:
    """Take the channel off the descriptors that programs use, then serve until it closes."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    channel = options.get("channel")
    reading = os.dup(int(channel or 0))
    writing = reading if channel else os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    kept = sorted({reading, writing})
    for low, high in zip([2, *kept], [*kept, 256]):  # noqa: B905 - 3.8
        os.closerange(low + 1, high)
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    widen(writing)
    os.umask(0o022)
    limit_processes(options)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # A collection in a shim would touch, and so copy, every page it shares with the agent.
    gc.collect()
    gc.freeze()
    Agent(reading, writing, options).serve()


if __name__ == "__main__":
    main()
