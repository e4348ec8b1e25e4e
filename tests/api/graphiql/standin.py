"""A small server with the product's operation names, for what the product cannot be made to do.

Its tokens live as long as a test says, it can cut its sockets at a chosen moment, and it records
what it was sent, so that refreshing and resuming can be observed from both sides.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import strawberry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.types import Info

from app.graphiql import HEADERS, Assets, page
from tests.api.graphiql.contract import (
    AuthSession,
    Conversation,
    ConversationCreateInput,
    ConversationEvent,
    ConversationPayload,
    ConversationReset,
    Message,
    MessageAdded,
    MessageCompleted,
    MessageDelta,
    MessageFailed,
    MessagePayload,
    MessageSendInput,
    Node,
    SessionCreateInput,
    SessionPayload,
    ToolCallFinished,
    ToolCallStarted,
    User,
    UserError,
    UserRegisterInput,
)


class Log:
    """Events with dense cursors, and news of each; one per conversation or execution."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.news = asyncio.Condition()
        self.ended = False

    async def add(self, make: Any, *, end: bool = False, **fields: Any) -> None:
        async with self.news:
            self.events.append(make(cursor=f"c{len(self.events) + 1}", **fields))
            self.ended = end
            self.news.notify_all()

    async def read(self, after: str | None) -> AsyncIterator[Any]:
        position = int(after[1:]) if after else 0
        while True:
            async with self.news:
                while len(self.events) <= position and not self.ended:
                    await self.news.wait()
                fresh = self.events[position:]
            for event in fresh:
                position += 1
                yield event
            if self.ended and position >= len(self.events):
                return


class State:
    """All that the stand-in holds, and the knobs of the tests."""

    def __init__(self, *, token_lifetime_s: float = 900) -> None:
        self.token_lifetime_s = token_lifetime_s
        self.users: dict[str, tuple[User, str]] = {}
        self.tokens: dict[str, tuple[User, datetime]] = {}
        self.refresh_tokens: dict[str, User] = {}
        self.refreshes = 0
        self.reused_refresh_tokens = 0
        self.stale_requests = 0
        self.http_authorizations: list[str | None] = []
        self.socket_authorizations: list[str | None] = []
        self.logs: dict[str, Log] = {}
        self.messages: dict[str, Message] = {}
        self.resumed_after: list[str | None] = []
        self.sockets: set[WebSocket] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.numbers = itertools.count(1)

    def new_id(self, prefix: str) -> strawberry.ID:
        return strawberry.ID(f"{prefix}_{next(self.numbers):026d}")

    def open_session(self, user: User) -> AuthSession:
        number = next(self.numbers)
        until = datetime.now(UTC) + timedelta(seconds=self.token_lifetime_s)
        self.tokens[f"token-{number}"] = (user, until)
        self.refresh_tokens[f"refresh-{number}"] = user
        return AuthSession(
            token=f"token-{number}", refresh_token=f"refresh-{number}", expires_at=until
        )

    def user_of(self, header: str | None) -> User | None:
        user, until = self.tokens.get((header or "").removeprefix("Bearer "), (None, None))
        return user if until and until > datetime.now(UTC) else None

    def only_log(self) -> Log:
        (log,) = self.logs.values()
        return log

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def _state(info: Info) -> State:
    state: State = info.context["state"]
    return state


def _refused(info: Info) -> list[UserError]:
    if info.context["user"] is not None:
        return []
    return [UserError(code="FORBIDDEN", message="Sign in first.", path=[])]


@strawberry.type
class Query:
    @strawberry.field
    def viewer(self, info: Info) -> User | None:
        user: User | None = info.context["user"]
        return user

    @strawberry.field
    def node(self, info: Info, id: strawberry.ID) -> Node | None:
        return _state(info).messages.get(id)


async def _answer(state: State, log: Log, content: str, reply: Message) -> None:
    text = {"run": "It printed 1024.", "wha": "You prefer metric units."}.get(
        content[:3], "Noted: you prefer metric units."
    )
    offset = 0
    for word in text.split(" "):
        await asyncio.sleep(0.12)
        piece = word if offset == 0 else f" {word}"
        await log.add(MessageDelta, offset=offset, text=piece)
        offset += len(piece)
    reply.content, reply.status = text, "COMPLETED"
    await log.add(MessageCompleted, message=reply)


@strawberry.type
class Mutation:
    @strawberry.mutation
    def user_register(self, info: Info, input: UserRegisterInput) -> SessionPayload:
        state = _state(info)
        if input.username in state.users:
            message = "The user name is taken."
            return SessionPayload(errors=[UserError(code="CONFLICT", message=message, path=[])])
        user = User(id=state.new_id("user"), username=input.username, created_at=datetime.now(UTC))
        state.users[input.username] = (user, input.password)
        return SessionPayload(session=state.open_session(user), user=user)

    @strawberry.mutation
    def session_create(self, info: Info, input: SessionCreateInput) -> SessionPayload:
        state = _state(info)
        user, password = state.users.get(input.login, (None, None))
        if user is None or password != input.password:
            message = "The user name or the password is wrong."
            return SessionPayload(errors=[UserError(code="INVALID", message=message, path=[])])
        return SessionPayload(session=state.open_session(user), user=user)

    @strawberry.mutation
    def session_refresh(self, info: Info, refresh_token: str) -> SessionPayload:
        state = _state(info)
        user = state.refresh_tokens.pop(refresh_token, None)
        if user is None:
            state.reused_refresh_tokens += 1
            message = "The refresh token is unknown."
            return SessionPayload(errors=[UserError(code="INVALID", message=message, path=[])])
        state.refreshes += 1
        return SessionPayload(session=state.open_session(user), user=user)

    @strawberry.mutation
    def session_revoke(self, info: Info, id: strawberry.ID | None = None) -> SessionPayload:
        return SessionPayload()

    @strawberry.mutation
    def conversation_create(
        self,
        info: Info,
        input: ConversationCreateInput,
    ) -> ConversationPayload:
        if errors := _refused(info):
            return ConversationPayload(errors=errors)
        state = _state(info)
        conversation = Conversation(
            id=state.new_id("conv"),
            title=input.title,
            status="ACTIVE",
            created_at=datetime.now(UTC),
        )
        state.logs[conversation.id] = Log()
        return ConversationPayload(conversation=conversation)

    @strawberry.mutation
    async def message_send(self, info: Info, input: MessageSendInput) -> MessagePayload:
        if errors := _refused(info):
            return MessagePayload(errors=errors)
        state = _state(info)
        log = state.logs[input.conversation_id]
        message = Message(
            id=state.new_id("msg"), role="USER", content=input.content, status="COMPLETED"
        )
        reply = Message(id=state.new_id("msg"), role="ASSISTANT", content="", status="PENDING")
        state.messages[reply.id] = reply
        await log.add(MessageAdded, message=message)
        state.spawn(_answer(state, log, input.content, reply))
        return MessagePayload(message=message, reply=reply)


async def _follow(info: Info, log_id: str, after: str | None) -> AsyncIterator[Any]:
    state = _state(info)
    state.resumed_after.append(after)
    async for event in state.logs[log_id].read(after):
        yield event


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def conversation_events(
        self, info: Info, conversation_id: strawberry.ID, after: str | None = None
    ) -> AsyncIterator[ConversationEvent]:
        async for event in _follow(info, conversation_id, after):
            yield event


SCHEMA = strawberry.Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    types=[
        Message,
        ConversationReset,
        MessageAdded,
        ToolCallStarted,
        ToolCallFinished,
        MessageDelta,
        MessageCompleted,
        MessageFailed,
    ],
)


class _Endpoint(GraphQL[Any, Any]):
    def __init__(self, state: State) -> None:
        super().__init__(SCHEMA, graphql_ide=None)
        self.state = state

    async def get_context(self, request: Any, response: Any) -> Any:
        if isinstance(request, WebSocket):
            self.state.loop = asyncio.get_running_loop()
            self.state.sockets.add(request)
            return {"state": self.state, "user": None}
        header = request.headers.get("authorization")
        user = self.state.user_of(header)
        self.state.http_authorizations.append(header)
        self.state.stale_requests += header is not None and user is None
        return {"state": self.state, "user": user}

    async def on_ws_connect(self, context: dict[str, Any]) -> Any:
        header = (context.get("connection_params") or {}).get("Authorization")
        self.state.socket_authorizations.append(header)
        context["user"] = self.state.user_of(header)
        return strawberry.UNSET


async def cut_sockets(state: State, code: int) -> None:
    """Close every open socket."""
    for one in list(state.sockets):
        state.sockets.discard(one)
        with contextlib.suppress(RuntimeError):
            await one.close(code)


def create(state: State) -> Starlette:
    """Give the stand-in's application."""
    endpoint = _Endpoint(state)

    async def graphiql(_request: Request) -> Response:
        return Response(page(), headers=dict(HEADERS), media_type="text/html")

    return Starlette(
        routes=[
            Route("/graphql", graphiql, methods=["GET"]),
            Route("/graphql", endpoint, methods=["POST"]),
            WebSocketRoute("/graphql", endpoint),
            Mount("/graphiql", Assets()),
        ]
    )
