"""Who may ask what, follow what and change what."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from resolvers.uploads import UploadedFile


@dataclass(frozen=True)
class Query:
    """A root field.

    LOOKUP  one object by its id: null for whoever may not see it
    LIST    one's own objects, an administrator's too; ALL: everybody's for an administrator
    SHARED  what everybody signed in sees, and nobody else
    ADMIN   what only an administrator sees
    ANY     objects of all kinds by their ids, tested by themselves
    """

    kind: str
    type: str = ""
    arguments: str = ""
    selection: str = "{ nodes { id } }"


QUERIES: dict[str, Query] = {
    "viewer": Query("LIST", "User", selection="{ id }"),
    "node": Query("ANY"),
    "nodes": Query("ANY"),
    "users": Query("ALL", "User"),
    "roles": Query("SHARED", "Role", selection="{ id }"),
    "conversation": Query("LOOKUP", "Conversation"),
    "conversations": Query("LIST", "Conversation"),
    "message": Query("LOOKUP", "Message"),
    "memory": Query("LOOKUP", "Memory"),
    "memories": Query("LIST", "Memory"),
    "memorySearch": Query(
        "LIST", "Memory", '(query: "sesame")', selection="{ memory { id } score }"
    ),
    "plan": Query("LOOKUP", "Plan"),
    "plans": Query("LIST", "Plan"),
    "planExecution": Query("LOOKUP", "PlanExecution"),
    "tools": Query("SHARED", "Tool"),
    "tool": Query("LOOKUP", "Tool"),
    "toolExecution": Query("LOOKUP", "ToolExecution"),
    "toolExecutions": Query("LIST", "ToolExecution"),
    "sandbox": Query("LOOKUP", "Sandbox"),
    "sandboxes": Query("LIST", "Sandbox"),
    "sandboxRemovals": Query("ADMIN", "SandboxRemoval"),
    "sandboxSnapshots": Query("LIST", "SandboxSnapshot"),
    "sandboxExecution": Query("LOOKUP", "SandboxExecution"),
    "sandboxTemplates": Query("SHARED", "SandboxTemplate"),
    "rateLimitConfigs": Query("ADMIN", "RateLimitConfig"),
    # What is left of one's own budget: tested with what is spent.
    "rateLimit": Query("BUDGET"),
    # Files are read from inside a running sandbox: tested with sandboxes.
    "sandboxFile": Query("FILE"),
}


@dataclass(frozen=True)
class Subscription:
    """A root field that follows an object; who may not see the object is told it is absent.

    Without a type it follows what belongs to whoever asks.
    """

    type: str = ""
    argument: str = ""
    selection: str = "{ __typename cursor }"
    is_resumable: bool = True

    @property
    def variable(self) -> str:
        """The declaration of the object's id among the variables."""
        return "$id: ID!, " if self.argument else ""

    @property
    def given(self) -> str:
        """The object's id among the arguments."""
        return f"{self.argument}: $id, " if self.argument else ""


SUBSCRIPTIONS: dict[str, Subscription] = {
    "conversationEvents": Subscription("Conversation", "conversationId"),
    "planExecutionEvents": Subscription("PlanExecution", "executionId"),
    "sandboxExecutionOutput": Subscription("SandboxExecution", "executionId"),
    "sandboxFileEvents": Subscription("Sandbox", "sandboxId"),
    "sandboxUsage": Subscription(
        "Sandbox", "sandboxId", selection="{ __typename sampledAt }", is_resumable=False
    ),
    "viewerEvents": Subscription(),
    "conversationPresence": Subscription(
        "Conversation",
        "conversationId",
        selection="{ __typename totalCount viewers { user { id } } }",
        is_resumable=False,
    ),
}

OK, ABSENT, FORBIDDEN, UNAUTHENTICATED = "OK", "NOT_FOUND", "FORBIDDEN", "UNAUTHENTICATED"


@dataclass(frozen=True)
class Mutation:
    """A root field that changes something, and the outcome for each kind of viewer.

    `variables` hold the types of the ids they need as `<Type>`; a reader's are their own. OK means
    that the viewer may: what the input or the state then leads to is tested elsewhere.
    """

    document: str
    variables: dict[str, object] = field(default_factory=dict)
    anonymous: str = UNAUTHENTICATED
    stranger: str = ABSENT
    owner: str = OK
    admin: str = ABSENT
    reader: str = FORBIDDEN


def _by_id(name: str, type_: str, **outcomes: str) -> Mutation:
    document = f"mutation($id: ID!) {{ {name}(id: $id) {{ errors {{ code message path }} }} }}"
    return Mutation(document, {"id": f"<{type_}>"}, **outcomes)


def _by_input(name: str, type_: str, input_: dict[str, object], **outcomes: str) -> Mutation:
    document = (
        f"mutation($input: {name[0].upper()}{name[1:]}Input!) "
        f"{{ {name}(input: $input) {{ errors {{ code message path }} }} }}"
    )
    return Mutation(document, {"input": input_}, **outcomes)


def _update(name: str, type_: str, input_: dict[str, object], **outcomes: str) -> Mutation:
    document = (
        f"mutation($id: ID!, $input: {name[0].upper()}{name[1:]}Input!) "
        f"{{ {name}(id: $id, input: $input) {{ errors {{ code message path }} }} }}"
    )
    return Mutation(document, {"id": f"<{type_}>", "input": input_}, **outcomes)


async def nothing() -> AsyncIterator[bytes]:
    """An empty file."""
    empty: tuple[bytes, ...] = ()
    for chunk in empty:
        yield chunk


_ANYBODY = {"anonymous": OK, "stranger": OK, "admin": OK, "reader": OK}
_MEMBERS = {"stranger": OK, "admin": OK, "reader": OK}
_WRITERS = {"stranger": OK, "admin": OK}
_ADMINS = {"stranger": FORBIDDEN, "owner": FORBIDDEN, "admin": OK}

MUTATIONS: dict[str, Mutation] = {
    "userRegister": _by_input(
        "userRegister",
        "User",
        {"username": "<new>", "email": "<new>@example.org", "password": "correct horse"},
        **_ANYBODY,
    ),
    "sessionCreate": _by_input(
        "sessionCreate", "User", {"login": "<new>", "password": "correct horse"}, **_ANYBODY
    ),
    "sessionRefresh": Mutation(
        "mutation($token: String!) { sessionRefresh(refreshToken: $token) {"
        " errors { code message path } } }",
        {"token": "nobody's token"},
        **_ANYBODY,
    ),
    # One's sign-ins are one's own, whatever one's roles.
    "sessionRevoke": _by_id("sessionRevoke", "Session", reader=OK),
    "userUpdate": _by_input("userUpdate", "User", {"displayName": "Somebody"}, **_MEMBERS),
    "userChangePassword": _by_input(
        "userChangePassword",
        "User",
        {"currentPassword": "wrong horse", "newPassword": "correct horse"},
        **_MEMBERS,
    ),
    "userRolesSet": _by_input(
        "userRolesSet", "User", {"userId": "<User>", "roles": ["user"]}, **_ADMINS
    ),
    "roleUpdate": _update("roleUpdate", "Role", {"description": "Somebody"}, **_ADMINS),
    "rateLimitConfigSet": _by_input(
        "rateLimitConfigSet",
        "RateLimitConfig",
        {"holderId": "<User>", "pointsPerMinute": 700_000},
        **_ADMINS,
    ),
    "rateLimitConfigDelete": _by_id("rateLimitConfigDelete", "RateLimitConfig", **_ADMINS),
    "conversationCreate": _by_input(
        "conversationCreate", "Conversation", {"title": "Trees"}, **_WRITERS
    ),
    "conversationUpdate": _update("conversationUpdate", "Conversation", {"title": "Trees"}),
    "conversationDelete": _by_id("conversationDelete", "Conversation"),
    "messageSend": _by_input(
        "messageSend", "Conversation", {"conversationId": "<Conversation>", "content": "Hello"}
    ),
    "messageStop": _by_id("messageStop", "Message", admin=OK),
    "messageRetry": _by_id("messageRetry", "Message"),
    "memoryCreate": _by_input("memoryCreate", "Memory", {"content": "I like trees"}, **_WRITERS),
    "memoryUpdate": _update("memoryUpdate", "Memory", {"importance": 0.7}),
    "memoryDelete": _by_id("memoryDelete", "Memory"),
    "planCreate": _by_input(
        "planCreate", "Plan", {"title": "Trees", "steps": [{"description": "Plant"}]}, **_WRITERS
    ),
    "planDelete": _by_id("planDelete", "Plan"),
    "planExecute": _by_id("planExecute", "Plan"),
    "planExecutionCancel": _by_id("planExecutionCancel", "PlanExecution", admin=OK),
    "toolUpdate": _update("toolUpdate", "Tool", {"isEnabled": True}, **_ADMINS),
    "sandboxTemplateCreate": _by_input(
        "sandboxTemplateCreate", "SandboxTemplate", {"name": "<new>", "image": "x y"}, **_ADMINS
    ),
    "sandboxTemplateUpdate": _update(
        "sandboxTemplateUpdate", "SandboxTemplate", {"description": "Somebody"}, **_ADMINS
    ),
    "sandboxTemplateDelete": _by_id("sandboxTemplateDelete", "SandboxTemplate", **_ADMINS),
    "sandboxCreate": _by_input("sandboxCreate", "Sandbox", {}, **_WRITERS),
    "sandboxExecute": _by_input(
        "sandboxExecute", "Sandbox", {"sandboxId": "<Sandbox>", "command": "true"}
    ),
    "sandboxExecutionCancel": _by_id("sandboxExecutionCancel", "SandboxExecution", admin=OK),
    "sandboxExecutionWrite": _by_input(
        "sandboxExecutionWrite",
        "SandboxExecution",
        {"executionId": "<SandboxExecution>", "text": "a"},
    ),
    "sandboxExecutionSignal": _by_input(
        "sandboxExecutionSignal",
        "SandboxExecution",
        {"executionId": "<SandboxExecution>", "signal": "TERM"},
    ),
    "sandboxExecutionResize": _by_input(
        "sandboxExecutionResize",
        "SandboxExecution",
        {"executionId": "<SandboxExecution>", "terminal": {"rows": 24, "cols": 80}},
    ),
    "sandboxProcessKill": _by_input(
        "sandboxProcessKill", "Sandbox", {"sandboxId": "<Sandbox>", "pid": 2}
    ),
    "sandboxUpdate": _update("sandboxUpdate", "Sandbox", {"onExpiry": "STOP"}),
    "sandboxPause": _by_id("sandboxPause", "Sandbox", admin=OK),
    "sandboxResume": _by_id("sandboxResume", "Sandbox", admin=OK),
    "sandboxStop": _by_id("sandboxStop", "Sandbox", admin=OK),
    "sandboxStart": _by_id("sandboxStart", "Sandbox"),
    "sandboxDelete": _by_id("sandboxDelete", "Sandbox", admin=OK),
    "sandboxSnapshot": _by_input("sandboxSnapshot", "Sandbox", {"sandboxId": "<Sandbox>"}),
    "sandboxSnapshotDelete": _by_id("sandboxSnapshotDelete", "SandboxSnapshot", admin=OK),
    "sandboxExtend": Mutation(
        "mutation($id: ID!) { sandboxExtend(id: $id, seconds: 60) {"
        " errors { code message path } } }",
        {"id": "<Sandbox>"},
    ),
    "sandboxFileWrite": _by_input(
        "sandboxFileWrite", "Sandbox", {"sandboxId": "<Sandbox>", "path": "a", "content": "b"}
    ),
    "sandboxFileUpload": _by_input(
        "sandboxFileUpload",
        "Sandbox",
        {"sandboxId": "<Sandbox>", "path": "a", "file": UploadedFile("a", None, nothing())},
    ),
    "sandboxFileMakeDirectory": _by_input(
        "sandboxFileMakeDirectory", "Sandbox", {"sandboxId": "<Sandbox>", "path": "a"}
    ),
    "sandboxFileRename": _by_input(
        "sandboxFileRename", "Sandbox", {"sandboxId": "<Sandbox>", "path": "a", "newPath": "b"}
    ),
    "sandboxFileRemove": _by_input(
        "sandboxFileRemove", "Sandbox", {"sandboxId": "<Sandbox>", "path": "a"}
    ),
    "sandboxPortOpen": _by_input(
        "sandboxPortOpen", "Sandbox", {"sandboxId": "<Sandbox>", "port": 81}
    ),
    "sandboxPortClose": _by_id("sandboxPortClose", "SandboxPort"),
    "sandboxPortShare": _update("sandboxPortShare", "SandboxPort", {"seconds": 60}),
}
