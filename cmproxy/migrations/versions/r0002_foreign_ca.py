"""The reference value and sealed secret of a foreign CA/RA."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("enrolment", sa.Column("credential", sa.LargeBinary))


def downgrade() -> None:
    op.drop_column("enrolment", "credential")
