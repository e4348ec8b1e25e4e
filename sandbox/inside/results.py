"""How an execution ended, in the words of RESULT."""

import os
import signal
import time

from sandbox.inside.execution import Execution
from sandbox.inside.wire import EXITED, KILLED, OOM_KILLED, RESULT_BODY


class Ooms:
    """How often the kernel killed in this sandbox's cgroup (v1 and v2 spell it alike)."""

    def __init__(self, paths: str) -> None:
        self.fd = -1  # Of the first of the files that there is; it stays open.
        for path in paths.split(","):
            try:
                self.fd = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            return

    def count(self) -> int:
        if self.fd >= 0:
            for line in os.pread(self.fd, 4096, 0).splitlines():
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
        return 0


def result(execution: Execution, ooms: Ooms, alone: bool) -> bytes:
    """The body of RESULT; `alone`: no other execution runs that the kernel may have killed in."""
    status = execution.status
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else -1
    if status is None:
        number = int(signal.SIGKILL)
    reason = execution.reason
    if reason == EXITED and number == signal.SIGKILL and execution.killed:
        reason = KILLED
    may_be_oom = number == signal.SIGKILL or code == 137 or (alone and code != 0)
    if reason in (EXITED, KILLED) and may_be_oom and ooms.count() > execution.oom_before:
        reason = OOM_KILLED
    wall = int((time.monotonic() - execution.started) * 1e6)
    return RESULT_BODY.pack(
        reason,
        execution.output.truncated,
        code,
        number,
        *execution.output.counts,
        execution.usage[0],
        wall,
        execution.usage[1],
    )
