"""A goal taken apart into steps: what its words enumerate, else an honest generic outline.

Nothing is invented about the subject. Without a model a goal in one phrase can only be framed:
clarify, gather, do, review.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.language import calculations, scripts

MIN_STEPS = 2
MAX_STEPS = 8
_MAX_GOAL_CHARS = 4_000
_MAX_STEP_CHARS = 500


@dataclass(frozen=True, slots=True)
class OutlineStep:
    """One step. `tool` None means a prompt to the assistant; `depends_on` holds earlier indexes."""

    description: str
    tool: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    depends_on: list[int] = field(default_factory=list)


_NUMBERED = re.compile(
    r"(?:^|(?<=\s))(?:(?P<n>\d{1,2})[.)]|[①-⑳]|(?:step|단계)\s*(?P<s>\d{1,2})\s*[:.)])\s+"
    r"|(?:^|(?<=\s))(?P<k>\d{1,2})\s*단계\s*[:.)]\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*[-*•]\s+", re.MULTILINE)
# What follows happens after what went before.
_THEN = re.compile(
    r"\s*[,;.]?\s*(?:\b(?:and\s+)?(?:then|after that|afterwards|next|subsequently)\b"
    r"|\band finally\b|\bfinally\b"
    r"|\blastly\b|→|->|=>)\s*[,:]?\s*"
    r"|\s*[,.;]?\s*(?:그리고\s*나서|그런\s*다음|그\s*다음에?는?|그리고|그\s*후에?|이후에?"
    r"|다음으로|다음에|마지막으로|끝으로)[\s,:]+"
    r"|(?<=[가-힣])(?:\s*한\s*다음에?|\s*한\s*뒤에?|\s*한\s*후에?|하고\s*나서|고\s*나서)[\s,]+"
    r"|(?<=[가-힣]고),\s*",
    re.IGNORECASE,
)
_FIRST = re.compile(
    r"^\s*(?:first(?:ly)?(?: of all)?|to start|to begin with|start by|begin by|우선|먼저"
    r"|첫째로?|첫 번째로)(?![A-Za-z])[\s,:]*",
    re.IGNORECASE,
)
_PARALLEL = re.compile(
    r"[\s,]*\b(?:in parallel|at the same time|simultaneously|concurrently|side by side)\b[\s,:]*"
    r"|\s*(?:동시에|병렬로|병행해서|병행하여|나란히)\s*",
    re.IGNORECASE,
)
_AND = re.compile(
    r"\s*,\s*(?:and\s+)?|\s+and\s+|\s+as well as\s+|\s*(?:와|과|및|하고|랑)\s+|\s*그리고\s+",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^\s*(?:(?:please|can you|could you|i (?:want|need|would like) to|i'd like to|we (?:want"
    r"|need|have) to"
    r"|make a plan (?:to|for)|plan (?:to|for|how to)|to)\b[\s,:]*)+",
    re.IGNORECASE,
)


def _tidy(text: str, is_first_lead: bool = True) -> str:
    """A step's wording: no connecting words at either end, a capital first."""
    text = _FIRST.sub("", text.strip(" \t\n,;.·"))
    if is_first_lead:
        text = _LEAD.sub("", text)
    text = re.sub(r"^(?:and|then|또|그리고)\b\s*|\s+(?:and|then)$", "", text, flags=re.IGNORECASE)
    text = " ".join(text.split()).strip(" ,;.")
    text = re.sub(r"(?<=[가-힣])고$", "기", re.sub(r"(?<=[가-힣])(?:을|를)(?:\s*하고)?$", "", text))
    return (text[:1].upper() + text[1:])[:_MAX_STEP_CHARS]


def _listed(goal: str) -> list[str]:
    """The items of a numbered or bulleted list; empty if there is no list of at least two."""
    marks = list(_NUMBERED.finditer(goal))
    numbers = [int(mark["n"] or mark["s"] or mark["k"] or 0) for mark in marks]
    is_counted = numbers[:2] == [1, 2] or numbers[:2] == [0, 0]
    if len(marks) < MIN_STEPS or not is_counted:
        marks = list(_BULLET.finditer(goal))
    if len(marks) < MIN_STEPS:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(goal)]
    return [goal[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]


def _is_unordered(goal: str) -> bool:
    return not _NUMBERED.search(goal) and _PARALLEL.search(goal) is not None


def _stages(goal: str) -> list[list[str]]:
    """The goal as stages in order; the parts of one stage do not wait for each other."""
    listed = _listed(goal)
    if listed:
        if _is_unordered(goal):
            return [listed]
        return [_parallel(item) for item in listed]
    parts = [part for part in _THEN.split(goal) if re.search(r"\w", part)]
    stages = [_parallel(part) for part in parts]
    # "A and B in parallel, then C": only the clause that says so is split.
    return [stage for stage in stages if stage]


def _parallel(part: str) -> list[str]:
    if not _PARALLEL.search(part):
        return [part]
    plain = _PARALLEL.sub(" ", part)
    pieces = [piece for piece in _AND.split(plain) if piece and re.search(r"\w", piece)]
    return pieces if len(pieces) > 1 else [plain]


def _step(text: str, depends_on: Sequence[int]) -> OutlineStep:
    """A step of one clause; code in backticks is run."""
    blocks = scripts.code_blocks(text)
    description = _tidy(scripts.without_code(text, " ") if scripts.has_fence(text) else text)
    if not blocks:
        return OutlineStep(description, depends_on=list(depends_on))
    code, language = blocks[0]
    arguments = {"code": code} | ({"language": language} if language else {})
    if language in {None, "python"}:
        arguments["code"] = calculations.shown(code)
    if len(description.split()) < 2:
        description = (
            "코드 실행" if scripts.has_hangul(scripts.without_code(text)) else "Run the code"
        )
    return OutlineStep(description[:_MAX_STEP_CHARS], "run_code", arguments, list(depends_on))


def _joined(stages: list[list[str]]) -> list[OutlineStep]:
    steps: list[OutlineStep] = []
    before: list[int] = []
    for stage in stages:
        room = MAX_STEPS - len(steps)
        if room <= 0:
            break
        made = [_step(text, before) for text in stage[:room]]
        first = len(steps)
        steps += made
        before = list(range(first, len(steps)))
    return steps


def _limited(stages: list[list[str]]) -> list[list[str]]:
    """At most eight parts: what is beyond is told in the last one, not dropped."""
    total = sum(len(stage) for stage in stages)
    if total <= MAX_STEPS:
        return stages
    kept: list[list[str]] = []
    count = 0
    for position, stage in enumerate(stages):
        if count + len(stage) >= MAX_STEPS:
            rest = [text for later in stages[position:] for text in later]
            room = MAX_STEPS - count - 1
            if room and len(stage) > room:
                return [*kept, stage[:room], ["; ".join(map(_tidy, rest[room:]))]]
            return [*kept, ["; ".join(map(_tidy, rest))]]
        kept.append(stage)
        count += len(stage)
    return kept


def _generic(goal: str) -> list[OutlineStep]:
    topic = _tidy(goal) or goal
    if scripts.has_hangul(goal):
        texts = (
            f"목표를 분명히 하기: {topic} — 바라는 결과와 조건, 기한 정리",
            f"필요한 정보와 자료 모으기: {topic}",
            f"예상되는 위험과 제약 확인하기: {topic}",
            f"실행하기: {topic}",
            "결과를 목표와 비교해 검토하고 남은 일 정리하기",
        )
    else:
        texts = (
            f"Clarify the goal: {topic}. State the wanted result, constraints and date",
            f"Gather what is needed: information, materials and people for: {topic}",
            f"Check risks and constraints of: {topic}",
            f"Do it: {topic}",
            "Review the result against the goal and list what is left",
        )
    after: tuple[list[int], ...] = ([], [0], [0], [1, 2], [3])
    return [
        OutlineStep(text[:_MAX_STEP_CHARS], depends_on=depends)
        for text, depends in zip(texts, after, strict=True)
    ]


def outline(goal: str) -> list[OutlineStep]:
    """Steps for a goal, 2 to 8, each depending only on earlier ones.

    Lists, "first … then …", "A and B in parallel" and their Korean forms become steps in that
    order; code in backticks becomes a `run_code` step. Otherwise: clarify, then gather and check in
    parallel, do, review. Raises ValueError for an empty goal.
    """
    goal = scripts.clean(goal[:_MAX_GOAL_CHARS]).strip()
    if not re.search(r"\w", goal):
        raise ValueError("A plan needs a goal.")
    fences: list[str] = []

    def hide(match: re.Match[str]) -> str:
        fences.append(match[0])
        return f"\ue000{len(fences) - 1}\ue001"

    # Code may hold any connecting word; it is put aside while the prose is cut.
    hidden = re.sub(r"(`{3,}).*?\1|`[^`\n]+`", hide, goal, flags=re.DOTALL)

    def shown(text: str) -> str:
        return re.sub(r"\ue000(\d+)\ue001", lambda m: fences[int(m[1])], text)

    given = [[shown(text) for text in stage] for stage in _stages(hidden)]
    said = [[text for text in stage if re.search(r"\w", _tidy(text))] for stage in given]
    stages = [stage for stage in said if stage]
    if sum(len(stage) for stage in stages) >= MIN_STEPS:
        return _joined(_limited(stages))
    if fences:
        run = _step(goal, [])
        is_korean = scripts.has_hangul(scripts.without_code(goal))
        review = "출력 결과를 검토하기" if is_korean else "Review the output"
        return [run, OutlineStep(review, depends_on=[0])]
    return _generic(goal)
