"""Streams: following topics, and writing the texts that grow on them."""

from services.streams.base import Appended, Fact, Follower, Happened, Item, Restarted, Snapshot
from services.streams.following import follow, idle_s
from services.streams.position import Position, position
from services.streams.source import Kind, Source, Texts
from services.streams.texts import append_text, read_text, resume_text
from services.streams.topics import TopicFollower
from services.streams.writer import TextWriter

__all__ = [
    "Appended",
    "Fact",
    "Follower",
    "Happened",
    "Item",
    "Kind",
    "Position",
    "Restarted",
    "Snapshot",
    "Source",
    "TextWriter",
    "Texts",
    "TopicFollower",
    "append_text",
    "follow",
    "idle_s",
    "position",
    "read_text",
    "resume_text",
]
