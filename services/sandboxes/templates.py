"""What sandboxes are made from."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from models.base import now, row_columns, rows_of
from models.sandboxes import SandboxTemplate, SandboxTemplateVersion
from sandbox.errors import SandboxError
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.calls import TaskSet
from services.sandboxes import operations, refusals, wishes
from services.sandboxes.probing import Probe
from services.text import clean

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
DEFAULT = "python"
# Below what a request may take: an image that is being fetched goes on arriving.
_PATIENCE_S = 25.0
PROBE_AFTER_S = 30.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\Z")
_LANGUAGE = re.compile(r"[a-z0-9+#.-]{1,20}\Z")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}\Z")
_DESCRIPTION_CHARS = 1000


def split_image(image: str) -> tuple[str, str]:
    """Split `name:tag` of an image; the tag is `latest` by default, a port is no tag."""
    name, colon, tag = image.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (image, "latest")


async def seed(unit: Work) -> None:
    """Add the default template, or point it at the configured image when that has changed."""
    name, tag = split_image(unit.deps.options.sandbox_template_image)
    template = await unit.session.scalar(
        select(SandboxTemplate).where(SandboxTemplate.name == DEFAULT)
    )
    if template is None:
        unit.session.add(
            SandboxTemplate(
                name=DEFAULT,
                description="Python 3 with its standard library, and a POSIX shell.",
                language="python",
                image_name=name,
                image_tag=tag,
            )
        )
    elif (template.image_name, template.image_tag) != (name, tag):
        template.image_name, template.image_tag = name, tag
        template.image_digest = template.python_version = template.checked_at = None


async def find(deps: Deps, template_id: str | None) -> SandboxTemplate:
    """Give an active template, the default one by default. Raises UserError NOT_FOUND."""
    wanted = (
        SandboxTemplate.name == DEFAULT
        if template_id is None
        else SandboxTemplate.id == template_id
    )
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(SandboxTemplate)).where(wanted, SandboxTemplate.is_active.is_(True))
        )
        template = next(iter(rows_of(SandboxTemplate, found)), None)
    if template is None:
        raise UserError(
            UserErrorCode.NOT_FOUND,
            "There is no such template; `sandboxTemplates` lists those there are.",
            ("template_id",),
        )
    return template


async def create(
    deps: Deps,
    viewer: Viewer,
    *,
    name: str,
    image: str,
    description: str | None = None,
    language: str = "python",
    resources: wishes.Resources | None = None,
    env_variables: Mapping[str, str] | None = None,
) -> SandboxTemplate:
    """Add a template of an image, which is fetched, pinned by its digest and tried.

    Raises UserError(s) FORBIDDEN without `templates:manage`, INVALID, LIMIT and REQUIRED for what
    is given (INVALID also for an image without python3), CONFLICT for a name that is taken,
    UNAVAILABLE where images cannot be used, or while one is still being fetched.
    """
    viewer.require("templates:manage")
    if not _NAME.match(name):
        raise UserError(
            UserErrorCode.INVALID,
            "Use 1 to 100 lower-case letters, digits, dots, dashes and underscores for the name.",
            ("name",),
        )
    values = _checked(
        deps,
        {
            "image": image,
            "description": description,
            "language": language,
            "resources": resources,
            "env_variables": env_variables,
        },
    )
    probe = await _look(deps, image)
    try:
        async with work(deps) as unit:
            template = SandboxTemplate(name=name, **values)
            unit.session.add(template)
            await unit.session.flush()
            await _pin(unit, template, probe.digest, probe)
            await unit.session.flush()
            return template.frozen()
    except IntegrityError as error:
        raise UserError(
            UserErrorCode.CONFLICT, "There is a template of this name already.", ("name",)
        ) from error


async def change(
    deps: Deps, viewer: Viewer, *, template_id: str, changes: Mapping[str, Any]
) -> SandboxTemplate:
    """Change `description`, `language`, `image`, `resources`, `env_variables` or `is_active`.

    An image is looked up anew, also the one it has: where its name means another digest by now,
    that is a new version. Sandboxes there are stay as they are. Raises UserError(s) as `create`
    does, NOT_FOUND, and CONFLICT for the image of the default template, which is configured.
    """
    viewer.require("templates:manage")
    values = _checked(deps, changes)
    found = await _manageable(deps, template_id)
    _require_own_image(found, changes)
    probe = await _look(deps, changes["image"]) if "image" in changes else None
    async with work(deps) as unit:
        template = await unit.lock(SandboxTemplate, template_id)
        if template is None:
            raise _absent()
        for key, value in values.items():
            setattr(template, key, value)
        if probe is not None:
            await _pin(unit, template, probe.digest, probe)
        await unit.session.flush()
        return template.frozen()


def _require_own_image(template: SandboxTemplate, changes: Mapping[str, Any]) -> None:
    configured = f"{template.image_name}:{template.image_tag}"
    image = ":".join(split_image(changes.get("image", configured)))
    if template.name == DEFAULT and (image != configured or changes.get("is_active") is False):
        raise UserError(
            UserErrorCode.CONFLICT,
            "The default template is always there, of the image that NOOSPHERE_SANDBOX_IMAGE "
            "names; add a template of another name.",
            ("image",) if image != configured else ("is_active",),
        )


async def delete(deps: Deps, viewer: Viewer, *, template_id: str) -> SandboxTemplate:
    """Take a template away, with its versions; sandboxes made from it stay.

    Raises UserError FORBIDDEN without `templates:manage`, NOT_FOUND, CONFLICT for the default one.
    """
    viewer.require("templates:manage")
    async with work(deps) as unit:
        template = await unit.lock(SandboxTemplate, template_id)
        if template is None:
            raise _absent()
        if template.name == DEFAULT:
            raise UserError(
                UserErrorCode.CONFLICT, "The default template is always there.", ("id",)
            )
        gone = template.frozen()
        await unit.session.delete(template)
        return gone


def _absent() -> UserError:
    return UserError(UserErrorCode.NOT_FOUND, "There is no such template.", ("id",))


async def _manageable(deps: Deps, template_id: str) -> SandboxTemplate:
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(SandboxTemplate)).where(SandboxTemplate.id == template_id)
        )
        template = next(iter(rows_of(SandboxTemplate, found)), None)
    if template is None:
        raise _absent()
    return template


def _checked(deps: Deps, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give columns for what is given. Raises UserError(s)."""
    values: dict[str, Any] = {}
    if given.get("description") is not None:
        values["description"] = clean(
            given["description"], "description", max_chars=_DESCRIPTION_CHARS
        )
    elif "description" in given:
        values["description"] = None
    if "language" in given:
        if not _LANGUAGE.match(given["language"]):
            raise UserError(
                UserErrorCode.INVALID,
                "Use 1 to 20 lower-case letters, digits and `+#.-` for the language.",
                ("language",),
            )
        values["language"] = given["language"]
    if "image" in given:
        values["image_name"], values["image_tag"] = _named(given["image"])
    if "resources" in given:
        values["resource_config"] = wishes.template_limits(deps.options, given["resources"])
    if "env_variables" in given:
        values["security_config"] = wishes.template_env(given["env_variables"])
    if "is_active" in given:
        values["is_active"] = given["is_active"]
    return values


def _named(image: str) -> tuple[str, str]:
    name, tag = split_image(image)
    if not _IMAGE.match(image) or not _TAG.match(tag):
        raise UserError(
            UserErrorCode.INVALID,
            "Name an image as in `python:3.13-slim`, with a tag of at most 50 characters; its "
            "digest is found and kept by itself.",
            ("image",),
        )
    return name, tag


async def _look(deps: Deps, image: str) -> Probe:
    node = await deps.sandboxes.node()
    if not node.driver.has_images:
        raise UserError(
            UserErrorCode.UNAVAILABLE,
            f"The driver {node.driver.name} runs the host's own system alone; templates of images "
            "need a server with Docker or Kubernetes.",
            ("image",),
        )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await node.probes.probe(":".join(split_image(image)))
    except SandboxError as error:
        raise refusals.explain(error, ("image",)) from error
    except TimeoutError as error:
        raise UserError(
            UserErrorCode.UNAVAILABLE,
            "The image is still being fetched; try again in a while.",
            ("image",),
        ) from error


async def _pin(
    unit: Work, template: SandboxTemplate, digest: str | None, probe: Probe | None = None
) -> None:
    """Note what a template stands for now; another digest is another version."""
    last = await unit.session.scalar(
        select(SandboxTemplateVersion)
        .where(SandboxTemplateVersion.template_id == template.id)
        .order_by(SandboxTemplateVersion.version.desc())
        .limit(1)
    )
    if probe is not None:
        template.python_version, template.checked_at = probe.python_version, now()
    template.image_digest = digest
    if last is not None and last.image_digest == digest:
        template.version = last.version
        last.python_version = template.python_version or last.python_version
        template.python_version = last.python_version
        return
    template.version = 1 if last is None else last.version + 1
    unit.session.add(
        SandboxTemplateVersion(
            template_id=template.id,
            version=template.version,
            image_digest=digest,
            python_version=template.python_version,
        )
    )


async def pin_default(node: "Node") -> None:
    """Note which image the default template's name means to the engine now."""
    template = await find(node.deps, None)
    digest = await node.driver.image_digest(f"{template.image_name}:{template.image_tag}")
    if digest is None:
        return
    async with work(node.deps) as unit:
        row = await unit.lock(SandboxTemplate, template.id)
        if row is not None and (row.image_name, row.image_tag) == (
            template.image_name,
            template.image_tag,
        ):
            if row.image_digest not in (None, digest):
                row.python_version = row.checked_at = None
            await _pin(unit, row, digest)


async def probe_default(node: "Node") -> None:
    """Note the version of Python of the default template, where it is not known.

    Without images that is the host's, which may be another one after every start. Raises
    SandboxError.
    """
    template = await find(node.deps, None)
    has_images = node.driver.has_images
    if template.python_version is not None and has_images:
        return
    image = f"{template.image_name}:{template.image_tag}" if has_images else "host"
    digest = template.image_digest if has_images else None
    version = await node.probes.version(image, digest)
    async with work(node.deps) as unit:
        row = await unit.lock(SandboxTemplate, template.id)
        if row is None or (row.image_name, row.image_tag, row.image_digest) != (
            template.image_name,
            template.image_tag,
            template.image_digest,
        ):
            return
        row.python_version, row.checked_at = version, now()
        await unit.session.execute(
            update(SandboxTemplateVersion)
            .where(
                SandboxTemplateVersion.template_id == row.id,
                SandboxTemplateVersion.version == row.version,
            )
            .values(python_version=version)
        )


@operations.attachment
@asynccontextmanager
async def _probing(node: "Node") -> AsyncIterator[None]:
    async def look() -> None:
        try:
            if node.driver.has_images:
                await pin_default(node)
        except (SandboxError, SQLAlchemyError, UserError):
            # Sandboxes are then made by the image's name.
            log.warning("the default template was not pinned", exc_info=True)
        # At its start a server has better things to do.
        await asyncio.sleep(PROBE_AFTER_S)
        try:
            await probe_default(node)
        except (SandboxError, SQLAlchemyError, UserError):
            log.warning("the default template was not probed", exc_info=True)

    tasks = TaskSet()
    tasks.start(look(), name="look at the default template")
    try:
        yield
    finally:
        await tasks.aclose()
        await node.probes.aclose()
