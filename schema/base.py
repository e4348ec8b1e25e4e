"""The vocabulary of the contract: nodes, fields, connections, payloads and user errors."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, NewType, TypeVar, cast, get_args

import strawberry
from strawberry.types.base import StrawberryObjectDefinition

from models import states
from models.base import Record, is_row
from resolvers.base import NODE_RECORDS, BatchResolver, Info, Page, PageArgs, Parents
from resolvers.pages import Bounds, Entry
from resolvers.uploads import UploadedFile
from services.errors import UserError as ServiceError
from services.errors import UserErrorCode as ServiceErrorCode
from services.errors import UserErrors

T = TypeVar("T")
N = TypeVar("N")

BigInt = NewType("BigInt", int)
_BIG_INT_END = 2**53


def _big_int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _BIG_INT_END:
        raise ValueError("expected a whole number within ±(2^53 - 1)")
    return value


Upload = NewType("Upload", UploadedFile)


def _uploaded(value: object) -> UploadedFile:
    if not isinstance(value, UploadedFile):
        raise ValueError("expected a file that comes with the operation, in a form")
    return value


def _not_an_answer(value: object) -> object:
    raise TypeError("a file is taken, never given")


SCALARS: dict[object, Any] = {
    Upload: strawberry.scalar(
        name="Upload",
        description="A file that comes with the operation, by the GraphQL multipart request "
        "specification: one a request, in a variable, read while the mutation runs.",
        serialize=_not_an_answer,
        parse_value=_uploaded,
    ),
    BigInt: strawberry.scalar(
        name="BigInt",
        description="A whole number within ±(2^53 - 1), for sizes in bytes.",
        serialize=int,
        parse_value=_big_int,
    ),
}

ROW_TYPES: dict[type[Record], type] = {}


def attr(description: str, **options: Any) -> Any:
    """A plain attribute of the row behind a type, or of an input (optional with a `default`)."""
    return strawberry.field(description=description, **options)


def answer(description: str) -> Any:
    """A field of a payload: null when there are errors."""
    return attr(description, default=None)


def arg(description: str, **options: Any) -> Any:
    """Describe an argument: `Annotated[str, arg("…")]`."""
    return strawberry.argument(description=description, **options)


def field(resolver: BatchResolver, description: str, **options: Any) -> Any:
    """A computed field. `resolver` is a batch function `(parents, info, **arguments) -> list`.

    Its arguments become the field's. Under graphql-core the parents of a level are gathered by a
    dataloader, so that the resolver runs once per level whatever the number of parents.
    """
    parameters = list(inspect.signature(resolver).parameters.values())[2:]
    return _batch_field(resolver, resolver, parameters, description, options)


def connection(
    resolver: BatchResolver,
    description: str,
    *,
    parameters: Sequence[inspect.Parameter] = (),
    **options: Any,
) -> Any:
    """A connection field: `resolver` is `(parents, info, page, **arguments) -> list[Page]`."""
    extra = list(inspect.signature(resolver).parameters.values())[3:] or parameters

    def batch(
        parents: Sequence[Any],
        info: Info,
        *,
        first: int | None,
        after: str | None,
        last: int | None,
        before: str | None,
        **arguments: Any,
    ) -> Awaitable[Sequence[Any]]:
        page = PageArgs(first, after, last, before)
        return resolver(parents, info, page=page, **arguments)

    return _batch_field(resolver, batch, [*_PAGE_PARAMETERS, *extra], description, options)


def _batch_field(
    resolver: BatchResolver,
    batch: BatchResolver,
    parameters: list[inspect.Parameter],
    description: str,
    options: dict[str, Any],
) -> Any:
    @functools.wraps(resolver)
    async def resolve(self: Any, info: Info, **arguments: Any) -> Any:
        if isinstance(self, Parents):
            return await batch(self.rows, info, **arguments)
        return await info.context.batch(batch, info, arguments).load(self)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    own = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("info", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Info),
    ]
    resolve.__signature__ = inspect.Signature([*own, *keyword])  # type: ignore[attr-defined]
    # The class annotation gives the field's type; a resolver speaks of rows, not of types.
    resolve.__annotations__ = {"info": Info} | {p.name: p.annotation for p in parameters}
    # What a plan calls, with all parents at once.
    resolve.batch = batch  # type: ignore[attr-defined]
    # Which columns of parents and rows it reads, if it says so; see `resolvers.base.reads`.
    return strawberry.field(resolver=resolve, description=description, **options)


def _page_parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


Id = Annotated[strawberry.ID, arg("Which one.")]
First = Annotated[int | None, arg("Give the first N (0 to 100; 20 by default).")]
After = Annotated[str | None, arg("Give those after this cursor.")]
Last = Annotated[int | None, arg("Give the last N (0 to 100) instead.")]
Before = Annotated[str | None, arg("Give those before this cursor.")]
_PAGE_PARAMETERS = [
    _page_parameter("first", First),
    _page_parameter("after", After),
    _page_parameter("last", Last),
    _page_parameter("before", Before),
]


@strawberry.interface(description="Everything that has an id of its own.")
class Node:
    """The Relay node; `row` names the table whose rows a type stands for."""

    row: ClassVar[strawberry.Private[type[Record] | None]] = None
    id: strawberry.ID = attr("Opaque id, the same everywhere.")

    def __init_subclass__(cls, row: type[Record] | None = None, **kwargs: Any) -> None:
        """Tie the type to its table."""
        super().__init_subclass__(**kwargs)
        if row is not None:
            cls.row = row
            ROW_TYPES[row] = cls
            NODE_RECORDS.add(row)
            cls.is_type_of = classmethod(  # type: ignore[attr-defined]
                lambda own, value, info: is_row(value, row) or isinstance(value, (row, own))
            )


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    """The Relay page information."""

    has_next_page: bool = attr("Whether there are more after this page.")
    has_previous_page: bool = attr("Whether there are more before this page.")
    start_cursor: str | None = attr("The cursor of the first edge.")
    end_cursor: str | None = attr("The cursor of the last edge.")

    @classmethod
    def is_type_of(cls, value: Any, _info: Any) -> bool:
        """The bounds of a page are its information."""
        return isinstance(value, Bounds | PageInfo)


@strawberry.type(description="One entry of a list, with its place in it.")
class Edge(Generic[N]):
    """A Relay edge."""

    cursor: str = attr("The place of the entry; valid for `after` and `before`.")
    node: N = attr("The entry.")

    @classmethod
    def is_type_of(cls, value: Any, _info: Any) -> bool:
        """An entry of a page is an edge."""
        return isinstance(value, Entry | Edge)


@strawberry.type(description="One page of a list.")
class Connection(Generic[N]):
    """A Relay connection over a `Page` of rows."""

    edges: list[Edge[N]] = attr("The entries with their cursors.")
    nodes: list[N] = attr("The entries alone.")
    page_info: PageInfo = attr("Where the page lies.")

    @classmethod
    def is_type_of(cls, value: Any, _info: Any) -> bool:
        """A page of rows is a connection."""
        return isinstance(value, Page | Connection)


_ERROR_CODES = {
    ServiceErrorCode.INVALID: "The value is of the right type but not acceptable.",
    ServiceErrorCode.REQUIRED: "A value is missing or empty.",
    ServiceErrorCode.NOT_FOUND: "There is no such thing, or you may not see it.",
    ServiceErrorCode.CONFLICT: "It contradicts the present state.",
    ServiceErrorCode.FORBIDDEN: "Your roles do not permit it.",
    ServiceErrorCode.UNAUTHENTICATED: "It needs a sign-in.",
    ServiceErrorCode.LIMIT: "It is larger or more than one request may ask for.",
    ServiceErrorCode.QUOTA: "You have used what you are entitled to.",
    ServiceErrorCode.UNAVAILABLE: "A part that is needed does not answer; try again later.",
}


def described_enum(
    kind: Any, description: str, values: dict[Any, str], name: str | None = None
) -> Any:
    """Publish a StrEnum with a description for each value (all must be described)."""
    missing = set(kind) - set(values)
    if missing:
        raise TypeError(f"{kind.__name__}: no description for {sorted(missing)}")
    published = strawberry.enum(kind, description=description, name=name)
    definition = published.__strawberry_definition__
    for value in definition.values:
        value.description = values[kind[value.name]]
    return published


UserErrorCode = ServiceErrorCode
described_enum(UserErrorCode, "Why an input was refused.", _ERROR_CODES)


@strawberry.type(description="Something in the input that its sender can mend.")
class UserError:
    """One entry of a payload's `errors`."""

    code: UserErrorCode = attr("What kind of refusal it is.")
    message: str = attr("What was wrong, what was expected and what to do.")
    path: list[str] = attr("The argument at fault, from the mutation's arguments down.")


@strawberry.type(
    description="A mutation's answer: what it made, and what was wrong with the input."
)
class Payload:
    """Base of every payload; all other fields are null when there are errors."""

    errors: list[UserError] = attr(
        "What was wrong with the input; empty on success.", default_factory=list
    )


def mutation(
    payload: type[Any], description: str
) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """A mutation: the decorated `async (info, …) -> dict` names the payload's fields.

    UserErrors become the payload's `errors`; whatever else is raised is left to the engine.
    """

    def decorate(function: Callable[..., Awaitable[Any]]) -> Any:
        input_fields = _input_fields(function)

        @functools.wraps(function)
        async def resolve(self: Any, info: Info, **arguments: Any) -> Any:
            # Mutations run one after the other; each is answered from the state it made.
            info.context.begin_event()
            try:
                return payload(**await function(info, **arguments))
            except UserErrors as errors:
                found = errors.errors
            except ServiceError as error:
                found = (error,)
            return payload(errors=[_published(error, input_fields) for error in found])

        parameters = [_described(p) for p in inspect.signature(function).parameters.values()][1:]
        own = [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("info", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Info),
        ]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        resolve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*own, *keyword], return_annotation=payload
        )
        resolve.__annotations__ = (
            {"info": Info} | {p.name: p.annotation for p in parameters} | {"return": payload}
        )
        return strawberry.mutation(resolver=resolve, description=description)

    return decorate


def _input_fields(function: Callable[..., Any]) -> set[str]:
    parameter = inspect.signature(function).parameters.get("input")
    if parameter is None:
        return set()
    return {item.python_name for kind in _inputs(parameter) for item in kind.fields}


def _described(parameter: inspect.Parameter) -> inspect.Parameter:
    """Let an argument `input` say what its type says."""
    if parameter.name != "input":
        return parameter
    text = next(kind.description for kind in _inputs(parameter))
    return parameter.replace(annotation=Annotated[parameter.annotation, arg(text or "")])


def _inputs(parameter: inspect.Parameter) -> list[StrawberryObjectDefinition]:
    return [
        cast("StrawberryObjectDefinition", kind.__strawberry_definition__)
        for kind in _alternatives(parameter.annotation)
        if hasattr(kind, "__strawberry_definition__")
    ]


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Give the types an annotation is made of: `Annotated[X | None, …]` gives X among them."""
    yield annotation
    for part in get_args(annotation):
        yield from _alternatives(part)


def _published(error: ServiceError, input_fields: set[str]) -> UserError:
    path = [_camel(part) for part in error.path]
    if error.path and error.path[0] in input_fields:
        path.insert(0, "input")
    elif error.path and error.path[0] == "input":
        path[0] = "input"
    return UserError(code=error.code, message=error.message, path=path)


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


RunState = states.RunState
described_enum(
    RunState,
    "Where a plan, a step or an execution stands.",
    {
        states.RunState.PENDING: "It has not begun.",
        states.RunState.RUNNING: "It is at work.",
        states.RunState.COMPLETED: "It ended well.",
        states.RunState.FAILED: "It ended with an error.",
        states.RunState.CANCELED: "It was canceled.",
        states.RunState.TIMED_OUT: "It took longer than it may.",
        states.RunState.SKIPPED: "Not run, because something it depends on did not complete.",
    },
)

__all__ = ["Annotated", "BigInt", "Connection", "Edge", "Info", "Node", "Payload", "datetime"]
