"""The second adapter of the CA/RA port: a CA/RA that cannot wrap for the NF.

Its secret is in clear in this process for as long as it takes to hand it to
the token; what rests, rests under the token's key, and what leaves is wrapped
for the NF. The delivered information is signed by our TLS client key.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cmproxy.model import Enrolment, HandedCredential, NetworkFunction
from cmproxy.ports import CaRaPort, CaRegistration, EndEntity, Holding, NfInfo, Registrar, RegistrationAnswer
from nftrust import jose
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.messages import FOREIGN_INFO_TYP, STATEMENT_TYP, CmpMac, ForeignEnrolmentInfo, NfStatement
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import Mac, RewrapSecret, SealSecret, VerifyMac
from nftrust.x509.path import der

log = logging.getLogger("cmproxy.foreign")

ESCROW_KEY = "foreign-secrets"
#: Binds what rests in the database to what it is for.
BINDING_KEY = "foreign-bindings"
REGISTRATIONS = "foreignRegistrations/"
CUSTODY = "imported into the CM proxy's token and wrapped there"
_STATEMENT_ALGORITHMS = frozenset({"ES256", "ES384"})


class ForeignIntent(msgspec.Struct, frozen=True):
    """What is asked of the foreign CA/RA and told the NF; persisted before. Encodes as a JSON object."""

    handle: str
    nf_instance_id: str
    nf_type: str
    fqdns: tuple[str, ...]
    tenant: str
    certificate_profile: str
    #: SubjectPublicKeyInfo, DER.
    transport_key: bytes
    re_enrolment: bool
    expire_time: int
    #: As OAM handed it in; None: the registrar asks for one.
    handed: HandedCredential | None
    #: By the token over everything else here.
    mac: bytes = b""

    @property
    def registration(self) -> str:
        return REGISTRATIONS + self.handle


@dataclass(frozen=True, slots=True)
class ForeignProfile:
    """What the NF is told of the foreign CA/RA."""

    endpoints: tuple[str, ...]
    #: Issuing CA first, root last.
    ca_chain: Sequence[x509.Certificate]
    mac_algorithm: CmpMac
    credential_lifetime: timedelta


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """A plug-in's mistake is INTERNAL: tried again, without its text, which may hold a secret."""
    try:
        yield
    except NftrustError:
        raise
    except Exception as error:  # noqa: BLE001 - its text and its traceback stay out of the log
        log.error("the registrar failed", extra={"error": type(error).__name__})
        raise NftrustError(Reason.INTERNAL, "the registrar failed") from None


def _bound(kind: str, *parts: bytes) -> bytes:
    """What is MACed: no two lists of parts give the same bytes."""
    lengths = b"".join(len(part).to_bytes(4, "big") for part in parts)
    return b"\0".join((b"nftrust-foreign-v1", kind.encode(), lengths, b"".join(parts)))


def _credential_input(nf_instance_id: str, credential: HandedCredential) -> bytes:
    return _bound("credential", nf_instance_id.encode(), credential.reference.encode(), credential.sealed)


def _intent_input(intent: ForeignIntent) -> bytes:
    return _bound("intent", msgspec.json.encode(msgspec.structs.replace(intent, mac=b"")))


async def seal(token: TokenClient, nf_instance_id: str, reference: str, secret: bytes) -> HandedCredential:
    """The secret under the token's key, bound to its NF. Raises NftrustError(INVALID_FIELD, TOKEN_UNAVAILABLE)."""
    credential = HandedCredential(reference, await token.run(SealSecret(ESCROW_KEY, secret)), b"")
    mac = await token.run(Mac(BINDING_KEY, _credential_input(nf_instance_id, credential)))
    return msgspec.structs.replace(credential, mac=mac)


@dataclass(frozen=True, slots=True)
class ForeignCaRaPort:
    """Registers through a registrar, or with what OAM handed in."""

    profile: ForeignProfile
    registrar: Registrar | None
    token: TokenClient
    signing_key: ec.EllipticCurvePrivateKey
    signer_chain: Sequence[x509.Certificate]
    clock: Clock

    async def registration_intent(self, nf: NetworkFunction, enrolment: Enrolment, info: NfInfo) -> bytes:
        if nf.delivery_mode != "wrapped":
            raise NftrustError(Reason.DELIVERY_MODE_NOT_ALLOWED, "a foreign secret is delivered wrapped")
        handed = enrolment.credential
        if handed is None and self.registrar is None:
            raise NftrustError(Reason.FOREIGN_CREDENTIAL_REFUSED)
        statement = jose.split(info.statement, typ=STATEMENT_TYP, algorithms=_STATEMENT_ALGORITHMS)
        intent = ForeignIntent(
            handle=f"nftrust-{enrolment.id.replace('-', '')}",
            nf_instance_id=nf.nf_instance_id,
            nf_type=nf.nf_type,
            fqdns=nf.fqdns,
            tenant=nf.tenant,
            certificate_profile=nf.profile,
            transport_key=jose.b64url_decode(jose.parse_payload(statement, NfStatement).transport_key),
            re_enrolment=enrolment.allow_re_enrolment,
            expire_time=int((self.clock.now() + self.profile.credential_lifetime).timestamp()),
            handed=None if handed is None else msgspec.json.decode(handed, type=HandedCredential),
        )
        return await self.bind(intent)

    async def bind(self, intent: ForeignIntent) -> bytes:
        """As it rests in the database. Raises NftrustError(TOKEN_UNAVAILABLE)."""
        mac = await self.token.run(Mac(BINDING_KEY, _intent_input(intent)))
        return msgspec.json.encode(msgspec.structs.replace(intent, mac=mac))

    async def _unchanged(self, intent: bytes) -> ForeignIntent:
        """What was bound, by whoever held the token. Raises NftrustError(STATE_CORRUPT, STORED_ROW_TAMPERED)."""
        try:
            wanted = msgspec.json.decode(intent, type=ForeignIntent)
        except msgspec.MsgspecError:
            raise NftrustError(Reason.STATE_CORRUPT) from None
        checks = [VerifyMac(BINDING_KEY, _intent_input(wanted), wanted.mac)]
        if wanted.handed is not None:
            bound = _credential_input(wanted.nf_instance_id, wanted.handed)
            checks.append(VerifyMac(BINDING_KEY, bound, wanted.handed.mac))
        if not all(await self.token.run_all(checks)):
            raise NftrustError(Reason.STORED_ROW_TAMPERED)
        return wanted

    async def register(self, intent: bytes) -> RegistrationAnswer:
        wanted = await self._unchanged(intent)
        credential = wanted.handed or await self._ask(wanted)
        wrapped = await self.token.run(RewrapSecret(ESCROW_KEY, credential.sealed, wanted.transport_key))
        info = self._info(wanted, credential.reference, wrapped)
        registration = CaRegistration(wanted.registration, "open", "", None)
        return RegistrationAnswer(registration, info, b"", CUSTODY)

    async def _ask(self, wanted: ForeignIntent) -> HandedCredential:
        if self.registrar is None:
            raise NftrustError(Reason.FOREIGN_CREDENTIAL_REFUSED)
        entity = EndEntity(
            handle=wanted.handle,
            nf_instance_id=wanted.nf_instance_id,
            nf_type=wanted.nf_type,
            fqdns=wanted.fqdns,
            tenant=wanted.tenant,
            certificate_profile=wanted.certificate_profile,
        )
        with _guarded():
            given = await self.registrar.register(entity)
            given.check()
        return await seal(self.token, wanted.nf_instance_id, given.reference, given.secret)

    def _info(self, wanted: ForeignIntent, reference: str, wrapped: bytes) -> str:
        payload = ForeignEnrolmentInfo(
            protocol="cmp",
            endpoints=list(self.profile.endpoints),
            ca_certificates=[jose.b64url(der(certificate)) for certificate in self.profile.ca_chain],
            signer_chain=[jose.b64url(der(certificate)) for certificate in self.signer_chain],
            registration=wanted.registration,
            reference=reference,
            nf_instance_id=wanted.nf_instance_id,
            nf_type=wanted.nf_type,
            fqdns=list(wanted.fqdns),
            certificate_profile=wanted.certificate_profile,
            transport_key_sha256=jose.b64url(jose.sha256(wanted.transport_key)),
            mac_algorithm=self.profile.mac_algorithm,
            custody="imported-then-wrapped",
            re_enrolment=wanted.re_enrolment,
            wrapped_iak=jose.b64url(wrapped),
            expire_time=wanted.expire_time,
        )
        return jose.sign(self.signing_key, jose.Header(alg="ES256", typ=FOREIGN_INFO_TYP), payload)

    def hands_over(self, registration: str) -> bool:
        return True

    async def get(self, registration: str) -> CaRegistration:
        """What becomes of it we do not see."""
        return CaRegistration(registration, "open", "", None)

    def confirmed(self, enrolment: Enrolment, confirmation: str) -> CaRegistration | None:
        return None

    async def revoke(self, registration: str) -> None:
        """With a registrar. What OAM brought by hand, OAM voids by hand."""
        if self.registrar is not None:
            with _guarded():
                await self.registrar.revoke(registration.removeprefix(REGISTRATIONS))

    async def holding(self, nf: NetworkFunction) -> Holding:
        return Holding(None, revoked=False)  # out of our sight

    async def retire(self, nf: NetworkFunction, registrations: Sequence[str]) -> None:
        for registration in registrations:
            await self.revoke(registration)


@dataclass(frozen=True, slots=True)
class RoutedCaRaPort:
    """Our own CA/RA and a foreign one; the certificate profile decides whose an NF is."""

    own: CaRaPort
    foreign: CaRaPort
    profiles: frozenset[str]

    async def registration_intent(self, nf: NetworkFunction, enrolment: Enrolment, info: NfInfo) -> bytes:
        port = self.foreign if nf.profile in self.profiles else self.own
        return await port.registration_intent(nf, enrolment, info)

    async def register(self, intent: bytes) -> RegistrationAnswer:
        # A protobuf message never starts with an opening brace (field 15 as a group), a JSON object always does.
        return await (self.foreign if intent.startswith(b"{") else self.own).register(intent)

    def hands_over(self, registration: str) -> bool:
        return self._of(registration).hands_over(registration)

    async def get(self, registration: str) -> CaRegistration:
        return await self._of(registration).get(registration)

    def confirmed(self, enrolment: Enrolment, confirmation: str) -> CaRegistration | None:
        return self._of(enrolment.registration).confirmed(enrolment, confirmation)

    async def revoke(self, registration: str) -> None:
        await self._of(registration).revoke(registration)

    async def holding(self, nf: NetworkFunction) -> Holding:
        return await (self.foreign if nf.profile in self.profiles else self.own).holding(nf)

    async def retire(self, nf: NetworkFunction, registrations: Sequence[str]) -> None:
        foreign = [name for name in registrations if name.startswith(REGISTRATIONS)]
        await self.foreign.retire(nf, foreign)
        await self.own.retire(nf, [name for name in registrations if name not in foreign])

    def _of(self, registration: str) -> CaRaPort:
        return self.foreign if registration.startswith(REGISTRATIONS) else self.own
