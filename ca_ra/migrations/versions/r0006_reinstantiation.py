"""Registrations of NF instances that go on with another token."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "registration",
        sa.Column("replaces_instance", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
