"""Answers in pieces: the first at once, deferred fragments and the rests of lists as they come.

The first piece is a plan's run like any other. What it leaves for later is kept with the rows it is
about, and run when the first piece is settled: each part once for all the objects it was left for,
parts side by side. Nobody's parents are read again, and what several parts ask for is asked once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from graphql import GraphQLError
from graphql.execution.execute import ExecutionContext

from schema.execution.delivery import Delivery, Piece, Place, State, Update
from schema.execution.division import Part
from schema.execution.errors import ErrorDict, execution_failures, request_failure
from schema.execution.piece_run import Located, Memory, PieceRun, Places, Rest
from schema.execution.plan import Field, Plan

_Where = list[tuple[Place, Piece | None]]
"""The places of something, each with the piece that holds it."""

Watched = Callable[[Callable[[], Awaitable[None]]], Coroutine[Any, Any, Any]]
_Found = list[tuple[int, Place]]
_Settled = tuple[Located, Located, _Found]
"""Errors that nulls took, errors that none could take, and what was left where."""


class _PartJob:
    """A part of rows, each with the pieces that come of it."""

    def __init__(self, part: Part) -> None:
        self._selection = part.selection
        self._usages = part.usages
        self._rows: list[Any] = []
        self.pieces: list[list[Piece]] = []

    async def run(self, run: PieceRun) -> Sequence[Any]:
        return await run.part(self._selection, self._rows)

    def settle(self, places: Places, answer: dict[str, Any], piece: Piece) -> _Settled:
        data, errors = places.object(self._selection, answer, piece.place)
        if data is None:
            return [], errors, []
        piece.data = data
        return errors, [], places.found(data, piece.place)

    def give(self, answer: dict[str, Any], piece: Piece) -> None:
        """Take an answer in which nothing failed and nothing was left."""
        piece.data = answer

    def add(self, row: Any, where: _Where, delivery: Delivery) -> None:
        self._rows.append(row)
        self.pieces.append(
            [delivery.expect(self._usages, place, container) for place, container in where]
        )


class _RestJob:
    """The rests of the lists of one field, each with the pieces that come of it."""

    def __init__(self, field_: Field) -> None:
        self._field = field_
        self._rests: list[Rest] = []
        self.pieces: list[list[Piece]] = []

    async def run(self, run: PieceRun) -> Sequence[Any]:
        return await run.items(self._field, [rest.items for rest in self._rests])

    def settle(self, places: Places, answer: list[Any], piece: Piece) -> _Settled:
        (promise,) = piece.promises
        piece.items = []
        all_errors: Located = []
        found: _Found = []
        for index, value in enumerate(answer, promise.start or 0):
            place = (*piece.place, index)
            item, errors, is_fatal = places.item(self._field, value, place)
            if is_fatal:
                return all_errors, errors, found
            piece.items.append(item)
            all_errors += errors
            found += places.found(item, place)
        return all_errors, [], found

    def give(self, answer: list[Any], piece: Piece) -> None:
        """Take an answer in which nothing failed and nothing was left."""
        piece.items = answer

    def add(self, rest: Rest, where: _Where, delivery: Delivery) -> None:
        stream = self._field.stream
        label = None if stream is None else stream.label
        self._rests.append(rest)
        self.pieces.append(
            [
                delivery.expect_items(label, place, rest.start, container)
                for place, container in where
            ]
        )


class Pieces:
    """One operation's answer in pieces: iterate over the updates that follow the first piece.

    Between `begin` and `aclose` it owns a task. When the deadline (of the loop's clock) passes, or
    something breaks that is no resolver's failure, what was promised is broken with an error that
    says so: `late` makes the one for the deadline.
    """

    def __init__(
        self,
        plan: Plan,
        execution: ExecutionContext,
        request_id: str,
        *,
        deadline: float | None,
        late: Callable[[], ErrorDict],
    ) -> None:
        self._plan = plan
        self._execution = execution
        self._request_id = request_id
        self._deadline = deadline
        self._late = late
        self._memory: Memory = {}
        self._delivery = Delivery()
        self._jobs: list[_PartJob | _RestJob] = []
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last: Update | None = None
        self._is_over = False
        # Those of all that came later than the first piece, and whether it took too long.
        self.errors: list[GraphQLError] = []
        self.is_late = False

    async def first(self) -> tuple[dict[str, Any] | None, list[GraphQLError], Update]:
        """Give the first piece: data, errors, and what is promised with it.

        Nothing follows if nothing is promised.
        """
        run = PieceRun(self._plan, self._execution, self._memory)
        answer = await run.first()
        places = run.settlement()
        data, errors = places.object(self._plan.root, answer, ())
        found = [] if data is None else places.found(data, ())
        self._leave(run, [(id_, place, None) for id_, place in found])
        return data, errors, self._delivery.take()

    def begin(self, watched: Watched | None = None) -> None:
        """Run what was left for later; `watched` calls what does it, and takes note."""
        work = self._work() if watched is None else watched(self._work)
        self._task = asyncio.get_running_loop().create_task(work)

    async def aclose(self) -> None:
        """Cancel what is left, and wait until that is done."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> Update:
        """Give what is there to be told by now, waiting until there is something."""
        while not self._is_over:
            update, self._last = self._last or self._delivery.take(), None
            if update or not update.has_next:
                self._is_over = not update.has_next
                return update
            self._news.clear()
            await self._news.wait()
            # What is ready at the same time is told together.
            await asyncio.sleep(0)
        raise StopAsyncIteration

    async def _work(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline) as deadline, asyncio.TaskGroup() as group:
                self._start(group)
        except TimeoutError as error:
            self.is_late = deadline.expired()
            self._end(self._late() if self.is_late else self._broken(error))
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            self._end(self._broken(error))

    def _end(self, error: ErrorDict) -> None:
        self._last = self._delivery.give_up(error)
        self._news.set()

    def _broken(self, error: Exception) -> ErrorDict:
        self.errors.append(GraphQLError(str(error), original_error=error))
        return request_failure(error, self._request_id)

    def _start(self, group: asyncio.TaskGroup) -> None:
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            group.create_task(self._do(job, group))

    async def _do(self, job: _PartJob | _RestJob, group: asyncio.TaskGroup) -> None:
        run = PieceRun(self._plan, self._execution, self._memory)
        answers = await job.run(run)
        self._settle(job, run, answers)
        self._start(group)
        self._news.set()

    def _settle(self, job: Any, run: PieceRun, answers: Sequence[Any]) -> None:
        is_plain = not (run.has_failed or run.left or run.rests)
        places = run.settlement()
        blamed: list[tuple[list[ErrorDict], GraphQLError]] = []
        found: list[tuple[int, Place, Piece | None]] = []
        for answer, pieces in zip(answers, job.pieces, strict=True):
            for piece in pieces:
                if is_plain:
                    job.give(answer, piece)
                    continue
                errors, fatal, left = job.settle(places, answer, piece)
                blamed += [(piece.errors, error) for error in errors]
                blamed += [(piece.fatal, error) for error in fatal]
                found += [(id_, place, piece) for id_, place in left]
        # Together, so that one exception met at many places is logged once.
        self.errors += [error for _, error in blamed]
        told = execution_failures([error for _, error in blamed], self._request_id)
        for (errors_of, _), error in zip(blamed, told, strict=True):
            errors_of.append(error)
        self._leave(run, found)
        for pieces in job.pieces:
            for piece in pieces:
                if piece.state is State.RUNNING:
                    piece.state = State.READY

    def _leave(self, run: PieceRun, found: list[tuple[int, Place, Piece | None]]) -> None:
        """Promise what a run left, at the places that came to be."""
        where: dict[int, _Where] = {}
        for id_, place, container in found:
            where.setdefault(id_, []).append((place, container))
        # What is nested in a deferred fragment is promised after it.
        for left in sorted(run.left, key=lambda one: one.part.usages[0].number):
            job = _PartJob(left.part)
            for row, answer in zip(left.rows, left.answers, strict=True):
                if id(answer) in where:
                    job.add(row, where[id(answer)], self._delivery)
            if job.pieces:
                self._jobs.append(job)
        for field_, rests in run.rests.items():
            rest_job = _RestJob(field_)
            for rest in rests:
                if id(rest.told) in where:
                    rest_job.add(rest, where[id(rest.told)], self._delivery)
            if rest_job.pieces:
                self._jobs.append(rest_job)
