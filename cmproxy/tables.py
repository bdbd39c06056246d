"""The CM proxy's tables (SQLAlchemy Core). Changes need a revision in ``migrations/versions``."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    false,
    text,
)

from nftrust.storage import UtcMicros, new_metadata

METADATA = new_metadata()

network_function = Table(
    "network_function",
    METADATA,
    Column("nf_instance_id", String(36), primary_key=True),
    Column("nf_type", String(32), nullable=False),
    Column("fqdns", String(4200), nullable=False),
    Column("agent_endpoint", String(260), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("day0_root", String(64), nullable=False),
    Column("transport_key_sha256", LargeBinary),
    Column("pin_on_first_contact", Boolean, nullable=False),
    Column("pinned_sha256", LargeBinary),
    Column("attestation_required", Boolean, nullable=False),
    Column("delivery_mode", String(16), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
    Column("retire_request_time", UtcMicros),
    Column("retire_time", UtcMicros),
    Column("retire_next_time", UtcMicros),
    Column("retire_attempt", Integer, nullable=False, server_default="0"),
    Column("retire_reason", String(64), nullable=False, server_default=""),
    Column("re_enrol_after_expiry", Boolean, nullable=False, server_default=false()),
    Column("recovery_next_time", UtcMicros),
    Index(
        "ix_network_function_recovery_next_time",
        "recovery_next_time",
        sqlite_where=text("recovery_next_time IS NOT NULL"),
        postgresql_where=text("recovery_next_time IS NOT NULL"),
    ),
    Index(
        "ix_network_function_retire_next_time",
        "retire_next_time",
        sqlite_where=text("retire_next_time IS NOT NULL"),
        postgresql_where=text("retire_next_time IS NOT NULL"),
    ),
)

network_function_fqdn = Table(
    "network_function_fqdn",
    METADATA,
    Column("fqdn", String(253), primary_key=True),
    Column(
        "nf_instance_id",
        ForeignKey("network_function.nf_instance_id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
    Column("shared", Boolean, nullable=False),
)

enrolment = Table(
    "enrolment",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("nf_instance_id", String(36), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("working", String(16), nullable=False),
    Column("allow_re_enrolment", Boolean, nullable=False),
    Column("replaces_instance", Boolean, nullable=False, server_default=false()),
    Column("attempt", Integer, nullable=False),
    Column("intent", LargeBinary),
    Column("credential", LargeBinary),
    Column("registration", String(64), nullable=False),
    Column("enrolment_info", Text, nullable=False),
    Column("certificate", String(64), nullable=False),
    Column("problem", Text),
    Column("steps", Text, nullable=False),
    Column("cleanup", Boolean, nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
    Column("end_time", UtcMicros),
    #: Timer, back-off and lease in one; NULL: never again.
    Column("next_time", UtcMicros),
    Column("owner", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    #: 1 until it has ended, then NULL.
    Column("active", Integer),
    Index(
        "uq_enrolment_active",
        "nf_instance_id",
        unique=True,
        sqlite_where=text("active = 1"),
        postgresql_where=text("active = 1"),
    ),
    Index(
        "ix_enrolment_next_time",
        "next_time",
        sqlite_where=text("next_time IS NOT NULL"),
        postgresql_where=text("next_time IS NOT NULL"),
    ),
    Index("ix_enrolment_nf_sequence", "nf_instance_id", "sequence"),
)
