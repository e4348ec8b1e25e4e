"""A plain statement as a fact: what it is about, the value, and whether it is denied.

The two languages have their own rules (`facts_en`, `facts_ko`) and share keys and canonical values,
so "I live in Seoul" and "나는 서울에 살아" are the same fact.
"""

from services.language import facts_en, facts_ko, scripts
from services.language.fact import Fact

_MAX_CHARS = 400

__all__ = ["Fact", "parse", "parse_all"]


def parse_all(text: str) -> list[Fact]:
    """Every fact of one sentence, the main one first; empty where no rule reads it."""
    text = scripts.clean(text[:_MAX_CHARS])
    return facts_ko.parse(text) if scripts.has_hangul(text) else facts_en.parse(text)


def parse(text: str) -> Fact | None:
    """The main fact of one sentence; None where no rule reads it."""
    found = parse_all(text)
    return found[0] if found else None
