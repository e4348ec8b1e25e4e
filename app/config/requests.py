"""Settings of GraphQL requests: what they may ask for, and how they are answered."""

from pydantic import Field
from pydantic_settings import BaseSettings

from app.config.values import MIB


class RequestSettings(BaseSettings):
    """Limits of documents, of cost and of connections; trusted documents; caching."""

    max_body_bytes: int = Field(2 * MIB, ge=1024, description="Largest request body.")
    max_query_depth: int = Field(15, ge=1, description="Deepest nesting of a query.")
    max_query_aliases: int = Field(50, ge=0, description="Most aliases in a query.")
    max_query_tokens: int = Field(5000, ge=10, description="Most tokens in a document.")
    max_query_objects: int = Field(
        50_000, ge=100, description="Most objects a query may ask for, by its page sizes."
    )
    max_variable_values: int = Field(
        10_000,
        ge=100,
        le=100_000,
        description="Most values among a request's variables, those in lists and maps included.",
    )
    compile_queries: bool = Field(
        True, description="Run queries by compiled plans; off: all on graphql-core."
    )
    max_batch: int = Field(
        10, ge=0, le=100, description="Most operations in one HTTP request; 0: no lists of them."
    )
    trusted_documents: str = Field(
        "",
        description="Manifest of documents that clients may name (`documentId`): Apollo's, or a "
        "map of ids to texts; empty: none.",
    )
    trusted_documents_only: bool = Field(
        False,
        description="Whether only documents of the manifest are run, except for administrators.",
    )
    persisted_queries: bool = Field(
        True,
        description="Whether clients may register documents by their hash; never with "
        "TRUSTED_DOCUMENTS_ONLY.",
    )
    public_max_age: int = Field(
        0,
        ge=0,
        description="Seconds that answers to anonymous GETs may be kept unasked; 0: ask each time.",
    )
    points_per_minute: int = Field(
        500_000_000,
        ge=0,
        le=2_000_000_000,
        description="Points of cost a user may spend a minute, unless `rateLimitConfigSet` said "
        "otherwise; 0: no limit.",
    )
    anonymous_points_per_minute: int = Field(
        50_000_000,
        ge=0,
        le=2_000_000_000,
        description="Points of cost an address may spend a minute where nobody is signed in; 0: "
        "no limit.",
    )
    request_timeout: float = Field(30.0, gt=0, description="Longest a query or mutation may take.")
    max_sockets_per_viewer: int = Field(
        2000, ge=1, description="Open WebSockets and HTTP streams of one user."
    )
    max_sockets_per_address: int = Field(
        1000, ge=1, description="The same of one client address, where nobody is signed in."
    )
    max_operations_per_socket: int = Field(
        100, ge=1, description="Operations on one WebSocket or reserved stream."
    )
