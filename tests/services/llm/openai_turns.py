"""Turns of the provider against a scripted server."""

from contextlib import aclosing

import pytest

from services.llm.base import ChatMessage, ChatRequest, ProviderError, Role, TextDelta
from services.llm.openai import OpenAIProvider, Retries
from tests.services.llm.scripted_server import ScriptedServer

KEY = "sk-secret-0123456789abcdef"
HELLO = ChatRequest([ChatMessage(Role.USER, "hello")])
FAST = Retries(attempts=3, base_s=0.001, max_s=5.0)


def provider_for(server, **more):
    settings = {"base_url": server.base_url, "api_key": KEY, "model": "m1", "retries": FAST} | more
    return OpenAIProvider(**settings)


async def collect(provider, request=HELLO, into=None):
    events = [] if into is None else into
    async with aclosing(provider.stream(request)) as stream:
        async for event in stream:
            events.append(event)
    return events


async def run(turns, request=HELLO, **more):
    """The events of one turn against a script, and the server."""
    async with ScriptedServer(turns) as server:
        provider = provider_for(server, **more)
        try:
            return await collect(provider, request), server
        finally:
            await provider.aclose()


async def fail(turns, **more):
    """The error of one turn against a script, what was given before it, and the server."""
    events = []
    async with ScriptedServer(turns) as server:
        provider = provider_for(server, **more)
        with pytest.raises(ProviderError) as caught:
            await collect(provider, into=events)
        await provider.aclose()
    return caught.value, events, server


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta))
