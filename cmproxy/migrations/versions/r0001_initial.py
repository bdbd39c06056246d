"""The CM proxy's first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros, create_shared_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_shared_tables(op)
    op.create_table(
        "enrolment",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("working", sa.String(length=16), nullable=False),
        sa.Column("allow_re_enrolment", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("intent", sa.LargeBinary(), nullable=True),
        sa.Column("registration", sa.String(length=64), nullable=False),
        sa.Column("enrolment_info", sa.Text(), nullable=False),
        sa.Column("certificate", sa.String(length=64), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("steps", sa.Text(), nullable=False),
        sa.Column("cleanup", sa.Boolean(), nullable=False),
        sa.Column("create_time", UtcMicros(), nullable=False),
        sa.Column("update_time", UtcMicros(), nullable=False),
        sa.Column("end_time", UtcMicros(), nullable=True),
        sa.Column("next_time", UtcMicros(), nullable=True),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment")),
        sa.UniqueConstraint("sequence", name=op.f("uq_enrolment_sequence")),
    )
    op.create_index(
        "ix_enrolment_next_time",
        "enrolment",
        ["next_time"],
        unique=False,
        sqlite_where=sa.text("next_time IS NOT NULL"),
        postgresql_where=sa.text("next_time IS NOT NULL"),
    )
    op.create_index("ix_enrolment_nf_sequence", "enrolment", ["nf_instance_id", "sequence"], unique=False)
    op.create_index(
        "uq_enrolment_active",
        "enrolment",
        ["nf_instance_id"],
        unique=True,
        sqlite_where=sa.text("active = 1"),
        postgresql_where=sa.text("active = 1"),
    )
    op.create_table(
        "network_function",
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("nf_type", sa.String(length=32), nullable=False),
        sa.Column("fqdns", sa.String(length=4200), nullable=False),
        sa.Column("agent_endpoint", sa.String(length=260), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("day0_root", sa.String(length=64), nullable=False),
        sa.Column("transport_key_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("pin_on_first_contact", sa.Boolean(), nullable=False),
        sa.Column("pinned_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("attestation_required", sa.Boolean(), nullable=False),
        sa.Column("delivery_mode", sa.String(length=16), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("create_time", UtcMicros(), nullable=False),
        sa.Column("update_time", UtcMicros(), nullable=False),
        sa.PrimaryKeyConstraint("nf_instance_id", name=op.f("pk_network_function")),
    )
    op.create_table(
        "network_function_fqdn",
        sa.Column("fqdn", sa.String(length=253), nullable=False),
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["nf_instance_id"],
            ["network_function.nf_instance_id"],
            name=op.f("fk_network_function_fqdn_nf_instance_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("fqdn", "nf_instance_id", name=op.f("pk_network_function_fqdn")),
    )
    op.create_index(
        op.f("ix_network_function_fqdn_nf_instance_id"), "network_function_fqdn", ["nf_instance_id"], unique=False
    )
