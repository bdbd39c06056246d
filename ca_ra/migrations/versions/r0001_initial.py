"""The CA/RA's first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nftrust.storage import UtcMicros, create_shared_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_shared_tables(op)
    op.create_table(
        "crl",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("this_update", UtcMicros(), nullable=False),
        sa.Column("next_update", UtcMicros(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_crl")),
    )
    op.create_table(
        "end_entity",
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("nf_type", sa.String(length=32), nullable=False),
        sa.Column("create_time", UtcMicros(), nullable=False),
        sa.Column("suspend_time", UtcMicros(), nullable=True),
        sa.PrimaryKeyConstraint("nf_instance_id", name=op.f("pk_end_entity")),
    )
    op.create_table(
        "nf_statement",
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("request_key", sa.String(length=512), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_nf_statement")),
    )
    op.create_table(
        "end_entity_fqdn",
        sa.Column("fqdn", sa.String(length=253), nullable=False),
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["nf_instance_id"], ["end_entity.nf_instance_id"], name=op.f("fk_end_entity_fqdn_nf_instance_id")
        ),
        sa.PrimaryKeyConstraint("fqdn", "nf_instance_id", name=op.f("pk_end_entity_fqdn")),
    )
    op.create_index(op.f("ix_end_entity_fqdn_nf_instance_id"), "end_entity_fqdn", ["nf_instance_id"], unique=False)
    op.create_table(
        "end_entity_key",
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["nf_instance_id"], ["end_entity.nf_instance_id"], name=op.f("fk_end_entity_key_nf_instance_id")
        ),
        sa.PrimaryKeyConstraint("spki_sha256", name=op.f("pk_end_entity_key")),
    )
    op.create_table(
        "registration",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("reference", sa.String(length=64), nullable=False),
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("nf_type", sa.String(length=32), nullable=False),
        sa.Column("fqdns", sa.String(length=4200), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=64), nullable=False),
        sa.Column("delivery_mode", sa.String(length=16), nullable=False),
        sa.Column("mac_algorithm", sa.String(length=16), nullable=False),
        sa.Column("transport_key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", UtcMicros(), nullable=False),
        sa.Column("expire_time", UtcMicros(), nullable=False),
        sa.Column("iak_blob", sa.LargeBinary(), nullable=True),
        sa.Column("row_mac", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_serial", sa.String(length=40), nullable=True),
        sa.Column("issue_time", UtcMicros(), nullable=True),
        sa.Column("confirm_time", UtcMicros(), nullable=True),
        sa.Column("revoke_time", UtcMicros(), nullable=True),
        sa.Column("live", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["nf_instance_id"], ["end_entity.nf_instance_id"], name=op.f("fk_registration_nf_instance_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registration")),
        sa.UniqueConstraint("reference", name=op.f("uq_registration_reference")),
        sa.UniqueConstraint("sequence", name=op.f("uq_registration_sequence")),
    )
    op.create_index("ix_registration_nf_sequence", "registration", ["nf_instance_id", "sequence"], unique=False)
    op.create_index(
        "uq_registration_live",
        "registration",
        ["nf_instance_id"],
        unique=True,
        sqlite_where=sa.text("live = 1"),
        postgresql_where=sa.text("live = 1"),
    )
    op.create_table(
        "certificate",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("registration_id", sa.String(length=32), nullable=False),
        sa.Column("nf_instance_id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("not_before", UtcMicros(), nullable=False),
        sa.Column("not_after", UtcMicros(), nullable=False),
        sa.Column("create_time", UtcMicros(), nullable=False),
        sa.Column("confirm_time", UtcMicros(), nullable=True),
        sa.ForeignKeyConstraint(["registration_id"], ["registration.id"], name=op.f("fk_certificate_registration_id")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificate")),
        sa.UniqueConstraint("registration_id", name=op.f("uq_certificate_registration_id")),
        sa.UniqueConstraint("sequence", name=op.f("uq_certificate_sequence")),
        sa.UniqueConstraint("sha256", name=op.f("uq_certificate_sha256")),
    )
    op.create_index("ix_certificate_nf_sequence", "certificate", ["nf_instance_id", "sequence"], unique=False)
