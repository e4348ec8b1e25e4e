"""Every input of every mutation, and what its senders are told."""

from collections.abc import Iterator
from typing import Any

from resolvers.uploads import UploadedFile
from tests.api.access.expectations import nothing
from tests.api.access.world import World

STEP = {
    "description": "Think",
    "tool": "recall",
    "arguments": {"query": "trees"},
    "dependsOn": [],
}


RESOURCES = {
    "cpuMillis": 100,
    "memoryBytes": 200_000_000,
    "diskBytes": 10_000_000,
    "pids": 20,
    "networkBytesPerSecond": None,
}


# Every input of every mutation with all of its fields.
FULL: dict[str, dict[str, Any]] = {
    "userRegister": {
        "input": {
            "username": "<new>",
            "email": "<new>@example.org",
            "password": "correct horse",
            "displayName": "Somebody",
        }
    },
    "sessionCreate": {"input": {"login": "owner", "password": "correct horse"}},
    "sessionRefresh": {"token": "nobody's"},
    "sessionRevoke": {"id": "<Session>"},
    "userUpdate": {"input": {"displayName": "Somebody", "email": "<new>@example.org"}},
    "userChangePassword": {
        "input": {"currentPassword": "correct horse", "newPassword": "correct donkey"}
    },
    "userRolesSet": {"input": {"userId": "<User>", "roles": ["user"]}},
    "rateLimitConfigSet": {"input": {"holderId": "<User>", "pointsPerMinute": 700_000}},
    "rateLimitConfigDelete": {"id": "<RateLimitConfig>"},
    "conversationCreate": {"input": {"title": "Trees"}},
    "conversationUpdate": {"id": "<Conversation>", "input": {"title": "Trees", "status": "ACTIVE"}},
    "conversationDelete": {"id": "<Conversation>"},
    "messageSend": {
        "input": {"conversationId": "<Conversation>", "content": "Hello", "idempotencyKey": "one"}
    },
    "messageStop": {"id": "<Message>"},
    "messageRetry": {"id": "<Message>"},
    "memoryCreate": {"input": {"content": "I like trees", "type": "SEMANTIC", "importance": 0.5}},
    "memoryUpdate": {
        "id": "<Memory>",
        "input": {"content": "I like trees", "type": "SEMANTIC", "importance": 0.5},
    },
    "memoryDelete": {"id": "<Memory>"},
    "planCreate": {"input": {"title": "Trees", "description": "All of them", "steps": [STEP]}},
    "planDelete": {"id": "<Plan>"},
    "planExecute": {"id": "<Plan>"},
    "planExecutionCancel": {"id": "<PlanExecution>"},
    "toolUpdate": {"id": "<Tool>", "input": {"isEnabled": True}},
    "roleUpdate": {
        "id": "<Role>",
        "input": {
            "description": "Somebody",
            "sandboxQuota": {
                "count": 1,
                "cpuMillis": 1000,
                "memoryBytes": 1_000_000_000,
                "diskBytes": 1_000_000_000,
            },
        },
    },
    "sandboxTemplateCreate": {
        "input": {
            "name": "<new>",
            "image": "x y",
            "description": "For trees",
            "language": "python",
            "resources": RESOURCES,
            "envVariables": [{"name": "A", "value": "b"}],
        }
    },
    "sandboxTemplateUpdate": {
        "id": "<SandboxTemplate>",
        "input": {
            "image": "example/none:1",
            "description": "For trees",
            "language": "python",
            "resources": RESOURCES,
            "envVariables": [{"name": "A", "value": "b"}],
            "isActive": True,
        },
    },
    "sandboxTemplateDelete": {"id": "<SandboxTemplate>"},
    "sandboxCreate": {
        "input": {
            "templateId": "<SandboxTemplate>",
            "resources": RESOURCES,
            "security": {
                "network": "NONE",
                "networkRules": [{"host": "example.org", "ports": [443]}],
                "syscalls": ["mount"],
                "mounts": ["/etc"],
                "capabilities": ["SYS_ADMIN"],
                "envVariables": [{"name": "A", "value": "b"}],
            },
            "timeoutSeconds": 60,
            "idleTimeoutSeconds": 60,
            "onExpiry": "STOP",
            "isPersistent": False,
            "snapshotId": None,
            "conversationId": "<Conversation>",
        }
    },
    "sandboxExecute": {
        "input": {
            "sandboxId": "<Sandbox>",
            "command": "true",
            "argv": None,
            "workingDir": ".",
            "environment": [{"name": "A", "value": "b"}],
            "stdin": "",
            "stdinBase64": None,
            "keepStdinOpen": False,
            "terminal": {"rows": 24, "cols": 80},
            "isBackground": False,
            "timeoutSeconds": 10,
            "outputLimitBytes": 1000,
        }
    },
    "sandboxExecutionCancel": {"id": "<SandboxExecution>"},
    "sandboxExecutionWrite": {
        "input": {
            "executionId": "<SandboxExecution>",
            "text": "a",
            "base64": None,
            "isLast": False,
        }
    },
    "sandboxExecutionSignal": {"input": {"executionId": "<SandboxExecution>", "signal": "TERM"}},
    "sandboxExecutionResize": {
        "input": {"executionId": "<SandboxExecution>", "terminal": {"rows": 24, "cols": 80}}
    },
    "sandboxProcessKill": {"input": {"sandboxId": "<Sandbox>", "pid": 2, "signal": "KILL"}},
    "sandboxUpdate": {
        "id": "<Sandbox>",
        "input": {
            "resources": RESOURCES,
            "idleTimeoutSeconds": 60,
            "network": "NONE",
            "networkRules": [{"host": "example.org", "ports": [443]}],
            "onExpiry": "STOP",
            "isPersistent": False,
        },
    },
    "sandboxStart": {"id": "<Sandbox>"},
    "sandboxSnapshot": {"input": {"sandboxId": "<Sandbox>", "name": "a"}},
    "sandboxSnapshotDelete": {"id": "<SandboxSnapshot>"},
    "sandboxPortOpen": {"input": {"sandboxId": "<Sandbox>", "port": 81, "description": "a"}},
    "sandboxPortShare": {"id": "<SandboxPort>", "input": {"seconds": 60, "revokesEarlier": False}},
    "sandboxPortClose": {"id": "<SandboxPort>"},
    "sandboxFileMakeDirectory": {"input": {"sandboxId": "<Sandbox>", "path": "a"}},
    "sandboxFileRename": {"input": {"sandboxId": "<Sandbox>", "path": "a", "newPath": "b"}},
    "sandboxPause": {"id": "<Sandbox>"},
    "sandboxResume": {"id": "<Sandbox>"},
    "sandboxStop": {"id": "<Sandbox>"},
    "sandboxDelete": {"id": "<Sandbox>"},
    "sandboxExtend": {"id": "<Sandbox>"},
    "sandboxFileWrite": {
        "input": {"sandboxId": "<Sandbox>", "path": "a", "content": "b", "encoding": "UTF8"}
    },
    "sandboxFileUpload": {
        "input": {
            "sandboxId": "<Sandbox>",
            "path": "a",
            "file": UploadedFile("a", None, nothing()),
        }
    },
    "sandboxFileRemove": {"input": {"sandboxId": "<Sandbox>", "path": "a", "isRecursive": False}},
}


# Who can do it at all; the others are told that before their input is looked at.
ADMINS = {
    "userRolesSet",
    "rateLimitConfigSet",
    "rateLimitConfigDelete",
    "roleUpdate",
    "toolUpdate",
    "sandboxTemplateCreate",
    "sandboxTemplateUpdate",
    "sandboxTemplateDelete",
}


# What is refused whatever the text: a wrong pair is a wrong pair, an unknown token unknown.
ALWAYS = {
    ("sessionCreate", "login"): ("INVALID", ["input", "password"]),
    ("sessionCreate", "password"): ("INVALID", ["input", "password"]),
    ("sessionRefresh", "token"): ("INVALID", ["refreshToken"]),
    ("userChangePassword", "currentPassword"): ("INVALID", ["input", "currentPassword"]),
    ("userRolesSet", "roles"): ("INVALID", ["input", "roles"]),
    ("planCreate", "tool"): ("NOT_FOUND", ["input", "steps", "0", "tool"]),
}


# An empty text is none: it is left out.
MAY_BE_EMPTY = {("planCreate", "description")}


CODES = {
    "empty": {"REQUIRED"},
    "blank": {"REQUIRED", "INVALID"},
    "too long": {"LIMIT"},
    "NUL": {"INVALID"},
    "half a surrogate pair": {"INVALID"},
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Give the places of a mutation's variables, with the kind of value each has."""
    if isinstance(value, dict) and path[-1:] != ("arguments",):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, str(index)))
    elif isinstance(value, str) and value.startswith("<") and "new" not in value:
        yield path, "id"
    elif isinstance(value, str) and not value.isupper():
        yield path, "text"


def put(value: Any, path: tuple[str, ...], what: Any) -> Any:
    """Give a copy of the variables with something else in one place."""
    if not path:
        return what
    if isinstance(value, list):
        copy = list(value)
        copy[int(path[0])] = put(copy[int(path[0])], path[1:], what)
        return copy
    return {**value, path[0]: put(value[path[0]], path[1:], what)}


def leaf_cases(kind: str) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (name, path)
        for name, variables in FULL.items()
        for path, found in leaves(variables)
        if found == kind
    ]


def asker(world: World, name: str) -> Any:
    return world.admin if name in ADMINS else world.owner


def errors_of(answer: Any) -> list[dict[str, Any]]:
    assert not answer.get("errors"), answer
    (payload,) = answer["data"].values()
    return list(payload["errors"])
