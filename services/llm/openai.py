"""Any server that speaks OpenAI's chat completions, through the `openai` SDK.

One turn is one streamed completion. It is tried again only while nothing has been given out: after
that a failure is the caller's to continue from.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import openai
from openai import AsyncOpenAI

from models.journal import traceparent
from services.llm import openai_errors
from services.llm import openai_wire as wire
from services.llm.base import (
    ChatEvent,
    ChatRequest,
    Finished,
    ProviderError,
    TextDelta,
    ToolCallRequested,
    Usage,
)
from services.llm.openai_events import ChunkStream, CutError, ReportedError
from services.llm.patience import Patience

_OFFICIAL = "https://api.openai.com/v1"
# A server without accounts still wants some bearer token from the SDK.
_NO_KEY = "none"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait: to connect, for the first chunk, for each next one, for the whole turn."""

    connect_s: float = 10.0
    first_chunk_s: float = 120.0
    chunk_s: float = 60.0
    total_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a turn is begun, and the waits between: base · 2^n, jittered, at most `max_s`.

    A server that asks for a longer wait than `max_s` is not waited for: the error says how long.
    """

    attempts: int = 4
    base_s: float = 0.5
    max_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens."""

    input_usd: Decimal
    output_usd: Decimal

    def cost(self, input_tokens: int, output_tokens: int) -> Decimal:
        """US dollars of one turn."""
        total = self.input_usd * input_tokens + self.output_usd * output_tokens
        return total / 1_000_000


@dataclass(slots=True)
class _Turn:
    """What has come of one turn so far."""

    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    reason: str | None = None
    usage: Usage | None = None
    has_given: bool = False


class OpenAIProvider:
    """A chat model behind an OpenAI-compatible base URL."""

    name = "openai"
    is_generative = True

    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str | None,
        model: str,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        prices: Prices | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.model = model
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or Retries()
        self._prices = prices
        self._jitter = jitter
        self._api_key = api_key
        self._is_official = base_url is None or base_url.startswith("https://api.openai.com")
        self._can_report_usage = True
        connect_s = self._timeouts.connect_s
        # Between bytes the SDK waits for ever: the limits on chunks are kept here, where comments
        # that only keep a connection alive do not count as progress.
        self._client = AsyncOpenAI(
            base_url=base_url or _OFFICIAL,
            api_key=api_key or _NO_KEY,
            max_retries=0,
            timeout=openai.Timeout(None, connect=connect_s, pool=connect_s, write=connect_s),
            # Reads in C: the usual one spends more on a chunk than all the rest of its way does.
            http_client=openai.DefaultAioHttpClient(),
        )

    def __repr__(self) -> str:
        return f"OpenAIProvider(model={self.model!r})"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ping(self) -> None:
        """Return when the server answers a request for its models; raises ProviderError.

        A server without that page (404, 405) answers all the same.
        """
        try:
            async with asyncio.timeout(self._timeouts.connect_s * 2):
                await self._client.with_options(max_retries=0).models.list()
        except TimeoutError:
            raise openai_errors.timed_out("did not answer in time") from None
        except openai.APIStatusError as error:
            if error.status_code not in {404, 405, 501}:
                raise openai_errors.of_status(error, self.model, self._api_key) from None
        except openai.APIError as error:
            raise openai_errors.of_connection() from error
        except (ValueError, TypeError) as error:
            raise openai_errors.bad_response() from error

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer one turn. Closing the generator closes the HTTP stream.

        A failure before anything was given out is tried again if that may help (429, 5xx, no
        connection); later it raises ProviderError, and what was given stays valid.
        """
        deadline = asyncio.get_running_loop().time() + self._timeouts.total_s
        attempt = 0
        while True:
            turn = _Turn()
            try:
                async with aclosing(self._attempt(request, turn, deadline)) as events:
                    async for event in events:
                        turn.has_given = True
                        yield event
                return
            except ProviderError as error:
                attempt += 1
                wait_s = self._wait_s(error, attempt)
                left_s = deadline - asyncio.get_running_loop().time()
                if turn.has_given or wait_s is None or wait_s >= left_s:
                    raise
            await asyncio.sleep(wait_s)

    def _wait_s(self, error: ProviderError, attempt: int) -> float | None:
        """Seconds until the next attempt; None if there shall be none."""
        if attempt >= self._retries.attempts or error.code not in {"UNAVAILABLE", "RATE_LIMITED"}:
            return None
        if not error.is_retryable:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= self._retries.max_s else None
        backoff_s = min(self._retries.max_s, self._retries.base_s * 2.0 ** (attempt - 1))
        return backoff_s * (0.5 + self._jitter() / 2)

    async def _attempt(
        self, request: ChatRequest, turn: _Turn, deadline: float
    ) -> AsyncGenerator[ChatEvent, None]:
        stream = await self._open(request, deadline)
        patience = Patience()
        try:
            limit_s, mender = self._timeouts.first_chunk_s, wire.Mender()
            while True:
                chunk = await self._next(stream, patience, limit_s, deadline)
                if chunk is None:
                    break
                limit_s = self._timeouts.chunk_s
                for text in self._take(turn, chunk):
                    if whole := mender.feed(text):
                        yield TextDelta(whole)
            if rest := mender.rest():
                yield TextDelta(rest)
        finally:
            patience.close()
            # Also on cancellation: the server sees the connection close and stops generating.
            await stream.aclose()
        if turn.reason is None:
            raise ProviderError(
                "UNAVAILABLE", "The model's answer broke off before its end.", is_retryable=True
            )
        calls = [call for _, call in sorted(turn.calls.items())]
        for position, call in enumerate(calls):
            yield ToolCallRequested(wire.call(call, position))
        reason = "tool_calls" if calls and turn.reason in {"stop", "function_call"} else turn.reason
        yield Finished(reason, turn.usage, wire.cited("".join(turn.text), request.memories))

    async def _open(self, request: ChatRequest, deadline: float) -> ChunkStream:
        """The open stream of a completion; raises ProviderError."""
        try:
            async with asyncio.timeout_at(
                min(deadline, asyncio.get_running_loop().time() + self._timeouts.first_chunk_s)
            ):
                try:
                    return await self._create(request)
                except openai.BadRequestError as error:
                    if not self._can_report_usage or "stream_options" not in str(error.message):
                        raise
                    # Some servers refuse what they do not know; their usage stays unknown.
                    self._can_report_usage = False
                    return await self._create(request)
        except TimeoutError:
            raise openai_errors.timed_out("did not begin to answer in time") from None
        except openai.APIStatusError as error:
            # Not chained: a server may repeat the key in the body it refuses with.
            raise openai_errors.of_status(error, self.model, self._api_key) from None
        except openai.APIConnectionError as error:
            raise openai_errors.of_connection() from error
        except openai.APIError:
            raise openai_errors.bad_response() from None

    async def _create(self, request: ChatRequest) -> ChunkStream:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": wire.messages(request),
            "stream": True,
        }
        if self._can_report_usage:
            body["stream_options"] = {"include_usage": True}
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": dict(tool.parameters),
                    },
                }
                for tool in request.tools
            ]
        if request.max_output_tokens is not None:
            # OpenAI's reasoning models refuse the old name; most other servers know only that.
            key = "max_completion_tokens" if self._is_official else "max_tokens"
            body[key] = request.max_output_tokens
        if request.user_id is not None:
            body["user"] = request.user_id
        if (origin := traceparent()) is not None:
            body["extra_headers"] = {"traceparent": origin}
        opened = await self._client.chat.completions.create(**body)
        return ChunkStream(opened.response)

    async def _next(
        self, stream: ChunkStream, patience: Patience, limit_s: float, deadline: float
    ) -> dict[str, Any] | None:
        """The next chunk, None at the end; raises ProviderError."""
        now = asyncio.get_running_loop().time()
        try:
            with patience.until(min(deadline, now + limit_s)):
                return await stream.next()
        except TimeoutError:
            what = "took too long" if deadline <= now + limit_s else "stopped answering"
            raise openai_errors.timed_out(what) from None
        except CutError as error:
            raise ProviderError(
                "UNAVAILABLE", "The connection to the model was cut.", is_retryable=True
            ) from error
        except ReportedError as reported:
            # Not chained: a server may repeat the key in what it reports.
            raise openai_errors.of_event(reported.error, self._api_key) from None
        except ValueError as error:
            raise openai_errors.bad_response() from error

    def _take(self, turn: _Turn, chunk: dict[str, Any]) -> list[str]:
        """Add a chunk to the turn; the texts to give out. Raises ProviderError on a wrong shape."""
        # Nothing is validated yet: every field may be missing or of another type.
        try:
            usage = chunk.get("usage")
            if usage is not None:
                turn.usage = self._usage(usage.get("prompt_tokens"), usage.get("completion_tokens"))
            texts: list[str] = []
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta")
                if delta is not None:
                    given = (delta.get("content"), delta.get("refusal"))
                    texts += [text for text in given if isinstance(text, str) and text]
                    for part in delta.get("tool_calls") or ():
                        wire.add(turn.calls, part)
                if reason := choice.get("finish_reason"):
                    turn.reason = str(reason)
        except (AttributeError, TypeError, ValueError) as error:
            raise openai_errors.bad_response() from error
        turn.text += texts
        return texts

    def _usage(self, input_tokens: Any, output_tokens: Any) -> Usage | None:
        if not isinstance(input_tokens, int) or not isinstance(output_tokens, int):
            return None
        cost = self._prices.cost(input_tokens, output_tokens) if self._prices else None
        return Usage(input_tokens, output_tokens, cost)
