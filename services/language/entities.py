"""Things a text names whose form tells what they are: links, addresses, numbers, dates, code.

Patterns are tried from the most to the least certain; what one took is hidden from the next, so
that no two overlap. Every repetition is bounded or possessive: reading takes time linear in the
text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from models.base import PREFIXES
from services.language import dates
from services.language.dates import Found

READ_CHARS = 10_000
MAX_ENTITIES = 200
_HIDDEN = "\x00"


@dataclass(frozen=True, slots=True)
class Entity:
    """A span of a text: `text[start:end] == value`, in characters.

    `type` is one of CODE, URL, EMAIL, ID, FILE, DATE, TIME, DATETIME, PHONE, MONEY, NUMBER; `name`
    a narrower kind, in lower case.
    """

    type: str
    name: str
    value: str
    start: int
    end: int


def find(text: str) -> list[Entity]:
    """Entities of the first 10,000 characters, by position, at most 200; they never overlap."""
    seen = text[:READ_CHARS]
    taken: list[Found] = []
    for look in _LOOKS:
        found = list(look(seen))
        taken += found
        seen = _hide(seen, found)
    return [
        Entity(item.type, item.name, text[item.start : item.end], item.start, item.end)
        for item in sorted(taken)[:MAX_ENTITIES]
    ]


def _hide(text: str, found: Iterable[Found]) -> str:
    parts, position = [], 0
    for start, end, _, _ in found:
        parts += [text[position:start], _HIDDEN * (end - start)]
        position = end
    return "".join([*parts, text[position:]])


_OPENING = re.compile(
    r"(?<![`~])(?P<ticks>`{3,}+|~{3,}+)[ \t]*+(?P<info>[\w+#.-]{0,30})[^\n`]*+(?=\n)"
)
_CLOSING = re.compile(r"^[ \t]*+(?P<ticks>`{3,}+|~{3,}+)", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)(?P<ticks>`{1,2}+)(?P<code>[^`\x00]++)(?P=ticks)(?!`)")


def _fenced(text: str) -> Iterator[Found]:
    """The insides of fenced blocks; one that is never closed reaches to the end."""
    position = 0
    while opening := _OPENING.search(text, position):
        line_end = opening.end()
        closing = next(
            (m for m in _CLOSING.finditer(text, line_end) if m["ticks"] == opening["ticks"]), None
        )
        end = closing.start() if closing else len(text)
        position = closing.end() if closing else len(text)
        yield from _stripped(text, line_end, end, opening["info"].lower() or "code")


def _inline(text: str) -> Iterator[Found]:
    for match in _INLINE.finditer(text):
        yield from _stripped(text, match.start("code"), match.end("code"), "code")


def _stripped(text: str, start: int, end: int, name: str) -> Iterator[Found]:
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    if end > start:
        yield Found(start, end, "CODE", name)


_URL = re.compile(
    r"(?<![A-Za-z0-9_@/.])(?:(?P<scheme>https?|ftp|sftp|wss?|ssh|git)://|www\.)"
    r"[^\s<>\"'`|\\^{}\x00]++",
    re.IGNORECASE,
)
# A Korean particle written onto a link is no part of it.
_PARTICLE = re.compile(
    r"(?<=[!-~])(?:에서는|에서|에는|에게|으로|까지|부터|이라는|라는|을|를|은|는|이|가|에|로|의|와|과|도)$"
)


def _urls(text: str) -> Iterator[Found]:
    for match in _URL.finditer(text):
        value = match[0].rstrip(".,;:!?…。、*_~")
        while value.endswith((")", "]")):
            opening = "(" if value[-1] == ")" else "["
            if value.count(opening) >= value.count(value[-1]):
                break
            value = value[:-1].rstrip(".,;:!?")
        value = _PARTICLE.sub("", value)
        host = value.partition("://")[2] or value.removeprefix("www.")
        if host and host[0].isalnum() | (host[0] == "["):
            name = (match["scheme"] or "http").lower()
            yield Found(match.start(), match.start() + len(value), "URL", name)


_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}+@"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_ID = re.compile(
    r"(?<![A-Za-z0-9_-])(?:(?P<prefix>[a-z]{3,8})_[0-7][0-9a-hjkmnp-tv-z]{25}"
    r"|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})(?![A-Za-z0-9_-])"
)


def _emails(text: str) -> Iterator[Found]:
    for match in _EMAIL.finditer(text):
        yield Found(match.start(), match.end(), "EMAIL", "email")


def _ids(text: str) -> Iterator[Found]:
    for match in _ID.finditer(text):
        table = PREFIXES.get(match["prefix"] or "")
        name = "uuid" if match["prefix"] is None else "id"
        if table is not None:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", table.__name__).lower()
        yield Found(match.start(), match.end(), "ID", name)


_EXTENSIONS = (
    "py|pyi|ipynb|js|mjs|jsx|ts|tsx|json|jsonl|ya?ml|toml|ini|cfg|conf|env|lock|xml|html?|css|scss"
    "|md|rst|txt|log|csv|tsv|xlsx?|docx?|pptx?|hwpx?|pdf|epub|png|jpe?g|gif|svg|webp|bmp|ico|mp3"
    "|mp4|wav|ogg|flac|mov|mkv|avi|webm|zip|tar|gz|tgz|bz2|xz|7z|rar|sql|sqlite3?|db|parquet|sh"
    "|bash|zsh|ps1|bat|exe|dll|so|go|rs|rb|java|kt|c|h|cc|cpp|hpp|cs|php|swift|scala|lua|pl|r"
    "|proto|graphql|tf|whl|deb|rpm|iso|bak|tmp|pem|crt|pub"
)
_PATH = re.compile(r"(?<![\w./~\\:@+-])[\w./~\\:+-]++")
_EXTENSION = re.compile(rf"(?<=[\w)])\.(?P<name>{_EXTENSIONS})(?![A-Za-z0-9_])", re.IGNORECASE)
_ROOTED = re.compile(
    r"(?:(?:~|\.{1,2})?(?:/[A-Za-z0-9_.+-]{1,255}+){2,40}+/?|(?:~|\.{1,2})(?:/[A-Za-z0-9_.+-]++)/?"
    r"|[A-Za-z]:\\[\w.+-]++(?:\\[\w.+-]++){0,40}+)"
)
_PRODUCTS = frozenset(
    {"node.js", "next.js", "vue.js", "react.js", "express.js", "three.js", "d3.js"}
)


def _files(text: str) -> Iterator[Found]:
    for match in _PATH.finditer(text):
        token = match[0].rstrip(".:-+~\\")
        extension = max(_EXTENSION.finditer(token), key=re.Match.end, default=None)
        if extension and token[: extension.end()].lower() not in _PRODUCTS:
            end = match.start() + extension.end()
            yield Found(match.start(), end, "FILE", extension["name"].lower())
        elif rooted := _ROOTED.match(token):
            value = rooted[0].rstrip(".")
            if any(character.isalpha() for character in value):
                yield Found(match.start(), match.start() + len(value), "FILE", "path")


_PHONE = re.compile(
    r"(?<![A-Za-z0-9_.,/+-])(?P<plus>\+\d{1,3}[ .-]?)?(?P<area>\(\d{1,4}\)[ .-]?)?"
    r"\d{1,4}(?:[ .-]\d{2,4}){1,4}(?![A-Za-z0-9_]|[.,-]\d)"
    r"|(?<![A-Za-z0-9_.,/+-])(?:\+\d{9,15}|01[016789]\d{7,8})(?![A-Za-z0-9_]|[.,-]\d)"
)
# Korean numbers of companies, such as 1588-1234.
_SERVICE = re.compile(r"1[568]\d{2}-\d{4}")


def _phones(text: str) -> Iterator[Found]:
    for match in _PHONE.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        is_marked = match[0][0] in "+(0" or len(re.findall(r"[.-]", match[0])) > 1
        if (8 <= len(digits) <= 15 and is_marked) or _SERVICE.fullmatch(match[0]):
            yield Found(match.start(), match.end(), "PHONE", "phone")


_AMOUNT = r"\d[\d,]{0,20}+(?:\.\d{1,12}+)?"
_SCALE = r"(?: ?(?:k|m|bn|thousand|million|billion|trillion)\b)?"
_MONEY = re.compile(
    rf"(?<![A-Za-z0-9_.,])(?:(?:US|CA|AU)?[$€£¥₩₹] ?{_AMOUNT}{_SCALE}"
    rf"|(?:USD|EUR|KRW|JPY|GBP|CNY) ?{_AMOUNT}{_SCALE}"
    rf"|{_AMOUNT}{_SCALE} ?(?:[$€£¥₩]|(?:USD|EUR|KRW|JPY|GBP|CNY|dollars?|euros?|won|yen|pounds"
    r"|bucks|cents?)\b)"
    rf"|(?:{_AMOUNT} ?(?:조|억|천만|백만|십만|만|천|백)? ?){{1,4}}(?:원(?!인|리|하|칙|래|격|형|본)"
    r"|달러|유로|엔(?!진|드|지)|파운드|위안))",
    re.IGNORECASE,
)
_UNIT = (
    r"(?P<percent> ?(?:%|percent\b|퍼센트|프로(?![가-힣])))"
    r"|(?P<unit> ?(?:°[CF]?|℃|℉)"
    r"|(?:km|cm|mm|nm|m|kg|mg|g|ml|l|ms|s|h|[kmgtp]i?b|ghz|mhz|hz|kw|kwh|px|fps|x)(?![A-Za-z0-9_])"
    r"| (?:km|cm|mm|kg|mg|ml|ms|[kmgtp]i?b|ghz|mhz|hz|kwh?|px|fps|mph)(?![A-Za-z0-9_])"
    r"|[ -](?:(?:kilo|centi|milli)?met(?:er|re)s?|(?:kilo)?grams?|lit(?:er|re)s?|miles?|inch(?:es)?"
    r"|feet|foot|yards?|pounds?|lbs?|ounces?|oz|degrees?|seconds?|secs?|minutes?|mins?|hours?|hrs?"
    r"|days?|weeks?|months?|years?|times|people|users|items|pages|lines|words|characters|bytes"
    r"|tokens|rows|files|steps)\b"
    r"| ?(?:시간|분(?![가-힣]{2})|초(?!과|반|기)|일(?![가-힣]{2})|주일|주(?![가-힣]{2})|개월|달|년"
    r"|개|명|번|살|잔|권|마리|대(?![가-힣])|장(?![가-힣])|줄|쪽|도(?![가-힣])|킬로미터|킬로그램"
    r"|센티미터|미터|킬로|그램|리터|바이트|인분|배(?![가-힣])|회(?![가-힣])|층|단계))"
)
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.,/:-])(?:(?<!\S)[+-])?(?:\d{{1,3}}(?:,\d{{3}}){{1,8}}+|\d{{1,30}}+)"
    rf"(?:\.\d{{1,20}}+)?(?:{_UNIT}|(?![A-Za-z0-9_%]|[.,/:-]\d))",
    re.IGNORECASE,
)


def _money(text: str) -> Iterator[Found]:
    for match in _MONEY.finditer(text):
        yield Found(match.start(), match.end(), "MONEY", "money")


def _numbers(text: str) -> Iterator[Found]:
    for match in _NUMBER.finditer(text):
        kind = {"percent": "percentage", "unit": "quantity"}.get(match.lastgroup or "", "number")
        yield Found(match.start(), match.end(), "NUMBER", kind)


_LOOKS: tuple[Callable[[str], Iterable[Found]], ...] = (
    _fenced,
    _inline,
    _urls,
    _emails,
    _ids,
    _files,
    dates.iso,
    dates.korean,
    dates.english,
    _phones,
    _money,
    _numbers,
)
