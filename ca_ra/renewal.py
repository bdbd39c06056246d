"""Renewal: a certificate for a new key, proved by the key of the one that it succeeds.

The checks are numbered as in docs/renewal.md. A certificate has one successor:
whoever proves the same new key gets it again, so that a lost response is no
alarm; another key is a theft signal, because two parties hold the old one's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography import x509

from ca_ra.authority import Authorities, Authority, CaState
from ca_ra.custody import Custody
from ca_ra.enrolment import EnrolmentEngine, FailureBudget
from ca_ra.model import EnrolmentStore, Issuance, IssuedCertificate, Registration
from ca_ra.pace import RenewalPace
from nftrust import jose
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError, Reason
from nftrust.messages import RENEW_TYP, RENEW_URL, EnrolResponse, RenewProof
from nftrust.x509.keys import spki_sha256
from nftrust.x509.path import der
from nftrust.x509.profile import CertificateProfile

log = logging.getLogger("ca_ra.renewal")

_ALGORITHMS = frozenset({"ES256", "ES384", "PS256"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewable:
    """A certificate that a proof names, and the stored response to that very proof."""

    certificate: IssuedCertificate
    registration: Registration
    response: bytes | None


class RenewalStore(Protocol):
    """Storage of renewals. Each method is one transaction or one read."""

    async def find_renewable(self, sha256: bytes, request_sha256: bytes) -> Renewable | None:
        """The certificate with this hash, and the stored response to these very bytes: one read."""
        ...

    async def admit(self, old: IssuedCertificate, spki_sha256: bytes) -> IssuedCertificate | None:
        """The successor that it has for this key; None: it may have one.

        Raises NftrustError(END_ENTITY_SUSPENDED, NF_RETIRED, CERTIFICATE_REVOKED, CERTIFICATE_UNCONFIRMED,
        CERTIFICATE_SUPERSEDED, CERTIFICATE_KEY_REUSED, KEY_TAKEN); suspends the NF and revokes its
        certificates where it has a successor for another key (security rule 13).
        """
        ...

    async def record_renewal(self, issuance: Issuance) -> bytes | IssuedCertificate:
        """Certificate, response and audit row in one transaction, in which :meth:`admit` decides anew.

        Returns the response to send, or the successor that was recorded first, for the same key.
        Raises NftrustError as :meth:`admit`, and CERTIFICATE_EXPIRED.
        """
        ...


class RenewalEngine(EnrolmentEngine):
    """Issues first certificates and their successors."""

    def __init__(
        self,
        authorities: Authorities,
        profiles: Mapping[str, CertificateProfile],
        custody: Custody,
        store: EnrolmentStore,
        renewals: RenewalStore,
        clock: GuardedClock,
        failures: FailureBudget,
        pace: RenewalPace | None = None,
    ) -> None:
        super().__init__(authorities, profiles, custody, store, clock, failures)
        self._renewals = renewals
        self._pace = pace

    async def renew(self, proof: str, source: str) -> str:
        """The signed response to a renewal that the certificate's own key proves.

        Raises NftrustError with the reason of the refusal.
        """
        jws = jose.split(proof, typ=RENEW_TYP, url=RENEW_URL, algorithms=_ALGORITHMS)  # R1: form
        request_sha256 = jose.sha256(proof.encode())
        found = await self._find(jws.header.kid, request_sha256)  # R2: a certificate of this CA
        if found is None:
            with self._budgeted(source):
                raise NftrustError(Reason.PROOF_INVALID)
        if found.response is not None:  # R3: the very same bytes were proved before
            return found.response.decode()
        old, registration = found.certificate, found.registration
        with self._budgeted(f"{source} {registration.id}"):
            jose.verify(x509.load_der_x509_certificate(old.der).public_key(), jws)  # R4: its key
        request = jose.parse_payload(jws, RenewProof)
        known = await self._check_binding(request, registration)  # R5: meant for this CA, registration and NF
        if known.state is CaState.RETIRED:
            raise NftrustError(Reason.CA_UNKNOWN)
        return await self._succeed(known.authority, request, request_sha256, old, registration)

    async def _find(self, kid: str, request_sha256: bytes) -> Renewable | None:
        try:
            return await self._renewals.find_renewable(jose.b64url_decode(kid), request_sha256)
        except ValueError:
            return None

    async def _succeed(
        self,
        signer: Authority,
        request: RenewProof,
        request_sha256: bytes,
        old: IssuedCertificate,
        registration: Registration,
    ) -> str:
        """``signer`` is the CA whose response key the NF knows; the one that issues may be its successor."""
        now = self._clock.now()
        if now >= old.not_after:
            raise NftrustError(Reason.CERTIFICATE_EXPIRED)
        key = self._check_csr(self._authorities.active, request, registration)  # R6: the CSR
        successor = await self._renewals.admit(old, spki_sha256(key))  # R7: one successor
        if successor is not None:
            return await self._response(signer, request_sha256, registration, successor)
        if self._pace is not None:  # R8: not all at once
            left, validity = old.not_after - now, old.not_after - old.not_before
            self._pace.admit(left.total_seconds(), validity.total_seconds())
        issued = await self._issue(self._authorities.active, registration, key, now)  # R9: as for an IAK
        fresh = replace(issued, predecessor=old.serial)
        response = await self._response(signer, request_sha256, registration, fresh)
        recorded = await self._renewals.record_renewal(  # R10: issued means committed
            Issuance(
                certificate=fresh,
                request_id=request.request_id,
                request_sha256=request_sha256,
                response=response.encode(),
            )
        )
        if isinstance(recorded, IssuedCertificate):
            return await self._response(signer, request_sha256, registration, recorded)
        log.info("certificate renewed", extra={"serial": fresh.serial, "predecessor": old.serial})
        return recorded.decode()

    async def _response(
        self, signer: Authority, request_sha256: bytes, registration: Registration, certificate: IssuedCertificate
    ) -> str:
        chain = self._authorities.generation(certificate.generation).chain
        return await self._custody.sign_response(
            signer,
            EnrolResponse(
                request_sha256=jose.b64url(request_sha256),
                registration=registration.name,
                certificate=jose.b64url(certificate.der),
                ca_certificates=[jose.b64url(der(ca)) for ca in chain],
            ),
            RENEW_URL,
        )
