"""Tokens of a text, approximately and without a tokenizer's vocabulary.

One token for every four ASCII characters, the rule of thumb of the common English byte-pair
vocabularies, and one for every one and a half characters of any other script, which is where the
o200k vocabulary lands on Korean. Good to about a fifth on prose; only for bounds and for usage of
providers that have no tokenizer.
"""

import math
from collections.abc import Iterable

from services.llm.base import ChatMessage

# Role and separators of one message, as in the chat formats.
_PER_MESSAGE = 4


def count(text: str) -> int:
    """Approximate tokens of a text; 0 for an empty one, else at least 1."""
    ascii_chars = sum(char.isascii() for char in text)
    return math.ceil(ascii_chars / 4 + (len(text) - ascii_chars) / 1.5)


def count_messages(messages: Iterable[ChatMessage]) -> int:
    """Approximate tokens of a prompt, its tool calls included."""
    return sum(
        _PER_MESSAGE
        + count(message.content)
        + sum(count(call.name) + count(call.arguments) for call in message.tool_calls)
        for message in messages
    )
