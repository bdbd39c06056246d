"""Retirement of network functions: the intention, and what has become of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for name in ("retire_request_time", "retire_time", "retire_next_time"):
        op.add_column("network_function", sa.Column(name, UtcMicros(), nullable=True))
    op.add_column("network_function", sa.Column("retire_attempt", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("network_function", sa.Column("retire_reason", sa.String(64), nullable=False, server_default=""))
    op.create_index(
        "ix_network_function_retire_next_time",
        "network_function",
        ["retire_next_time"],
        sqlite_where=sa.text("retire_next_time IS NOT NULL"),
        postgresql_where=sa.text("retire_next_time IS NOT NULL"),
    )
