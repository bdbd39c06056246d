"""The verifier's first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros, create_shared_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_shared_tables(op)
    op.create_table(
        "attestation_result",
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("transport_key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("policy_version", sa.String(length=64), nullable=False),
        sa.Column("appraise_time", UtcMicros(), nullable=False),
        sa.Column("expire_time", UtcMicros(), nullable=False),
        sa.PrimaryKeyConstraint("nf_instance_id", name=op.f("pk_attestation_result")),
    )
