"""What is asked of the agent to start a command, checked before it is sent."""

from collections.abc import Mapping, Sequence

from sandbox.base import WORKSPACE
from sandbox.errors import InvalidArgumentError
from sandbox.execution import WINDOW_BYTES
from sandbox.inside import wire
from sandbox.policy import check_env

COMMAND_BYTES = 64 * 1024
MAX_TIMEOUT_S = 7 * 86400
DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": WORKSPACE,
    "TMPDIR": "/tmp",  # noqa: S108 - inside the sandbox.
    "LANG": "C.UTF-8",
    "USER": "sandbox",
    "TERM": "dumb",
    # Python buffers whole blocks when it prints to a pipe; lines are wanted as they are printed.
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TERMINAL = "xterm-256color"


def execution(
    command: str | Sequence[str],
    *,
    cwd: str | None,
    base: Mapping[str, str],
    env: Mapping[str, str],
    terminal: tuple[int, int] | None,
    flags: int,
    timeout_s: float | None,
    output_limit_bytes: int,
    name: str,
) -> bytes:
    """The body of EXEC; the environment is `base`, which was checked before, with `env` over it.

    With a `name`, of at most 64 bytes, it outlives its client. Raises InvalidArgumentError for what
    no process can be given.
    """
    argv = _argv(command)
    check_env(env)
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidArgumentError("timeout_s must be above 0 and at most 7 days.")
    if not 0 <= output_limit_bytes < 1 << 62:
        raise InvalidArgumentError("output_limit_bytes must not be negative.")
    encoded = [encode(part, "command") for part in argv]
    size = sum(map(len, encoded[2:] if isinstance(command, str) else encoded))
    if size > COMMAND_BYTES or len(argv) > 4096:
        raise InvalidArgumentError("The command is larger than 64 KB.")
    strings = [*encoded, encode(cwd or WORKSPACE, "cwd")]
    merged = {**base, **env}
    for key, value in merged.items():
        strings += [encode(key, "env"), encode(value, "env")]
    if name:
        strings.append(encode(name, "name"))
        flags |= wire.EXEC_NAMED
    head = wire.EXEC_HEAD.pack(
        0 if timeout_s is None else max(1, int(timeout_s * 1000)),
        output_limit_bytes,
        WINDOW_BYTES,
        flags | (wire.EXEC_PTY if terminal is not None else 0),
        len(argv),
        len(merged),
    )
    where = b"" if terminal is None else wire.SIZE.pack(*terminal)
    return head + where + b"".join(map(wire.pack, strings))


def encode(text: str, what: str) -> bytes:
    """UTF-8 (lone surrogates stand for raw bytes). Raises InvalidArgumentError on NUL."""
    if "\0" in text:
        raise InvalidArgumentError(f"A NUL byte cannot be part of the {what}.")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"The {what} is not valid text.") from error


def _argv(command: str | Sequence[str]) -> list[str]:
    """The words of a command. Raises InvalidArgumentError for none or far too many bytes."""
    if isinstance(command, str):
        if not command.strip():
            raise InvalidArgumentError("The command is empty.")
        argv = ["/bin/sh", "-c", command]
    else:
        argv = list(command)
    if sum(map(len, command)) > COMMAND_BYTES:
        raise InvalidArgumentError("The command is larger than 64 KB.")
    if not argv or not argv[0]:
        raise InvalidArgumentError("The command is empty.")
    return argv
