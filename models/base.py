"""What every table shares: ids, column types, and the immutable rows that reads return."""

import functools
import os
import threading
import time
from collections import namedtuple
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy import inspect as sqla_inspect
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

R = TypeVar("R", bound="Record")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 74
_lock = threading.Lock()
_last = [0, 0]


def uuid7() -> int:
    """Give a UUIDv7 as a 128-bit integer (RFC 9562, 5.7), strictly increasing in this process.

    The 74 random bits are drawn anew every millisecond and counted up within one (method 2).
    """
    with _lock:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > _last[0]:
            # The top bit stays free, so that counting up within a millisecond cannot overflow.
            _last[:] = [now_ms, int.from_bytes(os.urandom(10)) >> 7]
        else:
            _last[1] += 1 + (os.urandom(1)[0] & 0x3F)
        stamp_ms, random = _last
    random &= (1 << _RANDOM_BITS) - 1
    high, low = random >> 62, random & ((1 << 62) - 1)
    return (stamp_ms << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low


def new_id(prefix: str) -> str:
    """Make a TypeID: `prefix`, an underscore, and 26 characters of Crockford base32."""
    value, digits = uuid7(), []
    for _ in range(26):
        digits.append(_ALPHABET[value & 31])
        value >>= 5
    return f"{prefix}_{''.join(reversed(digits))}"


def now() -> datetime:
    """Give the present time in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time with microseconds, on every database."""

    impl = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        """The type of its values; page cursors are read by it."""
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC without a zone; a naive time is a bug."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("times must be aware (UTC)")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time back as aware UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


class IdType(TypeDecorator[str]):
    """An id: ASCII and binary, so that MySQL compares bytes and indexes a third of the size.

    A text that can be no id is asked for as the empty one, which nothing has: MySQL would refuse to
    compare it with an ASCII column, and SQLite to encode half a surrogate pair.
    """

    impl = String(36).with_variant(
        mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Give the id as it is asked for."""
        return as_id(value)


def as_id(value: str | None) -> str | None:
    """Give a text as an id is asked for: the empty one where it can be none."""
    if value is None or (len(value) <= 36 and value.isascii() and "\x00" not in value):
        return value
    return ""


def is_id(value: str) -> bool:
    """Tell whether a text can be an id at all."""
    return len(value) <= 36 and value.isascii() and "\x00" not in value


Id = IdType()
# MySQL's TEXT ends at 64 KB; messages and outputs are longer.
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
# SQLite numbers rows by itself only for INTEGER PRIMARY KEY.
BigId = BigInteger().with_variant(Integer(), "sqlite")
Blob = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
Json = JSON


def enum(values: type[StrEnum]) -> Enum:
    """A portable enum column: VARCHAR holding the lower-case value, with a CHECK."""
    return Enum(
        values,
        native_enum=False,
        create_constraint=True,
        length=20,
        name=values.__name__.lower(),
        values_callable=lambda members: [member.value.lower() for member in members],
    )


class Record(DeclarativeBase):
    """A table with a TypeID. `Row` is its immutable read form, without the heavy columns."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    __abstract__ = True
    __table_args__: Any = {  # noqa: RUF012 - SQLAlchemy reads it so.
        "mysql_charset": "utf8mb4",
        "mysql_collate": "utf8mb4_bin",
    }

    prefix: ClassVar[str] = ""
    Row: ClassVar[type[tuple[Any, ...]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Map the table, then derive its row class and register its id prefix."""
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("__abstract__", False):
            cls.Row = _row_class(cls)
            if cls.prefix:
                if cls.prefix in PREFIXES:
                    raise TypeError(f"id prefix {cls.prefix} is taken by {PREFIXES[cls.prefix]}")
                PREFIXES[cls.prefix] = cls

    def frozen(self) -> Self:
        """Give this entity's immutable row (typed as the table, whose attributes it has)."""
        row = type(self).Row
        return row._make(getattr(self, name) for name in row._fields)  # type: ignore[attr-defined,no-any-return]


PREFIXES: dict[str, type[Record]] = {}


class _RowMixin:
    """Identity of a row: its table and id, whatever its other values."""

    __slots__ = ()
    record: ClassVar[type[Record]]

    def __hash__(self) -> int:
        return hash(self.id)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return is_row(other, self.record) and self.id == other.id  # type: ignore[attr-defined]

    def __ne__(self, other: object) -> bool:
        return not self == other


def is_row(value: object, record: type[Record]) -> bool:
    """Tell whether a value is a row of a table, whole or partial."""
    return isinstance(value, _RowMixin) and value.record is record


@functools.lru_cache(maxsize=4_096)
def partial_row(record: type[Record], names: tuple[str, ...]) -> type[tuple[Any, ...]]:
    """Give the class of rows of a table that have some of its columns; others are no attributes."""
    return record.Row if names == record.Row._fields else _row_class_of(record, names)  # type: ignore[attr-defined]


def _row_class(record: type[Record]) -> type[tuple[Any, ...]]:
    return _row_class_of(
        record,
        tuple(
            attribute.key
            for attribute in sqla_inspect(record).column_attrs
            if not attribute.columns[0].info.get("heavy")
        ),
    )


def _row_class_of(record: type[Record], names: tuple[str, ...]) -> type[tuple[Any, ...]]:
    base = namedtuple(f"{record.__name__}Row", names)  # type: ignore[misc]
    return type(f"{record.__name__}Row", (_RowMixin, base), {"__slots__": (), "record": record})


def row_columns(record: type[Record]) -> list[Any]:
    """Give the mapped columns of a table's row, in the row's order."""
    return [getattr(record, name) for name in record.Row._fields]  # type: ignore[attr-defined]


def rows_of(record: type[R], tuples: Iterable[Any]) -> list[R]:
    """Turn selected tuples (in `row_columns` order) into rows."""
    make = record.Row._make  # type: ignore[attr-defined]
    return [make(values) for values in tuples]


def id_column(prefix: str) -> Mapped[str]:
    """The primary key of an addressable row."""
    return mapped_column(Id, primary_key=True, default=lambda: new_id(prefix))


def created_column() -> Mapped[datetime]:
    """When the row was made."""
    return mapped_column(UtcDateTime, default=now, index=True)


def updated_column() -> Mapped[datetime]:
    """When the row was last changed."""
    return mapped_column(UtcDateTime, default=now, onupdate=now)


def embedding_column() -> Mapped[bytes | None]:
    """A float32 little-endian vector; selected only when asked for."""
    return mapped_column(Blob, default=None, info={"heavy": True})
