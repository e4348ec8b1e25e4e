"""Runs GraphQL operations: documents, limits, execution, event streams, errors and JSON.

Knows graphql-core and a `GraphQLSchema`; knows no transport.
"""

from schema.execution.documents import DocumentCache, ParsedDocument
from schema.execution.encoding import encode
from schema.execution.engine import Engine, Prepared
from schema.execution.errors import ErrorDict, failure, request_failure
from schema.execution.limits import Limits
from schema.execution.result import Result

__all__ = [
    "DocumentCache",
    "Engine",
    "ErrorDict",
    "Limits",
    "ParsedDocument",
    "Prepared",
    "Result",
    "encode",
    "failure",
    "request_failure",
]
