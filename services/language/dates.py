"""Where a text names days and times, in English and Korean: spans alone, never what they mean.

Every repetition is bounded or possessive, so that reading takes time linear in the text.
"""

import re
from typing import NamedTuple


class Found(NamedTuple):
    """A span of a text, `[start, end)` in characters, and what kind of thing it names."""

    start: int
    end: int
    type: str
    name: str


_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_WEEKDAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
_COUNT = r"(?:\d{1,4}|an?|one|two|three|four|five|six|seven|eight|nine|ten|twelve|few|a few)"
_SPAN = r"(?:minutes?|hours?|days?|weeks?|months?|years?)"
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)?"
_DAY = (
    r"(?:\d{4}-\d{2}-\d{2}(?!\d)"
    r"|\d{4}[/.]\d{1,2}[/.]\d{1,2}(?!\d)"
    r"|\d{1,2}[/.]\d{1,2}[/.](?:\d{4}|\d{2})(?!\d)"
    rf"|{_MONTH} {_ORDINAL}(?!\d|:)(?:,? \d{{4}}(?!\d))?"
    rf"|{_ORDINAL} (?:of )?{_MONTH}(?!\w)(?:,? \d{{4}}(?!\d))?"
    rf"|(?:the )?day (?:after tomorrow|before yesterday)|today|tonight|tomorrow|yesterday"
    rf"|(?:next|last|this|coming|every) (?:week(?:end)?|month|quarter|year|{_WEEKDAY}"
    rf"|(?:morning|afternoon|evening|night)|{_MONTH}(?!\w))|{_WEEKDAY}"
    rf"|in {_COUNT} {_SPAN}(?! of\b)|{_COUNT} {_SPAN} (?:ago|from now|later))"
)
_CLOCK = (
    r"(?:\d{1,2}:\d{2}(?::\d{2})?(?!\d)(?: ?[ap]\.?m\b\.?)?|\d{1,2} ?(?:[ap]m\b|[ap]\.m\.)"
    r"|\d{1,2} o'clock|noon|midnight)"
)
_PART = r"(?:morning|afternoon|evening|night)"
_ISO = re.compile(
    r"(?<![\w/.:-])\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?"
    r"(?:Z|[+-]\d{2}:?\d{2})?(?![A-Za-z0-9_:])"
)
_ENGLISH = re.compile(
    rf"(?<![\w/.:-])(?:"
    rf"(?P<both>{_DAY}(?: {_PART})?(?:,? (?:at |around )?{_CLOCK}| at \d{{1,2}}(?![\d:.%\w]))"
    rf"|{_CLOCK},? (?:on )?{_DAY})"
    rf"|(?P<day>{_DAY}(?: {_PART})?)"
    rf"|(?P<clock>{_CLOCK}))(?![A-Za-z0-9_])",
    re.IGNORECASE,
)

_KO_COUNT = r"(?:\d{1,4}|한|두|세|네|다섯|여섯|일곱|며칠|몇|하루|이틀|사흘|나흘|일주)"
_KO_WEEKDAY = r"[월화수목금토일]요일"
_KO_DAY = (
    rf"(?:\d{{4}}년(?: ?\d{{1,2}}월(?: ?\d{{1,2}}일)?)?|\d{{1,2}}월(?: ?\d{{1,2}}일)"
    rf"|\d{{4}}[.] ?\d{{1,2}}[.] ?\d{{1,2}}(?!\d)"
    rf"|\d{{4}}-\d{{2}}-\d{{2}}(?= ?(?:오전|오후|\d{{1,2}} ?시))"
    rf"|(?<![가-힣])(?:(?:지난|이번|다음|저번|매)\s?(?:주말|주|달|해)(?: ?{_KO_WEEKDAY})?"
    rf"|오늘|내일 ?모레|내일|모레|글피|어제|그저께|그제|작년|올해|내년|매일"
    rf"|(?:지난|이번|다음|저번|매주) ?{_KO_WEEKDAY}|{_KO_WEEKDAY})"
    rf"|(?<![가-힣\d]){_KO_COUNT} ?(?:분|시간|일|주일|주|개월|달|년)? ?(?:전|후|뒤)(?![가-힣]))"
)
_KO_PART = r"(?:오전|오후|아침|점심|저녁|밤|새벽|낮)"
_KO_HOUR = r"(?:\d{1,2}|열두|열한|열|한|두|세|네|다섯|여섯|일곱|여덟|아홉)"
# What may follow an hour; 시간 (hours), 시작, 시장 and others are no clock.
_KO_AFTER = r"(?=에|까지|부터|쯤|경|정각|로|으로|가|는|은|이|야|예요|의|[^가-힣]|$)"
_KO_CLOCK = (
    rf"(?:(?:(?<![가-힣])|(?<=[일후전]))(?:{_KO_PART} ?)?{_KO_HOUR} ?시"
    rf"(?: ?반(?![가-힣]{{2}})| ?\d{{1,2}} ?분(?: ?\d{{1,2}} ?초)?|{_KO_AFTER})"
    rf"|(?<![가-힣])(?:정오|자정)|{_KO_PART} ?\d{{1,2}}:\d{{2}}(?!\d))"
)
_KOREAN = re.compile(
    rf"(?<![\d./:-])(?:(?P<both>{_KO_DAY},? ?{_KO_CLOCK})|(?P<day>{_KO_DAY}(?: {_KO_PART}"
    rf"(?![가-힣]{{2}}))?)|(?P<clock>{_KO_CLOCK}))"
)
_TYPES = {"both": "DATETIME", "day": "DATE", "clock": "TIME"}


def iso(text: str) -> list[Found]:
    """Times of days in ISO 8601."""
    return [Found(m.start(), m.end(), "DATETIME", "datetime") for m in _ISO.finditer(text)]


def english(text: str) -> list[Found]:
    """Days and times in English words and in digits."""
    return _spans(_ENGLISH, text)


def korean(text: str) -> list[Found]:
    """Days and times in Korean."""
    return _spans(_KOREAN, text)


def _spans(pattern: re.Pattern[str], text: str) -> list[Found]:
    found = []
    for match in pattern.finditer(text):
        type_ = _TYPES[match.lastgroup or "day"]
        found.append(Found(match.start(), match.end(), type_, type_.lower()))
    return found
