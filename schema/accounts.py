"""People, roles and sign-ins."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from models import accounts as tables
from resolvers import accounts, conversations, memories, plans, sandboxes
from resolvers.base import Info, PageArgs, reads
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
    connection,
    field,
    mutation,
)
from schema.sandboxes.quotas import SandboxQuota, SandboxQuotaInput, SandboxQuotaRule
from services.accounts import roles as role_service
from services.accounts import sessions as session_service
from services.accounts import users as user_service
from services.accounts.sessions import Credentials
from services.sandboxes import quotas

if TYPE_CHECKING:
    from schema.conversations import Conversation
    from schema.memories import Memory
    from schema.plans import Plan
    from schema.sandboxes import Sandbox


@strawberry.type(description="A named set of permissions.")
class Role(Node, row=tables.Role):
    name: str = attr("`admin`, `user`, `viewer`, or one of your own.")
    description: str | None = attr("What the role is for.")
    permissions: list[str] = field(accounts.permissions, "What it permits, as `domain:action`.")

    @strawberry.field(description="What it allows its holders' sandboxes in all.")
    def sandbox_quota(self) -> SandboxQuotaRule:
        quota: dict[str, int] = self.sandbox_quota or {}  # type: ignore[assignment]
        return SandboxQuotaRule(**{name: quota.get(name) for name in quotas.NAMES})  # type: ignore[arg-type]


@strawberry.type(description="A sign-in as its owner sees it in the list of sign-ins.")
class Session(Node, row=tables.AuthSession):
    ip_address: str | None = attr("The address it came from.")
    user_agent: str | None = attr("The program it came from.")
    created_at: datetime = attr("When it began.")
    last_active_at: datetime = attr("When it was last used (to the minute).")
    expires_at: datetime = attr("When its access token ends.")
    is_current: bool = field(accounts.is_current, "Whether this request came with it.")
    is_expired: bool = field(accounts.is_expired, "Whether its access token has run out.")


@strawberry.type(description="A person with an account.")
class User(Node, row=tables.User):
    username: str = attr("Unique name, lower case.")
    display_name: str = attr("The name to show.")
    email: str = attr("E-mail address, lower case.")
    is_active: bool = attr("Whether the account may sign in.")
    created_at: datetime = attr("When the account was opened.")
    updated_at: datetime = attr("When it was last changed.")
    last_login_at: datetime | None = attr("When the person last signed in with the password.")
    roles: list[Role] = field(accounts.roles, "The person's roles.")
    sessions: Connection[Session] = connection(accounts.sessions, "Open sign-ins, newest first.")
    conversations: Connection[
        Annotated["Conversation", strawberry.lazy("schema.conversations")]
    ] = connection(conversations.of_users, "The person's conversations, the last changed first.")
    plans: Connection[Annotated["Plan", strawberry.lazy("schema.plans")]] = connection(
        plans.of_users, "The person's plans, newest first."
    )
    memories: Connection[Annotated["Memory", strawberry.lazy("schema.memories")]] = connection(
        memories.of_users, "What is remembered of the person, newest first."
    )
    sandbox_quota: SandboxQuota | None = field(
        sandboxes.quota,
        "What the person's sandboxes may have in all, and have. Null unless it is you, or you may "
        "see everything.",
    )
    sandboxes: Connection[Annotated["Sandbox", strawberry.lazy("schema.sandboxes")]] = connection(
        sandboxes.of_users, "The person's sandboxes, newest first, without deleted ones."
    )


@strawberry.type(description="Tokens of a new sign-in. They are shown once.")
class AuthSession:
    id: strawberry.ID = attr("Id of the sign-in, for `sessionRevoke`.")
    token: str = attr("Access token: send it as `Authorization: Bearer TOKEN`.")
    refresh_token: str = attr("Single-use token for `sessionRefresh`.")
    expires_at: datetime = attr("When the access token ends.")
    refresh_expires_at: datetime = attr("When the refresh token ends.")


def _session(credentials: Credentials) -> AuthSession:
    return AuthSession(
        id=strawberry.ID(credentials.session.id),
        token=credentials.token,
        refresh_token=credentials.refresh_token,
        expires_at=credentials.session.expires_at,
        refresh_expires_at=credentials.refresh_expires_at,
    )


@strawberry.input(description="A new account.")
class UserRegisterInput:
    username: str = attr("2 to 50 letters, digits, dots, dashes or underscores.")
    email: str = attr("E-mail address.")
    password: str = attr("8 to 200 characters.")
    display_name: str | None = attr("The name to show; the username by default.", default=None)


@strawberry.type(description="Answer to `userRegister`.")
class UserRegisterPayload(Payload):
    session: AuthSession | None = answer("The first sign-in.")
    user: User | None = answer("The new account.")


@strawberry.input(description="A sign-in.")
class SessionCreateInput:
    login: str = attr("Username or e-mail address.")
    password: str = attr("Password.")


@strawberry.type(description="Answer to `sessionCreate`.")
class SessionCreatePayload(Payload):
    session: AuthSession | None = answer("The sign-in.")
    user: User | None = answer("Who signed in.")


@strawberry.type(description="Answer to `sessionRefresh`.")
class SessionRefreshPayload(Payload):
    session: AuthSession | None = answer("The renewed sign-in.")


@strawberry.type(description="Answer to `sessionRevoke`.")
class SessionRevokePayload(Payload):
    pass


@strawberry.input(description="Changes to your profile; what is left out stays.")
class UserUpdateInput:
    display_name: strawberry.Maybe[str] = attr("The name to show.")
    email: strawberry.Maybe[str] = attr("E-mail address.")


@strawberry.type(description="Answer to `userUpdate`.")
class UserUpdatePayload(Payload):
    user: User | None = answer("The changed account.")


@strawberry.input(description="A new password.")
class UserChangePasswordInput:
    current_password: str = attr("The password that holds now.")
    new_password: str = attr("8 to 200 characters.")


@strawberry.type(description="Answer to `userChangePassword`.")
class UserChangePasswordPayload(Payload):
    pass


@strawberry.input(description="The roles a user shall have.")
class UserRolesSetInput:
    user_id: strawberry.ID = attr("Whose roles.")
    roles: list[str] = attr("Names of all roles the user shall have.")


@strawberry.type(description="Answer to `userRolesSet`.")
class UserRolesSetPayload(Payload):
    user: User | None = answer("The user.")


@strawberry.input(description="Changes to a role; what is left out stays.")
class RoleUpdateInput:
    description: strawberry.Maybe[str | None] = attr("What it is for; null takes it away.")
    sandbox_quota: strawberry.Maybe[SandboxQuotaInput | None] = attr(
        "What it allows its holders' sandboxes in all; null: as the server is configured."
    )


@strawberry.type(description="Answer to `roleUpdate`.")
class RoleUpdatePayload(Payload):
    role: Role | None = answer("The changed role.")


@strawberry.type
class AccountsQuery:
    @strawberry.field(description="The signed-in user; null when anonymous.")
    @reads()
    async def viewer(self, info: Info) -> User | None:
        return await accounts.me(info)  # type: ignore[return-value]

    @strawberry.field(description="Accounts, newest first: all for an admin, else your own.")
    @reads()
    async def users(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[User]:
        return await accounts.users(info, PageArgs(first, after, last, before))  # type: ignore[return-value]

    @strawberry.field(description="The roles of this server; none when anonymous.")
    async def roles(self, info: Info) -> list[Role]:
        return await accounts.all_roles(info)  # type: ignore[return-value]


async def _register(info: Info, input: UserRegisterInput) -> dict[str, object]:
    credentials, user = await user_service.register(
        info.context.deps,
        username=input.username,
        email=input.email,
        password=input.password,
        display_name=input.display_name,
        client=info.context.client,
    )
    await info.context.sign_in(credentials.session)
    return {"session": _session(credentials), "user": user}


async def _create(info: Info, input: SessionCreateInput) -> dict[str, object]:
    credentials, user = await session_service.create(
        info.context.deps,
        login=input.login,
        password=input.password,
        client=info.context.client,
    )
    await info.context.sign_in(credentials.session)
    return {"session": _session(credentials), "user": user}


async def _refresh(
    info: Info,
    refresh_token: Annotated[str, arg("The refresh token of the last sign-in or renewal.")],
) -> dict[str, object]:
    credentials = await session_service.refresh(
        info.context.deps, refresh_token=refresh_token, client=info.context.client
    )
    return {"session": _session(credentials)}


async def _revoke(
    info: Info,
    id: Annotated[strawberry.ID | None, arg("Which sign-in; the present one by default.")] = None,
) -> dict[str, object]:
    await session_service.revoke(info.context.deps, info.context.viewer, session_id=id)
    return {}


async def _update(info: Info, input: UserUpdateInput) -> dict[str, object]:
    user = await user_service.update(
        info.context.deps,
        info.context.viewer,
        display_name=input.display_name.value if input.display_name else None,
        email=input.email.value if input.email else None,
    )
    return {"user": user}


async def _change_password(info: Info, input: UserChangePasswordInput) -> dict[str, object]:
    await user_service.change_password(
        info.context.deps,
        info.context.viewer,
        current_password=input.current_password,
        new_password=input.new_password,
    )
    return {}


async def _set_roles(info: Info, input: UserRolesSetInput) -> dict[str, object]:
    user = await role_service.assign(
        info.context.deps, info.context.viewer, user_id=input.user_id, roles=input.roles
    )
    return {"user": user}


async def _update_role(
    info: Info, id: Annotated[strawberry.ID, arg("Which role.")], input: RoleUpdateInput
) -> dict[str, object]:
    changes: dict[str, object] = {}
    if input.description is not None:
        changes["description"] = input.description.value
    if input.sandbox_quota is not None:
        quota = input.sandbox_quota.value
        changes["sandbox_quota"] = None if quota is None else vars(quota)
    context = info.context
    return {
        "role": await role_service.update(context.deps, context.viewer, role_id=id, changes=changes)
    }


@strawberry.type
class AccountsMutation:
    user_register = mutation(UserRegisterPayload, "Open an account and sign in.")(_register)
    session_create = mutation(SessionCreatePayload, "Sign in with a password.")(_create)
    session_refresh = mutation(
        SessionRefreshPayload, "Renew a sign-in. A used refresh token ends the sign-in."
    )(_refresh)
    session_revoke = mutation(SessionRevokePayload, "End a sign-in of yours.")(_revoke)
    user_update = mutation(UserUpdatePayload, "Change your profile.")(_update)
    user_change_password = mutation(
        UserChangePasswordPayload, "Change your password and end your other sign-ins."
    )(_change_password)
    role_update = mutation(RoleUpdatePayload, "Change what a role is for and allows (admin).")(
        _update_role
    )
    user_roles_set = mutation(UserRolesSetPayload, "Give a user exactly these roles (admin).")(
        _set_roles
    )
