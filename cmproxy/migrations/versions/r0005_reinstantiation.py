"""Enrolments of NF instances that go on with another token."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "enrolment",
        sa.Column("replaces_instance", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
