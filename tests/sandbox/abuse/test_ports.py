"""Servers inside that mean harm to whoever connects, and terminals that answer back."""

import asyncio
import contextlib
from contextlib import aclosing

import pytest

from sandbox.client import Reason
from sandbox.errors import PortError
from sandbox.tunnels import WINDOW_BYTES, Tunnel
from tests.sandbox.abuse.attack import PROLOGUE
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVER = """
import threading
server = socket.create_server(('127.0.0.1', 0), backlog=200)
os.write(1, b'%d' % server.getsockname()[1])
def serve(peer):
    try:
        {answer}
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
WAIT = "time.sleep(600)"
ANSWERS = {
    "nothing, for ever": WAIT,
    "an end at once": "peer.close()",
    "a reset at once": "peer.setsockopt(1, 13, bytes((1, 0, 0, 0, 0, 0, 0, 0))); peer.close()",
    "noise without end": "while True: peer.sendall(os.urandom(65536))",
    "a head without end": "peer.sendall(b'HTTP/1.1 200 OK\\r\\n')\n"
    "        while True: peer.sendall(b'X: ' + b'y' * 60_000 + b'\\r\\n')",
    "a body without end": "peer.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n')\n"
    "        while True: peer.sendall(bytes(65536))",
    "a bomb of gzip": "import gzip\n        peer.sendall(b'HTTP/1.1 200 OK\\r\\n"
    "Content-Encoding: gzip\\r\\n\\r\\n')\n        block = gzip.compress(bytes(1 << 24))\n"
    "        while True: peer.sendall(block)",
    "frames without end": "peer.sendall(b'HTTP/1.1 101 Switching\\r\\n"
    "Upgrade: websocket\\r\\n\\r\\n')\n"
    "        while True: peer.sendall(b'\\x82\\x7e\\xff\\xff' + bytes(65535))",
    "single bytes without end": "while True: peer.sendall(b'x')",
    "urgent bytes": "while True: peer.send(b'x', socket.MSG_OOB)",
    "half an end, and more to take": "peer.shutdown(socket.SHUT_WR)\n"
    "        while peer.recv(65536): pass",
    "half an end the other way": "peer.shutdown(socket.SHUT_RD)\n"
    "        while True: peer.sendall(bytes(65536))",
    "frames of the agent's": "peer.sendall(bytes(range(256)) * 4096)\n        " + WAIT,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_whoever_answers_so_holds_nobody_but_his_own(site: Site, answer: str) -> None:
    box = site.box
    program = PROLOGUE + SERVER.format(answer=answer)
    server = await box.start(["python3", "-c", program], timeout_s=60)
    async with aclosing(server.output()) as output, asyncio.timeout(30):
        port = int((await anext(output)).data)
    tunnels: list[Tunnel] = []
    try:
        for _ in range(8):
            # Some of them break off before they stand.
            with contextlib.suppress(PortError):
                tunnels.append(await box.client.dial(port))
        # Read from some, and from others nothing: what they send waits inside.
        for tunnel in tunnels[:4]:
            got = 0
            try:
                async with asyncio.timeout(1 if "sleep" in answer else 20):
                    while got < 2 * WINDOW_BYTES and (data := await tunnel.read()):
                        got += len(data)
                        if data[:1] == b"x":
                            break
            except (PortError, TimeoutError):
                continue
        for tunnel in tunnels[4:]:
            assert sum(map(len, tunnel._chunks)) <= WINDOW_BYTES
        assert (await box.run("echo well"))[1] == b"well\n"
    finally:
        for tunnel in tunnels:
            await tunnel.aclose()
        await server.cancel()
    assert (await server.result()).reason is Reason.KILLED


STORMS = {
    "questions that terminals answer": "while True: os.write(1, b'\\x1b[6n\\x1b[c\\x05\\x1b[>q')",
    "sizes of its own": "import fcntl\nwhile True:\n"
    "    fcntl.ioctl(0, 0x5414, os.urandom(8)); os.kill(0, signal.SIGWINCH)",
    "settings that change": "import termios\nmode = termios.tcgetattr(0)\nwhile True:\n"
    "    for flags in (0, 0xffff):\n        mode[3] = flags\n"
    "        try: termios.tcsetattr(0, termios.TCSANOW, mode)\n        except termios.error: pass",
    "flow that is stopped": "import termios\nwhile True:\n"
    "    termios.tcflow(0, termios.TCOOFF); termios.tcflow(0, termios.TCOON)",
    "an exclusive terminal": "import fcntl\nfcntl.ioctl(0, 0x540c, 0)\n"
    "while True: os.write(1, b'x')",
    "a new session that takes it": "while True:\n    if os.fork() == 0:\n        os.setsid()\n"
    "        try:\n            import fcntl; fcntl.ioctl(0, 0x540e, 1)\n"
    "        except OSError: pass\n        os._exit(0)\n    os.wait()",
}  # fmt: skip


@pytest.mark.parametrize("work", STORMS.values(), ids=STORMS.keys())
async def test_a_terminal_gone_wild_is_its_own_alone(box: Box, work: str) -> None:
    program = "signal.signal(signal.SIGWINCH, signal.SIG_IGN)\n" + work
    execution = await box.start(
        ["python3", "-c", PROLOGUE + program], terminal=(24, 80), timeout_s=30
    )
    for number in range(200):
        await execution.resize(1 + number % 300, 1 + number % 500)
    await execution.write_stdin(b"\x1b[1;1R\x03\x1a\x04" * 100)
    assert (await box.run("echo well"))[1] == b"well\n"
    await execution.cancel()
    assert (await execution.result()).reason in (Reason.KILLED, Reason.EXITED)
