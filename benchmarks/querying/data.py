"""The same people, conversations and messages for every database: ids and texts are computed."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pymysql  # type: ignore[import-untyped, unused-ignore]

ASKED_MESSAGES = 50
"""Messages of each conversation that is asked for by its id."""
VIEWER = 0
USERNAME, PASSWORD = "person0", "correct horse"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_ASKED_MAX = 60
Cell = str | int | None

COLUMNS = {
    "users": (
        *("id", "username", "email", "password_hash", "display_name", "is_active"),
        *("created_at", "updated_at"),
    ),
    "conversations": ("id", "user_id", "title", "status", "created_at", "updated_at"),
    "messages": (
        *("id", "conversation_id", "user_id", "role", "status", "content"),
        *("created_at", "updated_at"),
    ),
}


def make_id(prefix: str, number: int) -> str:
    """Give the TypeID of the `number`-th object of a kind: they sort by number."""
    value = (int(_BEGAN.timestamp() * 1000) + number << 80) | (0x7 << 76) | (0b10 << 62) | number
    digits = [_ALPHABET[value >> 5 * place & 31] for place in range(25, -1, -1)]
    return f"{prefix}_{''.join(digits)}"


def _time(seconds: int) -> str:
    # With a fraction, which every database and language then writes with six digits.
    return (_BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.123456")


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is. The viewer owns the conversations that are asked for."""

    users: int = 1_000
    conversations: int = 10_000
    messages: int = 120_000

    @property
    def asked(self) -> int:
        """How many conversations are asked for by id; each has 50 messages."""
        return min(_ASKED_MAX, self.conversations // 2, self.messages // (2 * ASKED_MESSAGES))

    def times(self, factor: int) -> "Shape":
        """Give a shape with so many times as much of everything."""
        return Shape(self.users * factor, self.conversations * factor, self.messages * factor)

    @property
    def asked_ids(self) -> list[str]:
        """Ids of the conversations that are asked for."""
        return [make_id("cnv", number) for number in range(self.asked)]

    @property
    def viewer_id(self) -> str:
        """Id of the user who asks."""
        return make_id("usr", VIEWER)

    def rows(self, table: str, password_hash: str = "") -> Iterator[tuple[Cell, ...]]:
        """Give the rows of a table, in the order of `COLUMNS`."""
        if table == "users":
            return self._users(password_hash)
        return self._conversations() if table == "conversations" else self._messages()

    def _users(self, password_hash: str) -> Iterator[tuple[Cell, ...]]:
        for number in range(self.users):
            name, at = f"person{number}", _time(number)
            yield (
                *(make_id("usr", number), name, f"{name}@example.org", password_hash),
                *(f"Person {number}", 1, at, at),
            )

    def _owner(self, conversation: int) -> str:
        # Nobody else's conversation is the viewer's: what is listed is what is asked for.
        number = VIEWER if conversation < self.asked else 1 + conversation % (self.users - 1)
        return make_id("usr", number)

    def _conversations(self) -> Iterator[tuple[Cell, ...]]:
        for number in range(self.conversations):
            changed = _time(10_000_000 - number)
            yield (
                *(make_id("cnv", number), self._owner(number), f"Conversation {number}"),
                *("active", _time(number), changed),
            )

    def _messages(self) -> Iterator[tuple[Cell, ...]]:
        others = self.conversations - self.asked
        each, more = divmod(self.messages - self.asked * ASKED_MESSAGES, others)
        count = 0
        for number in range(self.conversations):
            size = each + (number - self.asked < more)
            for index in range(ASKED_MESSAGES if number < self.asked else size):
                is_person = index % 2 == 0
                at = _time(number + index)
                yield (
                    *(make_id("msg", count), make_id("cnv", number)),
                    self._owner(number) if is_person else None,
                    "user" if is_person else "assistant",
                    "completed",
                    f"Message {index} of conversation {number}. " * 4,
                    *(at, at),
                )
                count += 1


def write_files(shape: Shape, directory: Path, password_hash: str) -> dict[str, Path]:
    """Write the rows as MySQL and PostgreSQL read them: tabs between columns, `\\N` for null."""
    files = {}
    for table in COLUMNS:
        files[table] = directory / f"{table}.tsv"
        with files[table].open("w") as file:
            for row in shape.rows(table, password_hash):
                cells = ("\\N" if cell is None else str(cell) for cell in row)
                file.write("\t".join(cells) + "\n")
    return files


def _user_role(role_id: str, user_id: str) -> tuple[str, ...]:
    return (make_id("uro", 0), user_id, role_id, _time(0))


def fill_mysql(
    connection: "pymysql.Connection[pymysql.cursors.Cursor]",
    shape: Shape,
    files: dict[str, Path],
) -> None:
    """Fill the product's tables, which are there and hold no people yet."""
    with connection.cursor() as cursor:
        cursor.execute("SET foreign_key_checks = 0, unique_checks = 0")
        for table, columns in COLUMNS.items():
            names = ", ".join(columns)
            cursor.execute(
                f"LOAD DATA LOCAL INFILE '{files[table]}' INTO TABLE {table}"
                f" CHARACTER SET utf8mb4 ({names})"
            )
        cursor.execute("SELECT id FROM roles WHERE name = 'user'")
        (role_id,) = cursor.fetchone() or ("",)
        cursor.execute(
            "INSERT INTO user_roles (id, user_id, role_id, assigned_at) VALUES (%s, %s, %s, %s)",
            _user_role(role_id, shape.viewer_id),
        )
        connection.commit()
        cursor.execute(f"ANALYZE TABLE {', '.join(COLUMNS)}")
        cursor.fetchall()


def fill_sqlite(path: Path, shape: Shape, password_hash: str) -> None:
    """Fill the product's tables in a file, which are there and hold no people yet."""
    connection = sqlite3.connect(path)
    with connection:
        for table, columns in COLUMNS.items():
            marks = ", ".join("?" * len(columns))
            connection.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
                shape.rows(table, password_hash),
            )
        (role_id,) = connection.execute("SELECT id FROM roles WHERE name = 'user'").fetchone()
        connection.execute(
            "INSERT INTO user_roles (id, user_id, role_id, assigned_at) VALUES (?, ?, ?, ?)",
            _user_role(role_id, shape.viewer_id),
        )
    connection.execute("ANALYZE")
    connection.close()


_POSTGRES_TABLES = """
CREATE TYPE conversation_status AS ENUM ('ACTIVE', 'ARCHIVED', 'DELETED');
CREATE TYPE message_role AS ENUM ('USER', 'ASSISTANT', 'SYSTEM', 'TOOL');
CREATE TABLE users (id text COLLATE "C" PRIMARY KEY, username text NOT NULL UNIQUE,
  email text NOT NULL, password_hash text NOT NULL, display_name text NOT NULL,
  is_active boolean NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
CREATE TABLE conversations (id text COLLATE "C" PRIMARY KEY,
  user_id text COLLATE "C" NOT NULL REFERENCES users, title text,
  status conversation_status NOT NULL, created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL);
CREATE TABLE messages (id text COLLATE "C" PRIMARY KEY,
  conversation_id text COLLATE "C" NOT NULL REFERENCES conversations,
  user_id text COLLATE "C" REFERENCES users, role message_role NOT NULL, status text NOT NULL,
  content text NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
SET timezone = 'UTC';
"""
_POSTGRES_INDEXES = """
CREATE INDEX ON conversations (user_id, updated_at, id);
CREATE INDEX ON messages (conversation_id, id);
CREATE INDEX ON messages (user_id);
VACUUM ANALYZE;
"""
_UPPER = {"conversations": ("status", "conversation_status"), "messages": ("role", "message_role")}


def postgres_script(files: dict[str, Path]) -> str:
    """Give what psql is to run: the three tables, indexed as the product's are, and their rows."""
    parts = [_POSTGRES_TABLES]
    for table, columns in COLUMNS.items():
        names = ", ".join(columns)
        enum, kind = _UPPER.get(table, ("", ""))
        parts.append(_copied(table, columns, files[table]))
        values = ", ".join(f"upper({c})::{kind}" if c == enum else _cast(c) for c in columns)
        parts.append(f"INSERT INTO {table} ({names}) SELECT {values} FROM new_{table};\n")  # noqa: S608
    return "".join([*parts, _POSTGRES_INDEXES])


def _copied(table: str, columns: Sequence[str], file: Path) -> str:
    texts = ", ".join(f"{column} text" for column in columns)
    return f"CREATE TEMPORARY TABLE new_{table} ({texts});\n\\copy new_{table} FROM '{file}'\n"


def _cast(column: str) -> str:
    kinds = {"is_active": "boolean", "created_at": "timestamptz", "updated_at": "timestamptz"}
    return f"{column}::{kinds[column]}" if column in kinds else column
