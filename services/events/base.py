"""The bus every process speaks on: signals, short logs, and calls between nodes.

Two forms pass one contract suite: `local.LocalBus` (one process, logs kept in a SQLite file so that
they survive the process) and `redis.RedisBus` (any number of processes, one Redis connection for
all subscriptions of a process, Redis streams for the logs).

A *topic* is a string such as `conversation:cnv_…`. Two kinds of data travel on it:

* a **signal** (`publish`) reaches whoever is attached at that moment, and nobody else; a lost
  signal must never lose data, only time;
* an **entry** (`append`) is written to the topic's log with the next dense sequence number (1, 2,
  3 …) and then reaches whoever is attached. The log is kept for a time after its last entry.

And people may be **present** at a topic, as long as the process lives that says so.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from services.errors import UnavailableError

Json = Mapping[str, Any]


class BusUnavailableError(UnavailableError):
    """The bus does not answer (Redis is down, or the process is closing).

    Clients are told to try again; `detail`, which is also its text, is for the log.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("A part of the server does not answer right now; try again soon.", 1.0)
        self.detail = detail

    def __str__(self) -> str:
        """Give what happened, for the log."""
        return self.detail


class News(NamedTuple):
    """What a tap receives: a signal (`seq` 0) or a log entry (`seq` ≥ 1).

    `epoch` is the epoch of the entry's log ('' for a signal). `data` is shared by everybody who
    receives it: never change it.
    """

    topic: str
    seq: int
    data: Json
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """Entries of a topic's log after a position.

    `epoch` changes when the log was lost or begun anew: positions of another epoch mean nothing.
    An absent log has the epoch '' until its first entry; every entry names its epoch.
    `head` is the newest sequence number (0: empty). `is_complete` is False when entries after the
    asked position were already trimmed, or when the position lies beyond the head, so that the
    caller must fall back on a snapshot.
    """

    epoch: str
    head: int
    is_complete: bool
    entries: Sequence[News]


class Spent(NamedTuple):
    """What was spent in a window, what was just asked for included.

    It ends in `left_s` seconds: at `ends_s` seconds since 1970 by the clock of whoever counts, or
    None as long as nothing was spent. `is_granted` is False when the limit would have been passed,
    and nothing was added.
    """

    total: int
    ends_s: float | None
    left_s: float
    is_granted: bool


@dataclass(frozen=True, slots=True)
class Stats:
    """What a bus did in this process since it was started, and what it holds now.

    `received` counts the messages that came to this process, `delivered` the news handed to taps
    (one message to three taps counts three times), `losses` how often a tap lost what it had not
    read, `reconnects` how often a broken connection for subscriptions was replaced. `taps` and
    `queued` are the taps attached now and the news that wait in them.
    """

    received: int
    delivered: int
    losses: int
    reconnects: int
    taps: int
    queued: int


class Tap(Protocol):
    """An attachment to one or more topics, with a bounded queue of its own.

    `sink`, if set, is asked first about news that come while nothing is queued: those it answers
    True for are dealt with. It runs where news are delivered: it neither waits nor raises.
    `len(tap)` is the number of news queued.
    """

    sink: Callable[[News], bool] | None

    @property
    def is_closed(self) -> bool:
        """Whether the bus was closed."""

    def __len__(self) -> int:
        """Give the number of news queued."""

    def wake(self) -> None:
        """Let a waiting `get` return None now."""

    async def get(self, timeout_s: float) -> News | None:
        """Give the next news, or None after `timeout_s` seconds, or None when news were lost.

        After None check `lost()`: until it was asked, a tap that lost news gives None at once.
        One task reads a tap at a time. A cancelled `get` loses nothing. Raises
        BusUnavailableError once the bus is closed and `lost()` has said so.
        """

    def lost(self) -> bool:
        """Tell once whether news were dropped (queue overflow, reconnected bus) since last asked.

        The reader must then re-read what it follows; the queue has been emptied.
        """


class Bus(Protocol):
    """Signals, logs, presence and calls.

    All methods raise BusUnavailableError within seconds when the bus does not answer; it recovers
    by itself.
    """

    node_id: str

    @property
    def stats(self) -> Stats:
        """Give the counts of this process; takes time in proportion to the taps attached."""

    async def start(self) -> None:
        """Connect and begin to serve."""

    async def aclose(self) -> None:
        """Stop serving; taps wake with `lost()`."""

    async def ping(self) -> None:
        """Return when the bus answers."""

    async def publish(self, topic: str, data: Json) -> None:
        """Send a signal to everybody attached to `topic`."""

    async def append(self, topic: str, data: Json) -> int:
        """Write one entry to the topic's log, announce it, and give its sequence number.

        Entries appended one after the other by one task follow each other in the log; concurrent
        appends get dense numbers in some order. Cancelled, or after BusUnavailableError, the entry
        may be written or not. A sole writer that gets a number other than its last one plus one
        knows that the log began anew. Raises TypeError if `data` is not JSON.
        """

    async def read(self, topic: str, after: int = 0, limit: int | None = None) -> Log:
        """Read the log after sequence number `after`, oldest first, at most `limit` entries."""

    async def expire(self, topic: str, ttl_s: float) -> None:
        """Forget the topic's log `ttl_s` seconds from now (0: at once).

        An append before that time revives the log: it then lasts as long as any other.
        """

    def attach(
        self, *topics: str, max_items: int = 256, max_bytes: int = 1_048_576
    ) -> AbstractAsyncContextManager[Tap]:
        """Attach to topics. Whatever is published after entering is received (or reported lost).

        The tap queues at most `max_items` news and `max_bytes` bytes; beyond, it is emptied and
        reports lost. Publishers and other taps never wait for it.
        """

    async def present(self, topic: str, member: str, data: Json, ttl_s: float) -> None:
        """Say that `member` is present at `topic`, with `data`, until `absent` or `aclose`.

        The bus keeps it so, also over an outage; of a process that died it vanishes after `ttl_s`
        seconds (at most 3,600) and a few. Every change of who is present, or of what they carry, is
        announced on the topic by the signal `{"member": …, "is_present": …}`, whoever caused it.
        After BusUnavailableError, or cancelled, the member may be present for `ttl_s` seconds.
        """

    async def absent(self, topic: str, member: str) -> None:
        """Say that a member of this process has left. Nothing happens if it was not present.

        After BusUnavailableError, or cancelled, it is present for its `ttl_s` seconds at most.
        """

    async def members(self, topic: str) -> Mapping[str, Json]:
        """Give who is present at `topic`, in every process, and the data they carry."""

    def serve(self, method: str, handler: Callable[[Json], Awaitable[Json]]) -> None:
        """Answer calls of `method` addressed to this node."""

    async def call(self, node_id: str, method: str, data: Json, *, timeout_s: float = 30.0) -> Json:
        """Ask the node `node_id`. Raises NodeUnavailableError if it is not alive or silent.

        A call to this very node runs the handler directly. Cancelling the call, or its timeout,
        abandons the answer: the handler goes on. An exception of the handler that has a `code` and
        a `message` is raised again as CallError(code, message); any other one is logged there and
        raised as CallError("INTERNAL", …). A method nobody serves is CallError("UNKNOWN_METHOD"),
        too many calls at once CallError("BUSY").
        """

    async def nodes(self) -> set[str]:
        """Give the ids of the nodes alive now (heartbeat within the last few seconds)."""

    def unbroken_since(self) -> float:
        """Give the loop time since which no other node had reason to take this one for dead.

        What this node held at that moment, or later, nobody took from it because it seemed dead.
        It is the current time while that cannot be ruled out, and on a bus that does not run.
        """

    async def count(self, name: str, window_s: float) -> int:
        """Count one hit on `name` in a fixed window of `window_s` seconds; gives the total so far.

        The window begins with the first hit. For throttles and limits shared by all processes;
        counts do not survive the bus (a restart of the process, or of Redis without its data).
        """

    async def spend(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent:
        """Spend `amount` of the `limit` that `name` has in a fixed window of `window_s` seconds.

        Nothing is spent where the limit would be passed. The window begins with the first amount;
        an amount of 0 looks without spending. In one step, for limits shared by all processes.
        """

    def spend_at_once(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent | None:
        """Do as `spend` where that takes no waiting; None, with nothing spent, where it does."""

    async def forget(self, name: str) -> None:
        """Set the count of `name` back to nothing."""


class NodeTakenError(Exception):
    """Another process is alive under the id of this node."""


class NodeUnavailableError(BusUnavailableError):
    """The node called is not alive, or did not answer in time."""


class CallError(Exception):
    """The handler of a call refused; `code` and `message` are the handler's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
