"""Successors of certificates: a registration has one certificate that renews no other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("certificate") as batch:
        batch.add_column(sa.Column("predecessor", sa.String(length=40), nullable=True))
        batch.add_column(sa.Column("lapse_time", UtcMicros(), nullable=True))
        batch.create_foreign_key("fk_certificate_predecessor_certificate", "certificate", ["predecessor"], ["serial"])
        batch.drop_constraint("uq_certificate_registration_id", type_="unique")
    first, lasting = sa.text("predecessor IS NULL"), sa.text("lapse_time IS NULL")
    op.create_index(
        "uq_certificate_registration",
        "certificate",
        ["registration_id"],
        unique=True,
        sqlite_where=first,
        postgresql_where=first,
    )
    op.create_index(
        "uq_certificate_successor",
        "certificate",
        ["predecessor"],
        unique=True,
        sqlite_where=lasting,
        postgresql_where=lasting,
    )
