"""End entities that OAM has retired."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("end_entity", sa.Column("retire_time", UtcMicros(), nullable=True))
