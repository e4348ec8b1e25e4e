"""Operations, and events of subscriptions, that took long: a line of the log with their plan."""

import logging
import re
from collections import Counter as Counts
from collections.abc import Callable
from time import monotonic
from typing import Any

from prometheus_client import Counter

from app.graphql_documents import hash_of
from models.journal import Journal
from schema.execution import Prepared
from schema.execution.describing import describe
from schema.execution.plan import Plan

log = logging.getLogger("noosphere.slow")
_LINES, _EACH_S = 10, 6.0
"""Lines that may come at once, and the seconds after which one more may."""
_STATEMENTS = 10
_TEXT_CHARS, _READ_CHARS = 4_096, 20_000
_LIST = re.compile(r"\((\?|%s)(?:, ?(?:\?|%s))+\)")
_SLOW = Counter(
    "noosphere_slow_operations",
    "Operations, and events of subscriptions, that took longer than NOOSPHERE_SLOW_OPERATION.",
    ["type"],
)
_UNTOLD = Counter(
    "noosphere_slow_operations_untold", "Of those, how many the log was spared: too many came."
)


class SlowOperations:
    """Tells of executions that took `from_s` seconds or longer, a few lines a minute."""

    def __init__(self, from_s: float, *, clock: Callable[[], float] = monotonic) -> None:
        self.from_s = from_s
        self._clock = clock
        self._left = float(_LINES)
        self._looked_at = clock()
        self._untold = 0

    def tell(
        self,
        prepared: Prepared,
        plan: Plan | str,
        request_id: str,
        noted: Journal,
        seconds: float,
        outcome: str,
    ) -> None:
        """Count an execution, and log it unless many were just now."""
        _SLOW.labels(prepared.type).inc()
        if not self._may_tell():
            self._untold += 1
            _UNTOLD.inc()
            return
        untold, self._untold = self._untold, 0
        log.warning(
            "slow %s: %s",
            prepared.type,
            prepared.name or "without a name",
            extra={
                "request_id": request_id,
                "operation": prepared.name,
                "document": f"sha256:{hash_of(prepared.document.text)}",
                "seconds": round(seconds, 3),
                "outcome": outcome,
                "points": prepared.points,
                "statements": statements(noted),
                "executor": "plan" if isinstance(plan, Plan) else f"graphql-core ({plan})",
                "plan": describe(plan) if isinstance(plan, Plan) else None,
                "untold": untold,
            },
        )

    def _may_tell(self) -> bool:
        now = self._clock()
        self._left = min(float(_LINES), self._left + (now - self._looked_at) / _EACH_S)
        self._looked_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def statements(noted: Journal) -> dict[str, Any]:
    """Give how many statements there were, the time they took in all, and the longest of them."""
    seconds: Counts[str] = Counts()
    counts: Counts[str] = Counts()
    for text, took in noted.sent:
        line = shortened(text)
        seconds[line] += took  # type: ignore[assignment]
        counts[line] += 1
    return {
        "count": noted.count,
        "seconds": round(noted.seconds, 3),
        "longest": [
            {"seconds": round(took, 3), "count": counts[line], "text": line}
            for line, took in seconds.most_common(_STATEMENTS)
        ],
    }


def shortened(text: str) -> str:
    """Give a statement's text on one line, without its long lists of parameters."""
    line = _LIST.sub(r"(\1, …)", " ".join(text[:_READ_CHARS].split()))
    return line if len(line) <= _TEXT_CHARS else f"{line[:_TEXT_CHARS]}…"
