"""The agent as the embedded driver hands it over: compiled ahead, in a file that nobody can change.

Compiling the agent's text takes the interpreter inside longer than all the rest of its start. So
it is compiled once, by that very interpreter, and every sandbox gets a descriptor of the result.
The text goes along, for the day on which the interpreter was upgraded under a running server.
"""

import base64
import fcntl
import functools
import logging
import marshal
import os
import subprocess
import zlib
from importlib.util import MAGIC_NUMBER

from sandbox import agent
from sandbox.errors import DriverUnavailableError

log = logging.getLogger(__name__)

COMPILE_TIMEOUT_S = 60.0
NAME = "agent"
# Prints what stands before the text in the file: the version of the byte code, the size of the
# code, the code.
COMPILE = f"""
import marshal, sys
from _frozen_importlib_external import MAGIC_NUMBER
code = marshal.dumps(compile(sys.stdin.buffer.read(), {NAME!r}, "exec"))
sys.stdout.buffer.write(MAGIC_NUMBER + len(code).to_bytes(4, "big") + code)
"""
# Whatever is wrong with the code, an interpreter of another version reads the text.
BOOT = f"""{agent.TITLE}
import marshal, os
from _frozen_importlib_external import MAGIC_NUMBER
def load(fd):
 size = int.from_bytes(os.pread(fd, 4, 4), "big")
 if os.pread(fd, 4, 0) == MAGIC_NUMBER:
  return marshal.loads(os.pread(fd, size, 8))
 return compile(os.pread(fd, 1 << 24, 8 + size), {NAME!r}, "exec")
"""
# Where the interpreter is known only once it runs, a process of its own compiles for it: what that
# takes and leaves in memory, which every fork of the agent would carry along, ends with it.
TEXT_BOOT = f"""{agent.TITLE}
import marshal, os, sys
text = sys.argv.pop(1)
def load():
 read, write = os.pipe()
 child = os.fork()
 if child == 0:
  try:
   with open(write, "wb") as file:
    marshal.dump(compile(text, {NAME!r}, "exec"), file)
  finally:
   os._exit(0)
 os.close(write)
 with open(read, "rb") as file:
  code = file.read()
 os.waitpid(child, 0)
 try:
  return marshal.loads(code)
 except (EOFError, ValueError, TypeError):
  return compile(text, {NAME!r}, "exec")
code = load()
del text, load
exec(code)
"""
# Where the interpreter is known to be of this one's version: the code itself, in as many arguments
# as it takes. Another interpreter ends at once, having said nothing.
CODE_BOOT = f"""{agent.TITLE}
import marshal, sys
from _frozen_importlib_external import MAGIC_NUMBER
from binascii import a2b_base64
from zlib import decompress
if sys.argv.pop(1) != MAGIC_NUMBER.hex():
 sys.exit("The agent was compiled for another version of Python.")
count = int(sys.argv.pop(1))
text = "".join(sys.argv[1:count + 1])
del sys.argv[1:count + 1]
code = marshal.loads(decompress(a2b_base64(text)))
del a2b_base64, count, decompress, text
exec(code)
"""
MAX_ARGUMENT = 120 * 1024  # Linux takes no more than 128 KiB.
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def boot(fd: int) -> str:
    """What `python3 -c` runs to become the agent whose file it has open as `fd`."""
    return f"{BOOT}code = load({fd})\nos.close({fd})\nexec(code)\n"


@functools.lru_cache(maxsize=2)
def code_arguments(source: str) -> tuple[str, ...]:
    """What follows `python3 -c` for interpreters of this one's version. Takes 40 ms at first."""
    code = marshal.dumps(compile(source, NAME, "exec"))
    text = base64.b64encode(zlib.compress(code)).decode()
    parts = [text[at : at + MAX_ARGUMENT] for at in range(0, len(text), MAX_ARGUMENT)]
    return CODE_BOOT, MAGIC_NUMBER.hex(), str(len(parts)), *parts


class AgentFile:
    """A sealed file in memory with the agent; for one interpreter."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._source = ""
        self._fd = -1

    def descriptor(self, source: str) -> int:
        """A descriptor to pass on; it stays this object's. Blocks while there is no such file yet.

        Raises DriverUnavailableError where the kernel gives no memory for it.
        """
        if self._fd < 0 or source != self._source:
            self.close()
            text = source.encode()
            try:
                self._fd = _sealed((self._compiled(text) or bytes(8)) + text)
            except OSError as error:
                raise DriverUnavailableError(
                    "The host has no memory for the sandboxes' agent.", engine=str(error)
                ) from error
            self._source = source
        return self._fd

    def _compiled(self, text: bytes) -> bytes | None:
        try:
            done = subprocess.run(  # noqa: S603 - the interpreter that every sandbox runs.
                [self._python, "-I", "-S", "-B", "-c", COMPILE],
                input=text,
                capture_output=True,
                timeout=COMPILE_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("Sandboxes start slower: %s compiles no agent (%s).", self._python, error)
            return None
        return done.stdout

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sealed(data: bytes) -> int:
    fd = os.memfd_create("noosphere", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
