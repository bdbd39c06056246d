"""Network functions that are enrolled again once their certificate has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "network_function",
        sa.Column("re_enrol_after_expiry", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("network_function", sa.Column("recovery_next_time", UtcMicros(), nullable=True))
    op.create_index(
        "ix_network_function_recovery_next_time",
        "network_function",
        ["recovery_next_time"],
        sqlite_where=sa.text("recovery_next_time IS NOT NULL"),
        postgresql_where=sa.text("recovery_next_time IS NOT NULL"),
    )
