"""Steps 9 and 10: redeem an IAK for one certificate, and take the NF's confirmation.

The checks are numbered as in docs/enrolment-flow.md. Nothing changes state
before its proof verifies (security rule 6).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Protocol

from cryptography import x509

from ca_ra.authority import Authorities, Authority, KnownCa
from ca_ra.custody import Custody
from ca_ra.model import EnrolmentStore, Issuance, IssuedCertificate, Registration, RegistrationState
from nftrust import jose
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.messages import (
    CONFIRM_TYP,
    CONFIRM_URL,
    ENROL_TYP,
    ENROL_URL,
    TRUST_BUNDLE_URL,
    ConfirmProof,
    ConfirmResponse,
    EnrolProof,
    EnrolResponse,
    RenewProof,
    TrustBundleResponse,
    TrustedCa,
)
from nftrust.x509 import issuance
from nftrust.x509.csr import MAX_CSR_BYTES, check_csr
from nftrust.x509.keys import NfPublicKey, spki_sha256
from nftrust.x509.path import der
from nftrust.x509.profile import CertificateProfile

log = logging.getLogger("ca_ra.enrolment")

MAX_CA_ID = 43
_ENROL_ALGORITHMS = frozenset({"HS256"})
_CONFIRM_ALGORITHMS = frozenset({"ES256", "ES384", "PS256"})
_STATE_REFUSALS = {
    RegistrationState.REVOKED: Reason.IAK_REVOKED,
    RegistrationState.EXPIRED: Reason.IAK_EXPIRED,
    RegistrationState.CONFIRMED: Reason.IAK_USED,
}


class FailureBudget(Protocol):
    """How many failed proofs a source may show."""

    def take(self, key: str) -> None:
        """Raises NftrustError(RATE_LIMITED)."""
        ...

    def refund(self, key: str) -> None: ...


class EnrolmentEngine:
    """Issues certificates. One IAK, at most one certificate; the same request, the same bytes."""

    def __init__(
        self,
        authorities: Authorities,
        profiles: Mapping[str, CertificateProfile],
        custody: Custody,
        store: EnrolmentStore,
        clock: GuardedClock,
        failures: FailureBudget,
    ) -> None:
        self._authorities = authorities
        self._profiles = profiles
        self._custody = custody
        self._store = store
        self._clock = clock
        self._failures = failures

    async def enrol(self, proof: str, source: str) -> str:
        """The signed response to a proved request; ``source`` is the caller's address.

        Raises NftrustError with the reason of the refusal.
        """
        jws = jose.split(proof, typ=ENROL_TYP, url=ENROL_URL, algorithms=_ENROL_ALGORITHMS)  # 1: form
        request_sha256 = jose.sha256(proof.encode())
        found = await self._store.find_redemption(jws.header.kid, request_sha256)  # 2: reference value
        if found is None:
            with self._budgeted(source):
                raise await self._custody.refuse_unknown(jws)
        registration, stored = found
        if stored is not None:  # 3: the very same bytes were proved before
            return stored.decode()
        if registration.iak_blob is None:  # destroyed: what is left can only be told apart by its state
            state = registration.state(self._clock.now())
            raise NftrustError(_STATE_REFUSALS.get(state, Reason.STORED_ROW_TAMPERED))
        if registration.mac_algorithm != jws.header.alg:
            raise NftrustError(Reason.PROOF_INVALID)
        with self._budgeted(f"{source} {registration.id}"):
            await self._custody.verify_proof(registration, jws)  # 4: the IAK
        request = jose.parse_payload(jws, EnrolProof)
        known = await self._check_binding(request, registration)  # 5: meant for this CA, registration and NF
        if not known.issues_for(registration.create_time):
            raise NftrustError(Reason.PROOF_INVALID, "the CA that the proof is for does not issue for it")
        return await self._redeem(known.authority, request, request_sha256, registration)

    @contextlib.contextmanager
    def _budgeted(self, key: str) -> Iterator[None]:
        """Failed proofs cost, and only they; a known reference has a budget that strangers cannot spend."""
        self._failures.take(key)
        try:
            yield
        except NftrustError as error:
            if error.reason is not Reason.PROOF_INVALID:
                self._failures.refund(key)
            raise
        self._failures.refund(key)

    async def _check_binding(
        self, request: EnrolProof | RenewProof | ConfirmProof, registration: Registration
    ) -> KnownCa:
        known = await self._authorities.named(request.ca_id)
        if known is None or request.registration != registration.name:
            raise NftrustError(Reason.PROOF_INVALID, "the proof is for another CA or registration")
        if request.nf_instance_id != registration.identity.nf_instance_id:
            raise NftrustError(Reason.IAK_FOR_OTHER_NF)
        return known

    async def _redeem(
        self, authority: Authority, request: EnrolProof, request_sha256: bytes, registration: Registration
    ) -> str:
        now = self._clock.now()
        refusal = _STATE_REFUSALS.get(registration.state(now))
        if refusal is not None:  # 6: open
            raise NftrustError(refusal)
        key = self._check_csr(authority, request, registration)  # 7: the CSR
        if registration.certificate_serial is not None:
            await self._store.refuse_spent(registration.id, request.request_id, spki_sha256(key))
        certificate = await self._issue(authority, registration, key, now)  # 8: built, linted, signed
        response = await self._custody.sign_response(
            authority,
            EnrolResponse(
                request_sha256=jose.b64url(request_sha256),
                registration=registration.name,
                certificate=jose.b64url(certificate.der),
                ca_certificates=[jose.b64url(der(ca)) for ca in authority.chain],
            ),
            ENROL_URL,
        )
        committed = await self._store.record_issuance(  # 9: issued means committed
            Issuance(
                certificate=certificate,
                request_id=request.request_id,
                request_sha256=request_sha256,
                response=response.encode(),
            )
        )
        log.info("certificate issued", extra={"registration": registration.name, "serial": certificate.serial})
        return committed.decode()

    def _check_csr(
        self, authority: Authority, request: EnrolProof | RenewProof, registration: Registration
    ) -> NfPublicKey:
        if len(request.csr) > MAX_CSR_BYTES * 4 // 3 + 4:
            raise NftrustError(Reason.CSR_TOO_LARGE)
        try:
            csr = jose.b64url_decode(request.csr)
        except ValueError:
            raise NftrustError(Reason.CSR_MALFORMED) from None
        return check_csr(csr, registration.identity, authority.issuer.nf_subject, authority.public_key)

    async def _issue(
        self, authority: Authority, registration: Registration, key: NfPublicKey, now: datetime
    ) -> IssuedCertificate:
        profile = self._profiles.get(registration.profile)
        if profile is None:  # the configuration changed after the registration
            raise NftrustError(Reason.PROFILE_UNKNOWN)
        prepared = issuance.prepare(profile, registration.identity, key, authority.issuer, now)
        encoded = await self._custody.sign_certificate(authority, prepared)
        return IssuedCertificate(
            serial=f"{prepared.serial:x}",
            registration_id=registration.id,
            nf_instance_id=registration.identity.nf_instance_id,
            tenant=registration.tenant,
            der=encoded,
            sha256=jose.sha256(encoded),
            spki_sha256=spki_sha256(key),
            not_before=prepared.not_before,
            not_after=prepared.not_after,
            create_time=now,
            generation=authority.generation,
        )

    async def confirm(self, proof: str, source: str) -> str:
        """The signed response to a confirmation by the certificate's own key (security rule 11)."""
        jws = jose.split(proof, typ=CONFIRM_TYP, url=CONFIRM_URL, algorithms=_CONFIRM_ALGORITHMS)
        request_sha256 = jose.sha256(proof.encode())
        try:
            found = await self._store.find_certificate(jose.b64url_decode(jws.header.kid))
        except ValueError:
            found = None
        if found is None:
            raise NftrustError(Reason.PROOF_INVALID)
        certificate, registration = found
        with self._budgeted(f"{source} {registration.id}"):
            jose.verify(x509.load_der_x509_certificate(certificate.der).public_key(), jws)
        request = jose.parse_payload(jws, ConfirmProof)
        known = await self._check_binding(request, registration)
        if request.certificate_sha256 != jose.b64url(certificate.sha256):
            raise NftrustError(Reason.CONFIRMATION_MISMATCH)
        stored = await self._store.recall_response(f"confirm:{registration.id}", request_sha256)
        if stored is not None:
            return stored.decode()
        response = await self._custody.sign_response(
            known.authority,
            ConfirmResponse(
                request_sha256=jose.b64url(request_sha256),
                registration=registration.name,
                certificate=certificate.name,
                confirm_time_us=int(self._clock.now().timestamp() * 1_000_000),
                authorities=self._beside(known),
            ),
            CONFIRM_URL,
        )
        committed = await self._store.record_confirmation(certificate, request_sha256, response.encode())
        log.info("certificate confirmed", extra={"registration": registration.name, "serial": certificate.serial})
        return committed.decode()

    async def trust_bundle(self, nonce: bytes, ca_id: str) -> str:
        """The CAs that are neither retired nor at their end, signed over the nonce by the one named, or the active.

        Raises NftrustError(CA_UNKNOWN).
        """
        if not 16 <= len(nonce) <= 64:
            raise invalid_field("nonce", "16 to 64 bytes")
        active = self._authorities.active
        signer = await self._authorities.named(ca_id or active.ca_id) if len(ca_id) <= MAX_CA_ID else None
        trusted = self._trusted()
        if signer not in trusted:
            raise NftrustError(Reason.CA_UNKNOWN)
        assert signer is not None
        bundle = TrustBundleResponse(
            request_sha256=jose.b64url(jose.sha256(nonce)),
            ca_id=active.ca_id,
            authorities=[_trusted(known) for known in trusted],
        )
        return await self._custody.sign_response(signer.authority, bundle, TRUST_BUNDLE_URL)

    def _trusted(self) -> list[KnownCa]:
        now = self._clock.now()
        return [known for known in self._authorities.trusted if not known.authority.ended(now)]

    def _beside(self, signer: KnownCa) -> list[TrustedCa]:
        """All CAs where there is another one than the signer."""
        trusted = self._trusted()
        return [] if trusted == [signer] else [_trusted(known) for known in trusted]


def _trusted(known: KnownCa) -> TrustedCa:
    authority = known.authority
    return TrustedCa(
        ca_id=authority.ca_id,
        state=known.state.value,
        ca_certificates=[jose.b64url(der(certificate)) for certificate in authority.chain],
        response_certificate=jose.b64url(der(authority.response_certificate)),
    )
