"""What sandboxes are made from."""

from sqlalchemy import select

from models.base import row_columns, rows_of
from models.sandboxes import SandboxTemplate
from services.base import Deps, Work
from services.errors import UserError, UserErrorCode

DEFAULT = "python"


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
