"""Revocations, and CRLs that list them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "revocation",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("revoke_time", UtcMicros(), nullable=False),
        sa.Column("not_after", UtcMicros(), nullable=False),
        sa.ForeignKeyConstraint(["serial"], ["certificate.serial"], name=op.f("fk_revocation_serial_certificate")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_revocation")),
        sa.UniqueConstraint("sequence", name=op.f("uq_revocation_sequence")),
    )
    op.create_index("ix_revocation_not_after", "revocation", ["not_after"])
    op.add_column("crl", sa.Column("revocations", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_certificate_not_after", "certificate", ["not_after"])
    op.create_index(
        "ix_certificate_unconfirmed",
        "certificate",
        ["create_time"],
        sqlite_where=sa.text("confirm_time IS NULL"),
        postgresql_where=sa.text("confirm_time IS NULL"),
    )
