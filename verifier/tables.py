"""The verifier's tables (SQLAlchemy Core). Changes need a revision in ``migrations/versions``."""

from __future__ import annotations

from sqlalchemy import Column, LargeBinary, String, Table

from nftrust.storage import UtcMicros, new_metadata

METADATA = new_metadata()

attestation_result = Table(
    "attestation_result",
    METADATA,
    Column("nf_instance_id", String(36), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("transport_key_sha256", LargeBinary, nullable=False),
    Column("policy_version", String(64), nullable=False),
    Column("appraise_time", UtcMicros, nullable=False),
    Column("expire_time", UtcMicros, nullable=False),
)
