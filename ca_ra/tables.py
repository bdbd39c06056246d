"""The CA/RA's tables (SQLAlchemy Core). Changes need a revision in ``migrations/versions``."""

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

from nftrust.storage.tables import UtcMicros, new_metadata

METADATA = new_metadata()

end_entity = Table(
    "end_entity",
    METADATA,
    Column("nf_instance_id", String(36), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("nf_type", String(32), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    #: Set by a theft signal, lifted by OAM.
    Column("suspend_time", UtcMicros),
    #: Set by OAM, for good.
    Column("retire_time", UtcMicros),
)

end_entity_fqdn = Table(
    "end_entity_fqdn",
    METADATA,
    Column("fqdn", String(253), primary_key=True),
    Column("nf_instance_id", ForeignKey("end_entity.nf_instance_id"), primary_key=True, index=True),
    Column("shared", Boolean, nullable=False),
)

#: A public key belongs to one NF only (security rule 3).
end_entity_key = Table(
    "end_entity_key",
    METADATA,
    Column("spki_sha256", LargeBinary, primary_key=True),
    Column("nf_instance_id", ForeignKey("end_entity.nf_instance_id"), nullable=False),
)

#: A statement of an NF serves one request (security rule 2).
nf_statement = Table(
    "nf_statement",
    METADATA,
    Column("nonce", LargeBinary, primary_key=True),
    Column("request_key", String(512), nullable=False),
)

registration = Table(
    "registration",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("reference", String(64), nullable=False, unique=True),
    Column("nf_instance_id", ForeignKey("end_entity.nf_instance_id"), nullable=False),
    Column("nf_type", String(32), nullable=False),
    Column("fqdns", String(4200), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("delivery_mode", String(16), nullable=False),
    Column("mac_algorithm", String(16), nullable=False),
    Column("transport_key_sha256", LargeBinary, nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("expire_time", UtcMicros, nullable=False),
    Column("iak_blob", LargeBinary),
    Column("row_mac", LargeBinary, nullable=False),
    Column("replaces_instance", Boolean, nullable=False, server_default=false()),
    Column("certificate_serial", String(40)),
    Column("issue_time", UtcMicros),
    Column("confirm_time", UtcMicros),
    Column("revoke_time", UtcMicros),
    #: 1 while it may still lead to a certificate or a confirmation, else NULL.
    Column("live", Integer),
    Index(
        "uq_registration_live",
        "nf_instance_id",
        unique=True,
        sqlite_where=text("live = 1"),
        postgresql_where=text("live = 1"),
    ),
    Index("ix_registration_nf_sequence", "nf_instance_id", "sequence"),
)

certificate = Table(
    "certificate",
    METADATA,
    Column("serial", String(40), primary_key=True),
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("registration_id", ForeignKey("registration.id"), nullable=False),
    #: Serial of the certificate that it renews; NULL where it was issued for an IAK.
    Column("predecessor", ForeignKey("certificate.serial")),
    #: Set where a successor was revoked before its confirmation: it is none any more.
    Column("lapse_time", UtcMicros),
    Column("nf_instance_id", String(36), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("not_before", UtcMicros, nullable=False),
    Column("not_after", UtcMicros, nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("confirm_time", UtcMicros),
    #: Which CA issued it.
    Column("generation", Integer, nullable=False, server_default="1"),
    #: Consumption of the IAK is the row: one registration, one certificate (security rule 7).
    Index(
        "uq_certificate_registration",
        "registration_id",
        unique=True,
        sqlite_where=text("predecessor IS NULL"),
        postgresql_where=text("predecessor IS NULL"),
    ),
    #: One successor per certificate.
    Index(
        "uq_certificate_successor",
        "predecessor",
        unique=True,
        sqlite_where=text("lapse_time IS NULL"),
        postgresql_where=text("lapse_time IS NULL"),
    ),
    Index("ix_certificate_nf_sequence", "nf_instance_id", "sequence"),
    Index("ix_certificate_not_after", "not_after"),
    Index(
        "ix_certificate_unconfirmed",
        "create_time",
        sqlite_where=text("confirm_time IS NULL"),
        postgresql_where=text("confirm_time IS NULL"),
    ),
)

#: Final: a row is never changed or removed.
revocation = Table(
    "revocation",
    METADATA,
    Column("serial", ForeignKey("certificate.serial"), primary_key=True),
    Column("sequence", BigInteger, nullable=False, unique=True),
    #: CRLReason (RFC 5280 clause 5.3.1).
    Column("reason", Integer, nullable=False),
    Column("revoke_time", UtcMicros, nullable=False),
    #: Of the certificate: how long it has to be listed.
    Column("not_after", UtcMicros, nullable=False),
    #: Of the certificate: on whose CRL it is listed.
    Column("generation", Integer, nullable=False, server_default="1"),
    Index("ix_revocation_not_after", "not_after"),
    Index("ix_revocation_generation_sequence", "generation", "sequence"),
)

#: The CAs of a rollover (docs/rollover.md); generation 1 is there from the first migration on.
authority = Table(
    "authority",
    METADATA,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    #: PEM; NULL for generation 1, whose certificates are files.
    Column("chain", Text),
    Column("response_certificate", Text),
    Column("announce_time", UtcMicros, nullable=False),
    Column("activate_after", UtcMicros, nullable=False),
    Column("activate_time", UtcMicros),
    Column("retire_time", UtcMicros),
)

crl = Table(
    "published_crl",
    METADATA,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("der", LargeBinary, nullable=False),
    Column("this_update", UtcMicros, nullable=False),
    Column("next_update", UtcMicros, nullable=False),
    #: The last revocation that it lists, by sequence; 0 before the first.
    Column("revocations", BigInteger, nullable=False, server_default="0"),
)
