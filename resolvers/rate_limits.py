"""Computed fields of what viewers may spend."""

from collections.abc import Sequence

from models.accounts import RateLimitConfig, Role, User
from resolvers.base import Info, Order, Page, PageArgs
from services.accounts import rate_limits
from services.accounts.rate_limits import Budget


async def own(info: Info) -> Budget | None:
    """Give what the viewer has in the present minute, or None without a limit."""
    context = info.context
    context.depends_on_client = True
    return await rate_limits.budget(context.deps, context.viewer, context.client.ip_address)


async def configs(info: Info, page: PageArgs) -> Page[RateLimitConfig]:
    """Limits of roles and people, the newest first; for administrators."""
    return await info.context.load.list(RateLimitConfig, page, order=Order(is_descending=True))


async def role(configs: Sequence[RateLimitConfig], info: Info) -> list[Role | None]:
    """The roles limits are for."""
    return await info.context.load.one(Role, Role.id, [config.role_id for config in configs])


async def user(configs: Sequence[RateLimitConfig], info: Info) -> list[User | None]:
    """The people limits are for."""
    return await info.context.load.one(User, User.id, [config.user_id for config in configs])
