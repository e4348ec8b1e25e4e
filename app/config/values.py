"""The kinds of values that settings have, checked as they are read."""

import importlib.util
import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from models.database import SUPPORTED_DRIVERS

MIB = 1_048_576


def _database_url(value: str) -> str:
    if not value:
        return value
    try:
        driver = make_url(value).drivername
    except ArgumentError as error:
        raise ValueError(
            "expected a URL such as mysql+aiomysql://user:password@host:3306/name"
        ) from error
    if driver not in SUPPORTED_DRIVERS:
        raise ValueError(f"expected a URL that begins with {', '.join(SUPPORTED_DRIVERS)}")
    module = driver.partition("+")[2]
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"the driver is not installed; `pip install {module}` does that")
    return value


def _redis_url(value: str) -> str:
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected a URL such as redis://host:6379/0")
    return value


def _http_url(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("expected a URL such as https://host/v1")
    return value


def _clamav_url(value: str) -> str:
    if value and not re.fullmatch(r"tcp://[^/]+:\d{1,5}|unix:///.+", value):
        raise ValueError("expected a URL such as tcp://host:3310 or unix:///run/clamav/clamd.ctl")
    return value


def _origins(value: Any) -> Any:
    if isinstance(value, str):
        value = tuple(part.rstrip("/") for part in _parts(value))
    for origin in value:
        if origin != "*" and not origin.startswith(("http://", "https://")):
            raise ValueError("expected origins such as https://app.example.org, or *")
    return value


def _ranges(value: Any) -> Any:
    try:
        return tuple(str(ipaddress.ip_network(part)) for part in _parts(value))
    except ValueError as error:
        raise ValueError("expected ranges of addresses such as 10.1.0.0/16") from error


def _sizes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found: dict[str, int] = {}
    for part in _parts(value):
        name, _, size = part.partition("=")
        if not name.strip() or not size.strip().isdecimal() or not 1 <= int(size) <= 100:
            raise ValueError("expected templates with 1 to 100 sandboxes each, as in python=2")
        found[name.strip()] = int(size)
    return tuple(found.items())


def _parts(value: Any) -> Any:
    """Give what stands between the commas of a text; anything else as it is."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
ClamavUrl = Annotated[str, AfterValidator(_clamav_url)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]
"""Origins of web pages, comma-separated, or `*`."""
Ranges = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_ranges)]
"""Ranges of addresses, comma-separated."""
PoolSizes = Annotated[tuple[tuple[str, int], ...], NoDecode, BeforeValidator(_sizes)]
"""Numbers of sandboxes by template, comma-separated, as in `python=2`."""
