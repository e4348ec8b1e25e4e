"""What was understood of messages."""

import strawberry

from models import language as tables
from models import states
from models.base import is_row
from schema.base import attr, described_enum

SentimentLabel = states.SentimentLabel
described_enum(
    SentimentLabel,
    "The tone of a message.",
    {
        states.SentimentLabel.POSITIVE: "Pleased, friendly or grateful.",
        states.SentimentLabel.NEGATIVE: "Displeased, sad or angry.",
        states.SentimentLabel.NEUTRAL: "Matter-of-fact.",
        states.SentimentLabel.MIXED: "Clearly positive in one place and negative in another.",
    },
)


@strawberry.type(description="The tone of a message, as software read it.")
class Sentiment:
    label: SentimentLabel = attr("The tone.")
    score: float = attr("From -1, negative, to 1, positive.")

    @classmethod
    def is_type_of(cls, value: object, _info: object) -> bool:
        """A row of sentiments stands for it."""
        return is_row(value, tables.MessageSentiment)


@strawberry.type(description="Something a message asks for or does, as software read it.")
class Intent:
    name: str = attr(
        "`run_code`, `calculate`, `remember`, `recall`, `create_plan`, `run_plan`, `ask_time`, "
        "`greeting`, `thanks`, `farewell`, `help`, `identity`, `request`, `question`, `statement`; "
        "others may be added."
    )
    confidence: float = attr("How sure it is, from 0 to 1.")

    @classmethod
    def is_type_of(cls, value: object, _info: object) -> bool:
        """A row of intents stands for it."""
        return is_row(value, tables.MessageIntent)


@strawberry.type(description="A thing named in a message's text.")
class Entity:
    type: str = attr(
        "CODE, URL, EMAIL, ID, FILE, DATE, TIME, DATETIME, PHONE, MONEY or NUMBER; others may be "
        "added."
    )
    name: str = attr(
        "A narrower kind, such as `plan` for an ID, `python` for CODE, or `quantity` for a NUMBER."
    )
    value: str = attr("The text from `start` up to `end`, as it was written.")
    start_pos: int = attr(
        "Where it begins in the content, in characters (Unicode code points) from 0.", name="start"
    )
    end_pos: int = attr("Where it ends: the place after its last character.", name="end")

    @classmethod
    def is_type_of(cls, value: object, _info: object) -> bool:
        """A row of entities stands for it."""
        return is_row(value, tables.MessageEntity)
