"""Queries answered in pieces: one response in parts, of which the first comes at once."""

import time
from contextlib import AsyncExitStack
from typing import Any

from starlette.types import Receive

from app import graphql_metrics
from app.graphql_body import CancelOnDisconnect
from app.graphql_framing import PIECES
from app.graphql_reply import Reply
from app.graphql_request import RequestInfo
from app.graphql_stream import HttpStream, Streams
from schema.execution import Divided, Divider, Engine, Form, Prepared, Result
from services.errors import RequestError


class PiecesEndpoint:
    """Runs queries whose clients accept pieces. Each is a stream, and bounded as those are."""

    def __init__(self, engine: Engine, streams: Streams, timeout_s: float) -> None:
        self._engine = engine
        self._divider = Divider(engine)
        self._streams = streams
        self._timeout_s = timeout_s

    async def answer(
        self,
        prepared: Prepared,
        context: Any,
        info: RequestInfo,
        form: Form,
        receive: Receive,
        reply: Reply,
    ) -> Result | None:
        """Answer in pieces; gives the result where it is one piece, for the caller to tell.

        A client that leaves cancels what is left. Raises ClientGoneError if that is all of it.
        """
        started, outcome, transport = time.perf_counter(), "canceled", "http"
        try:
            async with AsyncExitStack() as stack:
                result = await self._start(prepared, context, info, form, receive, stack)
                if isinstance(result, Result):
                    outcome = graphql_metrics.outcome(result)
                    return result
                transport = "multipart"
                outcome = await self._send(result, context, form, receive, reply)
                return None
        finally:
            seconds = time.perf_counter() - started
            graphql_metrics.record(prepared.type, transport, outcome, seconds)

    async def _start(
        self,
        prepared: Prepared,
        context: Any,
        info: RequestInfo,
        form: Form,
        receive: Receive,
        stack: AsyncExitStack,
    ) -> Result | Divided:
        timeout_s = self._timeout_s
        try:
            stack.enter_context(self._streams.place(context, info.client_host))
        except RequestError:
            async with CancelOnDisconnect(receive):
                return await self._engine.execute(
                    prepared, context, timeout_s=timeout_s, undivided="no room"
                )
        async with CancelOnDisconnect(receive):
            answer = await self._divider.execute(prepared, context, form, timeout_s=timeout_s)
            if isinstance(answer, Divided):
                stack.push_async_callback(answer.aclose)
        return answer

    async def _send(
        self, answer: Divided, context: Any, form: Form, receive: Receive, reply: Reply
    ) -> str:
        stream = HttpStream(PIECES[form], receive, reply, options=self._streams.options)
        outcome = await self._streams.run(stream, context, answer)
        if stream.refusal is not None:
            await reply.result(stream.refusal)
        return graphql_metrics.outcome(answer.result) if outcome == "ok" else outcome
