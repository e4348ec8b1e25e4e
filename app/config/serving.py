"""Settings of processes and of who may use them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from app.config.values import DatabaseUrl, Origins, RedisUrl


class ServingSettings(BaseSettings):
    """Addresses, stores, logs and stopping; accounts and signing in."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        Path("data"),
        description="Where the embedded database and bus, kept workspaces and the secret live.",
    )
    database_url: DatabaseUrl = Field(
        "", description="Database; empty: SQLite in the data directory."
    )
    database_pool_size: int = Field(10, ge=1, le=500, description="Connections kept open.")
    database_max_overflow: int = Field(
        10, ge=0, le=500, description="Connections opened beyond the pool under load."
    )
    database_pool_timeout: float = Field(
        30.0, gt=0, le=600, description="Seconds to wait for a connection."
    )
    database_pool_recycle: int = Field(
        1800, ge=1, description="Seconds after which a connection is replaced."
    )
    migrate_on_start: bool = Field(
        True, description="Whether `serve` and `worker` bring the database up to date."
    )
    redis_url: RedisUrl = Field(
        "", description="Redis for more than one process; empty: the in-process bus."
    )
    node_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,48}$",
        description="Name of this process among others; empty: made up (`local` without Redis).",
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Secret for signed links; empty: made once and kept in the data directory.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`json` lines, `text` for people; `auto`: text on a terminal."
    )
    slow_operation: float = Field(
        1.0,
        ge=0,
        description="Seconds from which on an operation is logged as slow, with its plan; 0: none.",
    )
    cors_origins: Origins = Field(
        (), description="Origins of frontends on other hosts, comma-separated, or `*`."
    )
    trusted_proxies: str = Field(
        "127.0.0.1",
        description="Addresses of proxies whose X-Forwarded-* headers are believed, or `*`.",
    )
    graphiql: bool = Field(True, description="Whether GraphiQL is served at /graphql.")
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Bearer token that /metrics asks for; empty: none."
    )
    shutdown_timeout: float = Field(
        10.0, ge=0, le=600, description="Seconds to finish open work when stopping."
    )

    registration: Literal["open", "closed"] = Field(
        "open", description="Whether anybody may open an account."
    )
    access_token_ttl: int = Field(3600, ge=1, description="Life of an access token.")
    refresh_token_ttl: int = Field(30 * 86400, ge=1, description="Life of a refresh token.")
    sign_in_attempts: int = Field(
        10, ge=1, description="Sign-in attempts for one login within the window."
    )
    sign_in_window: int = Field(300, ge=1, description="Seconds of the sign-in window.")
