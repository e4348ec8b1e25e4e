"""Templates: pinned by digest, tried before anybody uses them, and kept by version."""

import asyncio
import io
import secrets
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiodocker
import pytest
from sqlalchemy import select

from models.sandboxes import SandboxTemplate, SandboxTemplateVersion
from services.base import Viewer, work
from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes import lifecycle, templates
from services.sandboxes.live import INSTALLATION_LABEL, installation
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import Launch, Server, present, ran

MIB = 1_048_576


@dataclass
class Images:
    """Images of a test's own in the engine."""

    engine: aiodocker.Docker
    base: str
    made: list[str] = field(default_factory=list)
    name: str = field(default_factory=lambda: f"noosphere-test-{secrets.token_hex(4)}")

    async def make(self, tag: str) -> str:
        """Make another image with Python, under the same name; gives its id."""
        config = {"Image": self.base, "Cmd": ["true"], "Labels": {"n": secrets.token_hex(8)}}
        container = await self.engine.containers.create(config)
        made = await container.commit(repository=self.name, tag=tag)
        await container.delete(force=True)
        self.made.append(made["Id"])
        return str(made["Id"])

    async def bare(self, tag: str) -> None:
        """Make an image with nothing in it."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
        async with self.engine._query(
            "images/create",
            "POST",
            params={"fromSrc": "-", "repo": self.name, "tag": tag},
            data=archive.getvalue(),
            headers={"Content-Type": "application/x-tar"},
        ) as answer:
            await answer.read()
        self.made.append(f"{self.name}:{tag}")


@pytest.fixture
async def images(docker_url: str, docker_image: str) -> AsyncIterator[Images]:
    engine = aiodocker.Docker(url=docker_url)
    found = Images(engine, docker_image)
    try:
        yield found
    finally:
        for name in found.made:
            await engine.images.delete(name, force=True)
        await engine.close()


async def versions(server: Server, template: SandboxTemplate) -> list[tuple[int, str | None]]:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(SandboxTemplateVersion.version, SandboxTemplateVersion.image_digest)
            .where(SandboxTemplateVersion.template_id == template.id)
            .order_by(SandboxTemplateVersion.version)
        )
        return [(version, digest) for version, digest in found]


def labels(server: Server) -> dict[str, str]:
    """Tell this server's sandboxes from those of other tests on the engine."""
    return {INSTALLATION_LABEL: installation(server.deps)}


async def names(server: Server) -> set[str]:
    async with server.deps.db.reading() as connection:
        return set(await connection.scalars(select(SandboxTemplate.name)))


@pytest.mark.docker
async def test_a_template_is_pinned_and_a_tag_that_moves_makes_a_version(
    launch: Launch, images: Images
) -> None:
    server = await launch("docker")
    ada = await server.person("ada", "templates:manage")
    first = await images.make("1")
    template = await templates.create(
        server.deps,
        ada,
        name="own",
        image=f"{images.name}:1",
        description="Mine.",
        resources=Resources(memory_bytes=200 * MIB, disk_bytes=16 * MIB),
        env_variables={"GREETING": "hi"},
    )
    assert (template.image_digest, template.version) == (first, 1)
    assert template.python_version is not None
    assert template.python_version.startswith("3.")
    assert template.checked_at is not None
    # The sandbox it was tried in is gone.
    node = await server.host.node()
    assert await node.driver.list(labels(server)) == []

    old = await lifecycle.create(server.deps, ada, template_id=template.id)
    assert (old.image_digest, old.template_version) == (first, 1)
    assert (await ran(server.deps, ada, old.id, "echo $GREETING")).stdout == "hi\n"

    second = await images.make("1")
    assert second != first
    same = await lifecycle.create(server.deps, ada, template_id=template.id)
    assert same.image_digest == first, "what runs does not change by itself"

    image = f"{images.name}:1"
    changed = await templates.change(
        server.deps, ada, template_id=template.id, changes={"image": image}
    )
    assert (changed.image_digest, changed.version) == (second, 2)
    assert await versions(server, template) == [(1, first), (2, second)]
    again = await templates.change(
        server.deps, ada, template_id=template.id, changes={"image": image, "description": None}
    )
    assert (again.version, again.description) == (2, None)
    new = await lifecycle.create(server.deps, ada, template_id=template.id)
    assert (new.image_digest, new.template_version) == (second, 2)
    for box in (old, same, new):
        await lifecycle.delete(server.deps, ada, sandbox_id=box.id)

    await templates.delete(server.deps, ada, template_id=template.id)
    assert await names(server) == {"python"}
    kept = await present(server, new.id)
    assert (kept.template_id, kept.image_digest) == (None, second)


@pytest.mark.docker
async def test_an_image_without_python_or_that_is_nowhere_makes_no_template(
    launch: Launch, images: Images
) -> None:
    server = await launch("docker")
    ada = await server.person("ada", "templates:manage")
    await images.bare("bare")
    for image in (f"{images.name}:bare", f"{images.name}:absent"):
        with pytest.raises(UserError) as caught:
            await templates.create(server.deps, ada, name="own", image=image)
        assert (caught.value.code, caught.value.path) == (UserErrorCode.INVALID, ("image",))
    assert await names(server) == {"python"}
    node = await server.host.node()
    assert await node.driver.list(labels(server)) == []


@pytest.mark.docker
async def test_the_default_template_is_pinned_at_the_start(
    launch: Launch, docker_image: str
) -> None:
    server = await launch("docker")
    node = await server.host.node()
    await templates.pin_default(node)
    template = await templates.find(server.deps, None)
    digest = await node.driver.image_digest(docker_image)
    assert digest is not None
    assert (template.image_digest, template.version) == (digest, 1)
    assert await versions(server, template) == [(1, digest)]
    # Its digest was another one before.
    async with work(server.deps) as unit:
        row = await unit.lock(SandboxTemplateVersion, (await _first_version(server, template)))
        assert row is not None
        row.image_digest = "sha256:old"
        held = await unit.lock(SandboxTemplate, template.id)
        assert held is not None
        held.image_digest, held.python_version = "sha256:old", "3.0"
    await templates.pin_default(node)
    template = await templates.find(server.deps, None)
    assert (template.image_digest, template.version) == (digest, 2)
    assert template.python_version is None
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    assert box.image_digest == digest
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)


async def _first_version(server: Server, template: SandboxTemplate) -> str:
    async with server.deps.db.reading() as connection:
        found = await connection.scalar(
            select(SandboxTemplateVersion.id).where(
                SandboxTemplateVersion.template_id == template.id
            )
        )
    assert found is not None
    return found


@pytest.mark.docker
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
async def test_the_python_of_the_default_template_is_known(kind: str, launch: Launch) -> None:
    server = await launch(kind)
    node = await server.host.node()
    ada = await server.person("ada")
    assert (await templates.find(server.deps, None)).python_version is None
    if kind == "docker":
        await templates.pin_default(node)
    await templates.probe_default(node)
    found = await templates.find(server.deps, None)
    assert found.python_version is not None
    assert found.checked_at is not None
    box = await lifecycle.create(server.deps, ada)
    inside = await ran(server.deps, ada, box.id, "python3 --version")
    assert inside.stdout == f"Python {found.python_version}\n"
    async with server.deps.db.reading() as connection:
        said = await connection.execute(select(SandboxTemplateVersion.python_version))
        assert [version for (version,) in said] == [found.python_version] * (kind == "docker")
    assert node.probes.names == set()
    labels = {INSTALLATION_LABEL: installation(server.deps)}
    assert [info.sandbox_id for info in await node.driver.list(labels)] == [box.id]

    # It is asked once of an image, and of the host at every start.
    asked: list[str] = []

    async def asking(image: str, digest: str | None) -> str:
        asked.append(image)
        return "3.99.1"

    node.probes.version = asking  # type: ignore[method-assign]
    await templates.probe_default(node)
    assert asked == ([] if kind == "docker" else ["host"])


@pytest.mark.bubblewrap
async def test_the_default_template_is_probed_by_itself(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "PROBE_AFTER_S", 0.0)
    is_done, probe_default = asyncio.Event(), templates.probe_default

    async def probing(node: Any) -> None:
        await probe_default(node)
        is_done.set()

    monkeypatch.setattr(templates, "probe_default", probing)
    server = await launch()
    async with asyncio.timeout(60):
        await is_done.wait()
    found = await templates.find(server.deps, None)
    assert (found.python_version or "").startswith("3.")


async def test_two_who_ask_for_one_image_wait_for_one_look(
    launch: Launch, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch("docker")
    node = await server.host.node()
    await images.make("1")
    image, pulls = f"{images.name}:1", []
    pull = node.driver.pull

    async def counted(name: str) -> None:
        pulls.append(name)
        await pull(name)

    monkeypatch.setattr(node.driver, "pull", counted)
    impatient = asyncio.ensure_future(node.probes.probe(image))
    both = asyncio.gather(node.probes.probe(image), node.probes.probe(image))
    await asyncio.wait({impatient}, timeout=0)
    impatient.cancel()
    one, other = await both
    assert one == other
    assert pulls == [image]


@pytest.mark.bubblewrap
async def test_a_driver_without_images_takes_no_templates_of_images(server: Server) -> None:
    ada = await server.person("ada", "templates:manage")
    with pytest.raises(UserError, match="need a server with Docker") as caught:
        await templates.create(server.deps, ada, name="own", image="python:3.13")
    assert (caught.value.code, caught.value.path) == (UserErrorCode.UNAVAILABLE, ("image",))
    assert await names(server) == {"python"}
    box = await lifecycle.create(server.deps, ada)
    assert (box.image_digest, box.template_version) == (None, 1)


@pytest.mark.bubblewrap
@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({"name": "Own"}, UserErrorCode.INVALID, ("name",)),
        ({"name": ""}, UserErrorCode.INVALID, ("name",)),
        ({"name": "a" * 101}, UserErrorCode.INVALID, ("name",)),
        ({"image": ""}, UserErrorCode.INVALID, ("image",)),
        ({"image": "python@sha256:" + "0" * 64}, UserErrorCode.INVALID, ("image",)),
        ({"image": "python:" + "1" * 51}, UserErrorCode.INVALID, ("image",)),
        ({"image": "python;reboot"}, UserErrorCode.INVALID, ("image",)),
        ({"image": "-v /:/host"}, UserErrorCode.INVALID, ("image",)),
        ({"description": "a" * 1001}, UserErrorCode.LIMIT, ("description",)),
        ({"language": "Py thon"}, UserErrorCode.INVALID, ("language",)),
        ({"resources": Resources(pids=1)}, UserErrorCode.INVALID, ("resources", "pids")),
        ({"env_variables": {"1A": "x"}}, UserErrorCode.INVALID, ("env_variables",)),
        ({"env_variables": {"A": "x" * 70_000}}, UserErrorCode.LIMIT, ("env_variables",)),
    ],
)
async def test_what_no_template_can_be_is_refused(
    server: Server, given: dict[str, Any], code: UserErrorCode, path: tuple[str, ...]
) -> None:
    ada = await server.person("ada", "templates:manage")
    with pytest.raises((UserError, UserErrors)) as caught:
        await templates.create(server.deps, ada, **{"name": "own", "image": "x:1", **given})
    error = caught.value
    errors = error.errors if isinstance(error, UserErrors) else [error]
    assert [(error.code, error.path) for error in errors] == [(code, path)]
    assert await names(server) == {"python"}


@pytest.mark.bubblewrap
async def test_the_default_template_stays_and_only_who_may_changes_templates(
    server: Server, ada: Viewer
) -> None:
    root = await server.person("root", "templates:manage")
    template = await templates.find(server.deps, None)
    for viewer, changes, code in (
        (ada, {"description": "x"}, UserErrorCode.FORBIDDEN),
        (root, {"image": "other:1"}, UserErrorCode.CONFLICT),
        (root, {"is_active": False}, UserErrorCode.CONFLICT),
    ):
        with pytest.raises(UserError) as caught:
            await templates.change(server.deps, viewer, template_id=template.id, changes=changes)
        assert caught.value.code is code
    for viewer, code in ((ada, UserErrorCode.FORBIDDEN), (root, UserErrorCode.CONFLICT)):
        with pytest.raises(UserError) as caught:
            await templates.delete(server.deps, viewer, template_id=template.id)
        assert caught.value.code is code
    assert await templates.find(server.deps, None) == template

    changes = {"resources": Resources(memory_bytes=128 * MIB), "env_variables": {"A": "b"}}
    await templates.change(server.deps, root, template_id=template.id, changes=changes)
    box = await lifecycle.create(server.deps, ada)
    assert (await ran(server.deps, ada, box.id, "echo $A")).stdout == "b\n"
    with pytest.raises(UserError) as caught:
        await templates.change(server.deps, root, template_id="stp_x", changes={})
    assert (caught.value.code, caught.value.path) == (UserErrorCode.NOT_FOUND, ("id",))
