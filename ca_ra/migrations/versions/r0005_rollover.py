"""Several issuing CAs: which there are, and which of them issued and revoked what."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    authority = op.create_table(
        "authority",
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("chain", sa.Text(), nullable=True),
        sa.Column("response_certificate", sa.Text(), nullable=True),
        sa.Column("announce_time", UtcMicros(), nullable=False),
        sa.Column("activate_after", UtcMicros(), nullable=False),
        sa.Column("activate_time", UtcMicros(), nullable=True),
        sa.Column("retire_time", UtcMicros(), nullable=True),
        sa.PrimaryKeyConstraint("generation", name=op.f("pk_authority")),
    )
    now = datetime.now(UTC)
    first = {"generation": 1, "announce_time": now, "activate_after": now, "activate_time": now}
    op.bulk_insert(authority, [first])
    for table in ("certificate", "revocation"):
        op.add_column(table, sa.Column("generation", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_revocation_generation_sequence", "revocation", ["generation", "sequence"])
    # A CRL's number is its CA's own from now on: another primary key, and by that another table.
    op.create_table(
        "published_crl",
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("this_update", UtcMicros(), nullable=False),
        sa.Column("next_update", UtcMicros(), nullable=False),
        sa.Column("revocations", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("generation", "number", name=op.f("pk_published_crl")),
    )
    columns = "number, der, this_update, next_update, revocations"
    op.execute(f"INSERT INTO published_crl (generation, {columns}) SELECT 1, {columns} FROM crl")  # noqa: S608
    op.drop_table("crl")
