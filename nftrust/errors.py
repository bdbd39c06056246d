"""The one error tree.

Every refusal in nftrust is an :class:`NftrustError` with a stable
:class:`Reason`. The transport maps it to a gRPC status with
``google.rpc.ErrorInfo`` (AIP-193); nothing else crosses a process border.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Code(enum.Enum):
    """The gRPC status code a reason maps to (google.rpc.Code names)."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class Reason(enum.Enum):
    """Stable reasons of refusal. docs/errors.md is generated from this table."""

    code: Code
    meaning: str
    remedy: str

    def __init__(self, code: Code, meaning: str, remedy: str) -> None:
        self.code = code
        self.meaning = meaning
        self.remedy = remedy

    # Requests and resources
    MALFORMED_MESSAGE = (
        Code.INVALID_ARGUMENT,
        "The request is not a valid protobuf message.",
        "Send the message that the service description gives.",
    )
    INVALID_FIELD = (
        Code.INVALID_ARGUMENT,
        "A field is missing, too long or not in its form.",
        "See the field named in the error's metadata.",
    )
    INVALID_PAGE_TOKEN = (
        Code.INVALID_ARGUMENT,
        "The page token is not one of this list.",
        "Start again without a page token.",
    )
    INVALID_NF_INSTANCE_ID = (
        Code.INVALID_ARGUMENT,
        "The NF instance id is not a UUID of version 4.",
        "Use the nfInstanceId of the NF profile (TS 29.571).",
    )
    INVALID_NF_TYPE = (
        Code.INVALID_ARGUMENT,
        "The NF type is not in the syntax of an NFType.",
        "Use an NFType of TS 29.510 clause 6.1.6.3.3, such as AMF.",
    )
    FQDN_OUTSIDE_HOME_DOMAIN = (
        Code.INVALID_ARGUMENT,
        "The FQDN is not below the home domain.",
        "Use a name below the operator's home domain (TS 23.003 clause 28).",
    )
    FQDN_FORM_MISMATCH = (
        Code.INVALID_ARGUMENT,
        "The FQDN does not have the form of its NF type.",
        "See TS 23.003 clause 28 and docs/configuration.md for the form.",
    )
    FQDN_TAKEN = (
        Code.ALREADY_EXISTS,
        "The FQDN belongs to another NF.",
        "Choose another FQDN, or a profile that shares names (NF sets).",
    )
    NF_ALREADY_EXISTS = (
        Code.ALREADY_EXISTS,
        "A network function with this instance id exists.",
        "Update the existing one, or delete it first.",
    )
    NF_NOT_FOUND = (
        Code.NOT_FOUND,
        "There is no such network function.",
        "List the network functions to see which there are.",
    )
    ENROLMENT_NOT_FOUND = (
        Code.NOT_FOUND,
        "There is no such enrolment.",
        "List the enrolments of the network function.",
    )
    REGISTRATION_NOT_FOUND = (Code.NOT_FOUND, "There is no such registration.", "List the registrations at the CA/RA.")
    CERTIFICATE_NOT_FOUND = (Code.NOT_FOUND, "There is no such certificate.", "List the certificates at the CA/RA.")
    CERTIFICATE_REVOKED = (
        Code.FAILED_PRECONDITION,
        "The certificate is revoked.",
        "A revocation cannot be undone or changed; enrol the NF again if it is to have a certificate.",
    )
    CERTIFICATE_EXPIRED = (
        Code.FAILED_PRECONDITION,
        "The certificate has expired.",
        "Nothing is left to revoke or to renew; enrol the NF again if it is to have a certificate.",
    )
    CERTIFICATE_UNCONFIRMED = (
        Code.FAILED_PRECONDITION,
        "The certificate has not been confirmed.",
        "Confirm it with its own key before it is renewed.",
    )
    CERTIFICATE_SUPERSEDED = (
        Code.FAILED_PRECONDITION,
        "The certificate has a successor.",
        "Use the successor. Where another key has asked for a second one, the NF is suspended: somebody else may hold "
        "its key.",
    )
    CERTIFICATE_KEY_REUSED = (
        Code.FAILED_PRECONDITION,
        "The NF has had a certificate for this key before.",
        "Make a new key pair for each certificate.",
    )
    ATTESTATION_RESULT_NOT_FOUND = (
        Code.NOT_FOUND,
        "There is no attestation result for this NF.",
        "Have the NF's platform attested.",
    )
    END_ENTITY_NOT_FOUND = (Code.NOT_FOUND, "The CA/RA knows no such end entity.", "Check the NF instance id.")
    STALE_ETAG = (Code.ABORTED, "The resource has changed since it was read.", "Read it again and repeat the change.")
    REQUEST_ID_REUSED = (
        Code.INVALID_ARGUMENT,
        "The request id was used with another body.",
        "Use a new request id for a new request.",
    )
    ENROLMENT_ACTIVE = (
        Code.FAILED_PRECONDITION,
        "The network function has an active enrolment.",
        "Wait for it, or cancel it.",
    )
    NOT_ENROLLED = (
        Code.FAILED_PRECONDITION,
        "The NF has no certificate of this CA/RA that could be renewed.",
        "Enrol it.",
    )
    NF_RETIRED = (
        Code.FAILED_PRECONDITION,
        "The NF is retired: nothing is issued to it any more.",
        "Instantiate a new NF with an instance id of its own; a retired one does not come back.",
    )
    RETIREMENT_UNDER_WAY = (
        Code.FAILED_PRECONDITION,
        "The CA/RA has not yet closed the NF's end entity.",
        "Wait: the CM proxy tries until it is done. `nftrust nf show` says what it waits for.",
    )
    ENROLMENT_ENDED = (Code.FAILED_PRECONDITION, "The enrolment has ended.", "Start a new one.")
    ALREADY_ENROLLED = (
        Code.FAILED_PRECONDITION,
        "The NF holds a confirmed certificate.",
        "Allow re-enrolment explicitly if another certificate is wanted.",
    )

    # Authorisation
    PEER_UNAUTHENTICATED = (
        Code.UNAUTHENTICATED,
        "The peer has no service certificate.",
        "Present a certificate of the services CA.",
    )
    PEER_ROLE_INVALID = (
        Code.UNAUTHENTICATED,
        "The peer's certificate does not carry exactly one role URI.",
        "Issue the certificate with `nftrust pki`.",
    )
    PEER_DENIED = (
        Code.PERMISSION_DENIED,
        "The peer's certificate or principal is on the deny list, or not listed.",
        "Have the principal added to the access file.",
    )
    METHOD_NOT_ALLOWED = (
        Code.PERMISSION_DENIED,
        "The caller's role may not call this method.",
        "Call it in the role that docs/architecture.md names.",
    )
    OUT_OF_SCOPE = (
        Code.PERMISSION_DENIED,
        "The tenant, NF type, FQDN or day-0 root is outside the caller's scope.",
        "Ask for a wider scope, or use one's own names.",
    )
    LAB_CREDENTIAL = (
        Code.PERMISSION_DENIED,
        "A lab credential was presented outside a lab.",
        "Use credentials made for production.",
    )

    # Day-0 channel
    NF_UNREACHABLE = (
        Code.UNAVAILABLE,
        "The NF agent cannot be reached.",
        "Check the agent endpoint and that nf-agent is running.",
    )
    DAY0_CHAIN_UNTRUSTED = (
        Code.FAILED_PRECONDITION,
        "The NF's day-0 certificate does not chain to the day-0 root provisioned for it.",
        "Check the day-0 root of the network function.",
    )
    DAY0_IDENTITY_MISMATCH = (
        Code.FAILED_PRECONDITION,
        "The NF's day-0 certificate is for another NF.",
        "Check the agent endpoint and the instance id.",
    )
    DAY0_CERTIFICATE_EXPIRED = (
        Code.FAILED_PRECONDITION,
        "The NF's day-0 certificate is expired or not yet valid.",
        "Issue a new day-0 certificate; check both clocks.",
    )
    DAY0_CERTIFICATE_INVALID = (
        Code.FAILED_PRECONDITION,
        "The NF's day-0 certificate breaks the day-0 profile.",
        "Issue it with `nftrust pki day0`, or see docs/enrolment-flow.md.",
    )
    DAY0_ROOT_UNKNOWN = (
        Code.INVALID_ARGUMENT,
        "There is no day-0 root of this name.",
        "Configure the day-0 root, or correct its name.",
    )
    NF_STATEMENT_INVALID = (
        Code.FAILED_PRECONDITION,
        "The NF's statement does not verify or names something else.",
        "Restart the enrolment; if it recurs suspect the CM proxy or the NF.",
    )
    TRANSPORT_KEY_MISMATCH = (
        Code.FAILED_PRECONDITION,
        "The NF shows another transport key than the provisioned or pinned one.",
        "Compare with `nf-agent init`; a change needs OAM.",
    )
    TRANSPORT_KEY_UNPROVISIONED = (
        Code.FAILED_PRECONDITION,
        "No transport key fingerprint is provisioned and pinning at first contact is not allowed.",
        "Provision the fingerprint that `nf-agent init` prints.",
    )
    TRANSPORT_KEY_UNUSABLE = (
        Code.FAILED_PRECONDITION,
        "The transport key is not an RSA key of 3072 to 4096 bits.",
        "Run `nf-agent init` again.",
    )
    KEY_TAKEN = (
        Code.FAILED_PRECONDITION,
        "The public key belongs to another NF.",
        "Every NF makes its own keys: run `nf-agent init` at instantiation.",
    )

    # Registration and IAK
    DELIVERY_MODE_NOT_ALLOWED = (
        Code.FAILED_PRECONDITION,
        "Policy does not allow this IAK delivery mode.",
        "Use the wrapped mode, or change the policy.",
    )
    FOREIGN_CREDENTIAL_REFUSED = (
        Code.INVALID_ARGUMENT,
        "A reference value and secret were given where policy wants none, or none where it wants them.",
        "The certificate profile decides which CA/RA an NF belongs to, see docs/foreign-ca.md.",
    )
    FOREIGN_CA_RA_REFUSED = (
        Code.FAILED_PRECONDITION,
        "The foreign CA/RA refused the registration or the revocation.",
        "Look in that CA/RA's log; check its profiles and the rights of the CM proxy's RA certificate.",
    )
    FOREIGN_CA_RA_NOT_ALLOWED = (
        Code.FAILED_PRECONDITION,
        "The NF agent's configuration does not allow this foreign CA/RA.",
        "Set foreign_ca_ra in the NF agent's configuration, with the foreign CA/RA's root.",
    )
    PROFILE_UNKNOWN = (
        Code.INVALID_ARGUMENT,
        "There is no certificate profile of this name.",
        "Use a configured profile.",
    )
    REGISTRATION_OPEN = (Code.FAILED_PRECONDITION, "The NF has an open registration.", "Let it be used, or revoke it.")
    REGISTRATION_ENDED = (Code.FAILED_PRECONDITION, "The registration is no longer open.", "Register anew.")
    END_ENTITY_SUSPENDED = (
        Code.FAILED_PRECONDITION,
        "The NF is suspended after a theft signal.",
        "Investigate, then `nftrust ca reinstate`.",
    )
    ATTESTATION_RESULT_MISSING = (
        Code.FAILED_PRECONDITION,
        "Policy requires an attestation result and there is none.",
        "Have the NF's platform attested.",
    )
    ENROLMENT_INFO_INVALID = (
        Code.INVALID_ARGUMENT,
        "The enrolment information does not verify, is for another NF or below the agent's minimum.",
        "Suspect the CM proxy or the CA/RA.",
    )
    AGENT_NOT_ARMED = (
        Code.FAILED_PRECONDITION,
        "The NF holds a certificate or is enrolling and accepts no other delivery.",
        "Re-arm it locally, or have OAM allow re-enrolment.",
    )

    # Proofs and requests at the CA/RA
    PROOF_MALFORMED = (
        Code.INVALID_ARGUMENT,
        "The proof is not a JWS of the required form.",
        "See docs/enrolment-flow.md.",
    )
    PROOF_INVALID = (Code.UNAUTHENTICATED, "The proof does not verify.", "Check the reference value and the IAK.")
    IAK_EXPIRED = (Code.FAILED_PRECONDITION, "The IAK has expired.", "Start a new enrolment.")
    IAK_USED = (Code.FAILED_PRECONDITION, "The IAK has been used.", "Start a new enrolment.")
    IAK_REVOKED = (Code.FAILED_PRECONDITION, "The IAK has been revoked.", "Start a new enrolment.")
    IAK_FOR_OTHER_NF = (Code.FAILED_PRECONDITION, "The IAK was given to another NF.", "Use the IAK of this NF.")
    CSR_MALFORMED = (Code.INVALID_ARGUMENT, "The CSR is not a PKCS #10 request.", "Send DER.")
    CSR_TOO_LARGE = (Code.INVALID_ARGUMENT, "The CSR is larger than allowed.", "Send a CSR of at most 8 KiB.")
    CSR_SIGNATURE_INVALID = (
        Code.INVALID_ARGUMENT,
        "The CSR's signature does not verify.",
        "Sign it with the key it conveys.",
    )
    CSR_KEY_REFUSED = (
        Code.INVALID_ARGUMENT,
        "The CSR's key is of a type or size that the profile refuses.",
        "Use P-256 or P-384, or RSA of 2048 to 4096 bits.",
    )
    CSR_ALGORITHM_REFUSED = (
        Code.INVALID_ARGUMENT,
        "The CSR is signed with a refused algorithm.",
        "Sign with SHA-256, SHA-384 or SHA-512.",
    )
    CSR_IDENTITY_MISSING = (
        Code.INVALID_ARGUMENT,
        "The CSR does not carry the registered urn:uuid identity.",
        "Put the NF instance id into the CSR's subjectAltName.",
    )
    CSR_IDENTITY_MISMATCH = (
        Code.INVALID_ARGUMENT,
        "The CSR carries names beyond the registration.",
        "Ask only for registered names.",
    )
    CSR_EXTENSION_REFUSED = (
        Code.INVALID_ARGUMENT,
        "The CSR asks for an extension that the profile does not take from requests.",
        "Ask for subjectAltName only; the profile decides the rest.",
    )
    CA_EXPIRED = (
        Code.FAILED_PRECONDITION,
        "The issuing CA's certificate is not valid at this time.",
        "Check the clock; renew the issuing CA.",
    )
    CA_UNKNOWN = (
        Code.NOT_FOUND,
        "The CA/RA has no such CA, or has it no longer.",
        "Enrol the NF again: every CA that it knew of is retired.",
    )
    ROLLOVER_OUT_OF_ORDER = (
        Code.FAILED_PRECONDITION,
        "The CA rollover is not at the point where this can be done.",
        "See `ca-ra rollover status` and docs/rollover.md.",
    )
    ROLLOVER_TOO_EARLY = (
        Code.FAILED_PRECONDITION,
        "NFs may not have learnt of the new CA yet.",
        "Wait for the end of the lead time; `--force` goes ahead at the cost of NFs that have not fetched the bundle.",
    )
    CONFIRMATION_MISMATCH = (
        Code.INVALID_ARGUMENT,
        "The confirmation names another certificate or registration.",
        "Confirm the certificate that was received.",
    )
    RESPONSE_INVALID = (
        Code.FAILED_PRECONDITION,
        "The CA/RA's response does not verify or does not answer the request.",
        "Suspect the enrolment endpoint.",
    )

    # State of the service
    RATE_LIMITED = (
        Code.RESOURCE_EXHAUSTED,
        "Too many calls, streams or failed proofs from this peer.",
        "Wait as RetryInfo says.",
    )
    OVERLOADED = (
        Code.RESOURCE_EXHAUSTED,
        "The server has as many calls in progress as it takes.",
        "Wait as RetryInfo says; add fronts, or raise max_concurrent_rpcs, if it goes on.",
    )
    TOKEN_UNAVAILABLE = (
        Code.UNAVAILABLE,
        "The PKCS#11 token cannot be used at present.",
        "It heals by itself once the token is back; see the log of the role.",
    )
    STORAGE_UNAVAILABLE = (
        Code.UNAVAILABLE,
        "The database cannot be used at present.",
        "It heals by itself; check disk space and the database.",
    )
    STORAGE_FULL = (
        Code.UNAVAILABLE,
        "There is no space left to write what has to be kept.",
        "Make space on the disk of the role's database or state; it goes on by itself.",
    )
    STORAGE_READ_ONLY = (
        Code.UNAVAILABLE,
        "What has to be kept cannot be written: the database or its folder is read-only.",
        "Check how its file system is mounted, who owns its files, or whether the server is a standby; "
        "it goes on by itself.",
    )
    STORAGE_CORRUPT = (
        Code.UNAVAILABLE,
        "The database is damaged.",
        "Stop the role, keep the files for analysis, and restore the database.",
    )
    PEER_UNAVAILABLE = (
        Code.UNAVAILABLE,
        "A service that this one needs does not answer.",
        "It is tried again; check that service.",
    )
    PEER_INCOMPATIBLE = (
        Code.FAILED_PRECONDITION,
        "A service that this one needs gave an answer this version does not know.",
        "Check the address, and that both run versions that go together.",
    )
    PEER_UNTRUSTED = (
        Code.FAILED_PRECONDITION,
        "What answers at a service's address does not prove that it is that service.",
        "Check the address, the service's certificate and the trust anchors.",
    )
    TRUST_ANCHOR_DIFFERS = (
        Code.FAILED_PRECONDITION,
        "The trust anchor is another root than the one the CA/RA issues under.",
        "Give it the root that `nftrust ca show --pem` prints last; see who changed it.",
    )
    CREDENTIAL_EXPIRED = (
        Code.FAILED_PRECONDITION,
        "The role's own certificate is expired or not yet valid.",
        "Issue a new one with `nftrust pki service`, then restart the role.",
    )
    CLOCK_UNTRUSTED = (
        Code.UNAVAILABLE,
        "The clock has jumped; security decisions are refused.",
        "Set the clock right, then acknowledge it as docs/configuration.md says.",
    )
    SHUTTING_DOWN = (Code.UNAVAILABLE, "The server is draining.", "Try again at once.")
    DEADLINE = (Code.DEADLINE_EXCEEDED, "The request took longer than its deadline.", "Try again.")
    STORED_ROW_TAMPERED = (
        Code.INTERNAL,
        "A stored row does not carry its MAC.",
        "Treat the database as tampered with; see docs/threat-model.md.",
    )
    INTERNAL = (Code.INTERNAL, "An unexpected error.", "See the log of the role under the correlation id.")

    # Start and local use
    CONFIG_INVALID = (
        Code.FAILED_PRECONDITION,
        "The configuration cannot be used.",
        "Correct the key named in the message.",
    )
    TOKEN_MISSING = (
        Code.FAILED_PRECONDITION,
        "The PKCS#11 module or token is missing.",
        "Check module and label; run the role's init command.",
    )
    PIN_INCORRECT = (
        Code.FAILED_PRECONDITION,
        "The token refused the PIN; it is not tried again.",
        "Correct the PIN file, then restart.",
    )
    TOKEN_INCAPABLE = (
        Code.FAILED_PRECONDITION,
        "The token lacks a mechanism or parameter that the operation needs.",
        "Use another token, or another mechanism; the log names the PKCS#11 function.",
    )
    TOKEN_CUSTODY_UNPROVEN = (
        Code.FAILED_PRECONDITION,
        "The token does not enforce what the custody of the IAK needs.",
        "Use a token that enforces CKA_UNWRAP_TEMPLATE.",
    )
    KEY_MISSING = (
        Code.FAILED_PRECONDITION,
        "The token lacks a key that this role needs.",
        "Run the role's init command.",
    )
    KEY_EXISTS = (
        Code.ALREADY_EXISTS,
        "The token holds a key of this label.",
        "Choose another label, or destroy the old key first.",
    )
    STATE_FOREIGN = (
        Code.FAILED_PRECONDITION,
        "The directory holds the state of another NF instance.",
        "Initialise each instance in its own directory.",
    )
    STATE_CORRUPT = (Code.FAILED_PRECONDITION, "The stored state cannot be read.", "Restore it, or initialise anew.")
    HOOK_FAILED = (
        Code.UNAVAILABLE,
        "The NF could not be told of its certificate; it is tried again.",
        "See the NF agent's log and `command.log` in its state_dir; docs/hooks.md.",
    )
    SCHEMA_OUTDATED = (
        Code.FAILED_PRECONDITION,
        "The database schema is not the one this version needs.",
        "Run the role's migrate command.",
    )
    PORT_IN_USE = (
        Code.FAILED_PRECONDITION,
        "The listening address is in use.",
        "Choose another port, or stop the other server.",
    )


class NftrustError(Exception):
    """A refusal with a stable reason.

    ``message`` is for people and holds no secret and no inner error text;
    ``metadata`` goes into ErrorInfo; ``retry_after`` (seconds) into RetryInfo.
    """

    def __init__(
        self,
        reason: Reason,
        message: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or reason.meaning)
        self.reason = reason
        self.message = message or reason.meaning
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed later without anybody's doing."""
        return self.reason.code in _TRANSIENT and self.reason is not Reason.STORED_ROW_TAMPERED


_TRANSIENT = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.INTERNAL})


def invalid_field(field: str, message: str) -> NftrustError:
    """An INVALID_FIELD error that names the field."""
    return NftrustError(Reason.INVALID_FIELD, f"{field}: {message}", metadata={"field": field})
