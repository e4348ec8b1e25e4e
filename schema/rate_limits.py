"""What viewers may spend: points of cost a minute."""

from datetime import datetime
from typing import Annotated

import strawberry

from models import accounts as tables
from resolvers import rate_limits
from resolvers.base import Info, PageArgs
from schema.accounts import Role, User
from schema.base import (
    After,
    Before,
    Connection,
    First,
    Last,
    Node,
    Payload,
    answer,
    arg,
    attr,
    field,
    mutation,
)
from services.accounts import rate_limits as service


@strawberry.type(
    description="What you may spend in the present minute, in points: an object costs one, ten "
    "plain values cost one, and searches, sign-ins, models and sandboxes cost more."
)
class RateLimit:
    limit: int = attr("Points you may spend a minute.")
    spent: int = attr("Points you have spent, those of this operation included.")
    left: int = attr("Points you may still spend.")
    reset_at: datetime | None = attr(
        "When the minute ends; null as long as nothing was spent in it."
    )


@strawberry.type(description="What a user, or each holder of a role, may spend a minute.")
class RateLimitConfig(Node, row=tables.RateLimitConfig):
    role: Role | None = field(rate_limits.role, "The role it is for; null: for a user.")
    user: User | None = field(rate_limits.user, "The user it is for; null: for a role.")
    points_per_minute: int = attr("Points that may be spent a minute.")
    created_at: datetime = attr("Since when.")
    updated_at: datetime = attr("When it was last changed.")


@strawberry.input(
    description="A limit for a role or for a user. A user's own comes before those of roles, of "
    "which the highest holds; without any it is as the server is configured."
)
class RateLimitConfigSetInput:
    holder_id: strawberry.ID = attr("Id of the role or the user it is for.")
    points_per_minute: int = attr("Points that may be spent a minute, 1 to 2,000,000,000.")


@strawberry.type(description="Answer to `rateLimitConfigSet`.")
class RateLimitConfigSetPayload(Payload):
    rate_limit_config: RateLimitConfig | None = answer("The limit.")


@strawberry.type(description="Answer to `rateLimitConfigDelete`.")
class RateLimitConfigDeletePayload(Payload):
    rate_limit_config: RateLimitConfig | None = answer("The limit as it was.")


@strawberry.type
class RateLimitsQuery:
    @strawberry.field(
        description="What you may spend in the present minute; of your address where you are not "
        "signed in. Null: there is no limit."
    )
    async def rate_limit(self, info: Info) -> RateLimit | None:
        return await rate_limits.own(info)  # type: ignore[return-value]

    @strawberry.field(description="Limits of roles and people, newest first (admin).")
    async def rate_limit_configs(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[RateLimitConfig]:
        page = PageArgs(first, after, last, before)
        return await rate_limits.configs(info, page)  # type: ignore[return-value]


async def _set(info: Info, input: RateLimitConfigSetInput) -> dict[str, object]:
    config = await service.configure(
        info.context.deps,
        info.context.viewer,
        holder_id=input.holder_id,
        points_per_minute=input.points_per_minute,
    )
    return {"rate_limit_config": config}


async def _delete(
    info: Info, id: Annotated[strawberry.ID, arg("Which limit.")]
) -> dict[str, object]:
    config = await service.remove(info.context.deps, info.context.viewer, config_id=id)
    return {"rate_limit_config": config}


@strawberry.type
class RateLimitsMutation:
    rate_limit_config_set = mutation(
        RateLimitConfigSetPayload,
        "Say how much a user, or each holder of a role, may spend a minute (admin).",
    )(_set)
    rate_limit_config_delete = mutation(RateLimitConfigDeletePayload, "Take a limit away (admin).")(
        _delete
    )
