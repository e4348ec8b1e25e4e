"""Column types of the migrations, frozen apart from the models that go on changing."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

ID = sa.String(36).with_variant(
    mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
TOPIC = sa.String(80).with_variant(
    mysql.VARCHAR(80, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BLOB = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def enum(name: str, *values: str) -> sa.Enum:
    """A portable enum column: VARCHAR(20) with a CHECK."""
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=20)
