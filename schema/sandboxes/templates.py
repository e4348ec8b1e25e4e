"""What sandboxes are made from."""

from datetime import datetime
from typing import Any

import strawberry

from models import sandboxes as tables
from resolvers import sandboxes
from resolvers.base import Info, PageArgs, reads
from schema.base import (
    After,
    Before,
    BigInt,
    Connection,
    First,
    Id,
    Last,
    Node,
    Payload,
    answer,
    attr,
    connection,
    mutation,
)
from schema.sandboxes.limits import SandboxResourcesInput, resources
from schema.sandboxes.network import SandboxEnvVariable, SandboxEnvVariableInput
from services.sandboxes import templates


@strawberry.type(description="What a template stood for at some time.")
class SandboxTemplateVersion(Node, row=tables.SandboxTemplateVersion):
    version: int = attr("1 for the first; it counts up whenever the image became another one.")
    image_digest: str | None = attr("The image, exactly; null: not known.")
    python_version: str | None = attr("The Python in the image; null: not looked at.")
    created_at: datetime = attr("Since when.")


@strawberry.type(description="What a template says of limits; null: as the server is configured.")
class SandboxTemplateResources:
    cpu_millis: int | None = attr("CPU time, in thousandths of a core.")
    memory_bytes: BigInt | None = attr("Memory of all processes, files included.")
    disk_bytes: BigInt | None = attr("Size of the workspace.")
    pids: int | None = attr("Processes and threads at once.")


@strawberry.type(description="What sandboxes are made from: an image with Python 3.")
class SandboxTemplate(Node, row=tables.SandboxTemplate):
    name: str = attr("Unique name; the default one is `python`.")
    description: str | None = attr("What is in it.")
    language: str = attr("The language it is for.")
    image_name: str = attr("Name of the image.")
    image_tag: str = attr("Tag of the image.")
    image_digest: str | None = attr(
        "What the name means, exactly: sandboxes are made from this. Null: the host's own system, "
        "or not known."
    )
    version: int = attr("Counts up whenever the image became another one.")
    python_version: str | None = attr("The Python in the image; null: not looked at.")
    checked_at: datetime | None = attr("When the image was last tried.")
    is_active: bool = attr("Whether sandboxes can be made from it.")
    created_at: datetime = attr("When it was added.")
    updated_at: datetime = attr("When it was last changed.")
    versions: Connection[SandboxTemplateVersion] = connection(
        sandboxes.template_versions, "What it stood for, newest first."
    )

    @strawberry.field(description="The limits of a sandbox that asks for none.")
    def resources(self) -> SandboxTemplateResources:
        said: dict[str, Any] = self.resource_config or {}  # type: ignore[attr-defined]
        names = ("cpu_millis", "memory_bytes", "disk_bytes", "pids")
        return SandboxTemplateResources(**{name: said.get(name) for name in names})

    @strawberry.field(description="Environment variables of every execution, besides the own.")
    def env_variables(self) -> list[SandboxEnvVariable]:
        said: dict[str, Any] = self.security_config or {}  # type: ignore[attr-defined]
        variables: dict[str, str] = said.get("env_variables", {})
        return [SandboxEnvVariable(name=n, value=v) for n, v in sorted(variables.items())]


@strawberry.type
class SandboxTemplatesQuery:
    @strawberry.field(description="What sandboxes can be made from, by name; none when anonymous.")
    @reads()
    async def sandbox_templates(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[SandboxTemplate]:
        page = PageArgs(first, after, last, before)
        return await sandboxes.templates(info, page)  # type: ignore[return-value]


@strawberry.input(description="A new template.")
class SandboxTemplateCreateInput:
    name: str = attr("Unique name: lower-case letters, digits, dots, dashes and underscores.")
    image: str = attr("The image, such as `python:3.13-slim`; it must contain python3.")
    description: str | None = attr("What is in it, at most 1,000 characters.", default=None)
    language: str = attr("The language it is for.", default="python")
    resources: SandboxResourcesInput | None = attr(
        "The limits of a sandbox that asks for none.", default=None
    )
    env_variables: list[SandboxEnvVariableInput] = attr(
        "Environment of every execution.", default_factory=list
    )


@strawberry.input(description="Changes to a template; sandboxes there are stay as they are.")
class SandboxTemplateUpdateInput:
    image: strawberry.Maybe[str] = attr(
        "The image. Also the present one is looked up anew: another digest is another version."
    )
    description: strawberry.Maybe[str | None] = attr("What is in it; null takes it away.")
    language: strawberry.Maybe[str] = attr("The language it is for.")
    resources: strawberry.Maybe[SandboxResourcesInput | None] = attr(
        "The limits of a sandbox that asks for none; null: as the server is configured."
    )
    env_variables: strawberry.Maybe[list[SandboxEnvVariableInput]] = attr(
        "Environment of every execution."
    )
    is_active: strawberry.Maybe[bool] = attr("Whether sandboxes can be made from it.")


@strawberry.type(description="Answer to `sandboxTemplateCreate`.")
class SandboxTemplateCreatePayload(Payload):
    template: SandboxTemplate | None = answer("The new template.")


@strawberry.type(description="Answer to `sandboxTemplateUpdate`.")
class SandboxTemplateUpdatePayload(Payload):
    template: SandboxTemplate | None = answer("The changed template.")


@strawberry.type(description="Answer to `sandboxTemplateDelete`.")
class SandboxTemplateDeletePayload(Payload):
    template: SandboxTemplate | None = answer("The template as it was.")


def _variables(given: list[SandboxEnvVariableInput]) -> dict[str, str]:
    return {variable.name: variable.value for variable in given}


async def _create(info: Info, input: SandboxTemplateCreateInput) -> dict[str, object]:
    context = info.context
    template = await templates.create(
        context.deps,
        context.viewer,
        name=input.name,
        image=input.image,
        description=input.description,
        language=input.language,
        resources=resources(input.resources),
        env_variables=_variables(input.env_variables),
    )
    return {"template": template}


async def _update(info: Info, id: Id, input: SandboxTemplateUpdateInput) -> dict[str, object]:
    changes: dict[str, object] = {
        name: given.value
        for name in ("image", "description", "language", "is_active")
        if (given := getattr(input, name)) is not None
    }
    if input.resources is not None:
        wish = input.resources.value
        changes["resources"] = None if wish is None else resources(wish)
    if input.env_variables is not None:
        changes["env_variables"] = _variables(input.env_variables.value)
    context = info.context
    template = await templates.change(context.deps, context.viewer, template_id=id, changes=changes)
    return {"template": template}


async def _delete(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"template": await templates.delete(context.deps, context.viewer, template_id=id)}


@strawberry.type
class SandboxTemplatesMutation:
    sandbox_template_create = mutation(
        SandboxTemplateCreatePayload,
        "Add a template. Its image is fetched, pinned by its digest, and tried (admin).",
    )(_create)
    sandbox_template_update = mutation(SandboxTemplateUpdatePayload, "Change a template (admin).")(
        _update
    )
    sandbox_template_delete = mutation(
        SandboxTemplateDeletePayload, "Take a template away; its sandboxes stay (admin)."
    )(_delete)
