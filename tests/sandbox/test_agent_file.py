"""The compiled agent: one interpreter's code, and the text for every other."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from sandbox import agent_file
from sandbox.agent_file import TEXT_BOOT, AgentFile, boot, code_arguments

PROGRAM = "import sys\nprint('ran', __name__, sys._getframe().f_code.co_filename)\n"


def run(fd: int) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", boot(fd)],
        pass_fds=(fd,), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_interpreter_that_compiled_it_runs_the_code_and_not_the_text() -> None:
    file = AgentFile(sys.executable)
    data = os.pread(file.descriptor(PROGRAM), 1 << 20, 0)
    assert data.endswith(PROGRAM.encode())
    fd = os.memfd_create("test")
    os.write(fd, data.removesuffix(PROGRAM.encode()) + b"print('text')\n")
    assert run(fd) == "ran __main__ agent\n"
    os.close(fd)
    file.close()


def test_another_version_reads_the_text() -> None:
    file = AgentFile(sys.executable)
    data = os.pread(file.descriptor(PROGRAM), 1 << 20, 0)
    fd = os.memfd_create("test")
    os.write(fd, bytes(4) + data[4:8] + bytes(len(data) - 8 - len(PROGRAM)) + PROGRAM.encode())
    assert run(fd) == "ran __main__ agent\n"
    os.close(fd)
    file.close()


def test_without_a_compiler_the_text_is_enough() -> None:
    file = AgentFile("/nonexistent/python3")
    assert run(file.descriptor(PROGRAM)) == "ran __main__ agent\n"
    file.close()


def test_text_is_compiled_aside_and_keeps_its_options() -> None:
    program = PROGRAM + "print(sys.argv[1:])\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TEXT_BOOT, program, "a=1"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "ran __main__ agent\n['a=1']\n"


def start(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", *arguments, "a=1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_code_goes_in_arguments_and_keeps_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_file, "MAX_ARGUMENT", 100)
    program = PROGRAM + "print(sys.argv[1:])\n"
    arguments = code_arguments(program)
    assert len(arguments) > 5
    assert max(map(len, arguments[3:])) <= 100
    assert start(arguments).stdout == "ran __main__ agent\n['a=1']\n"


def test_code_of_another_version_is_not_run() -> None:
    boot, _, *code = code_arguments(PROGRAM)
    done = start([boot, "00000000", *code])
    assert (done.returncode, done.stdout) == (1, "")
    assert "another version" in done.stderr


def test_nobody_changes_it_and_another_text_makes_another_file() -> None:
    file = AgentFile(sys.executable)
    fd = file.descriptor(PROGRAM)
    for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0)):
        with pytest.raises(PermissionError):
            change()
    assert file.descriptor(PROGRAM) == fd
    assert run(file.descriptor("print('other')")) == "other\n"
    file.close()
