"""Runs GraphQL operations: documents, limits, execution, event streams, errors and JSON.

Knows graphql-core and a `GraphQLSchema`; knows no transport.
"""

from schema.execution.divided import Divided, Divider, Form, Payload
from schema.execution.documents import DocumentCache, ParsedDocument
from schema.execution.encoding import encode
from schema.execution.engine import Engine
from schema.execution.errors import ErrorDict, failure, request_failure
from schema.execution.feeds import Feeds
from schema.execution.limits import Limits, count_values
from schema.execution.live import Live
from schema.execution.prepared import Prepared
from schema.execution.result import Result
from schema.execution.stream import Event, Room, Stream

__all__ = [
    "Divided",
    "Divider",
    "DocumentCache",
    "Engine",
    "ErrorDict",
    "Event",
    "Feeds",
    "Form",
    "Limits",
    "Live",
    "ParsedDocument",
    "Payload",
    "Prepared",
    "Result",
    "Room",
    "Stream",
    "count_values",
    "encode",
    "failure",
    "request_failure",
]
