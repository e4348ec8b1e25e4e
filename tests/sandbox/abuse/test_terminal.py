"""Terminals: nothing is typed for others, and what is written for a terminal is only carried."""

import logging

import pytest

from sandbox.errors import FileError, SandboxError
from tests.sandbox.abuse.attack import Attempt, attempts, is_contained
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = {"TIOCSTI": 0x5412, "TIOCCONS": 0x541D, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423}
FORMS = {"32-bit": 0, "64-bit": 0x1_0000_0000, "all high bits": 0xFFFFFFFF_00000000}
PTY = "leader, follower = os.openpty()\n"
OWN = f"""{PTY}
if os.fork() == 0:
    os.setsid()
    fd = os.open(os.ttyname(follower), os.O_RDWR)
    raw(NUMBERS['ioctl'], fd, 0x540E, 0)
    call('ioctl', os.open('/dev/tty', os.O_RDWR), {{}}, b'x')
    os._exit(0)
os.wait()
"""


@attempts(
    *(
        Attempt(f"{name}, {form}", f"{PTY}call('ioctl', follower, {request | high:#x}, b'x')",
                "EPERM")
        for name, request in REQUESTS.items()
        for form, high in FORMS.items()
    ),
    *(
        Attempt(f"TIOCSTI on one's own terminal, {form}", OWN.format(hex(0x5412 | high)), "EPERM")
        for form, high in FORMS.items()
    ),
    Attempt("a terminal of the host", "attempt(os.open, '/dev/tty', os.O_RDWR)", "ENXIO|ENOENT"),
    Attempt("the console", "attempt(os.open, '/dev/console', os.O_RDWR)",
            "ENXIO|ENOENT|EACCES|EPERM|EIO"),
    Attempt("virtual consoles", "for name in ('tty0', 'tty1', 'ttyS0', 'hvc0', 'vcs', 'vcsa1'):\n"
            "    attempt(os.open, '/dev/' + name, os.O_RDWR)", " ".join(["ENOENT"] * 6)),
    Attempt("terminals of others",
            "print([n for n in os.listdir('/dev/pts') if n != 'ptmx'])", "[]"),
    Attempt("an ordinary terminal", f"{PTY}os.write(leader, b'hello\\n')\n"
            "print(os.read(follower, 10).decode().strip())\n"
            "call('ioctl', follower, 0x5413, ctypes.create_string_buffer(8))", "hello ALLOWED"),
)  # fmt: skip
async def test_nothing_is_typed_for_others(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


ESCAPES = {
    "a new title": b"\x1b]0;owned\x07",
    "the clipboard": b"\x1b]52;c;b3duZWQ=\x07",
    "a question to the terminal": b"\x1b[6n\x1b[c\x1bZ\x05",
    "keys redefined": b"\x1b[0;59;\"rm -rf ~\"p",
    "the screen cleared": b"\x1b[2J\x1b[H\x1bc",
    "a line rewritten": b"root# \r\x1b[Kfake",
    "a link": b"\x1b]8;;http://evil.test\x07click\x1b]8;;\x07",
    "a device string": b"\x1bP+q544e\x1b\\",
    "control bytes of eight bits": bytes(range(0x80, 0xA0)),
    "text from right to left": "\u202etxt.exe\u202c".encode(),
    "every byte there is": bytes(range(256)),
    "half a character": b"\xf0\x9f\x98",
}  # fmt: skip


@pytest.mark.parametrize("data", ESCAPES.values(), ids=ESCAPES.keys())
async def test_escapes_are_carried_exactly_and_never_logged(
    box: Box, data: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    capfd.readouterr()
    text = f"import os\nos.write(1, {data!r} * 100)\nos.write(2, {data!r})"
    result, out, err = await box.python(text)
    assert (out, err, result.exit_code) == (data * 100, data, 0)
    name = data.replace(b"\0", b"").replace(b"/", b"") + b"!"
    shown = name.decode("utf-8", "surrogateescape")
    await box.client.files.make_dir("escapes", parents=True)
    await box.client.files.write(f"escapes/{shown}", data)
    (entry,) = await box.client.files.list("escapes")
    assert entry.name == shown
    assert await box.client.files.read(entry.path) == data
    messages = []
    for work in (
        box.client.files.read(f"{entry.path}/below"),
        box.client.files.make_dir(entry.path),
        box.start(["/workspace/absent-" + shown]),
        box.start("true", cwd=shown),
    ):
        with pytest.raises(SandboxError) as caught:
            await work
        messages.append(caught.value.message)
        assert not isinstance(caught.value, FileError) or caught.value.path.startswith(entry.path)
    await box.client.files.remove("escapes", recursive=True)
    said = "".join([*messages, *(record.getMessage() for record in caplog.records),
                    *capfd.readouterr()])  # fmt: skip
    assert all(char.isprintable() or char in "\n\t" for char in said), said
