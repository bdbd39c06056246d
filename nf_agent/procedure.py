"""Steps 8 to 10 on the NF's side: key pair and CSR, request, certificate, confirmation.

Every step is persisted before its effect is attempted, so that the agent may
be killed at any instant: the request that went out is the request that goes
out again, byte for byte.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from nf_agent.acceptance import AcceptedInfo, accept_certificate, utc_now
from nf_agent.state import TRANSPORT_KEY, AgentState, Attempt, StateStore
from nf_agent.trust import cas_at_confirmation
from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn
from nftrust.logs import correlation_id
from nftrust.messages import (
    CONFIRM_TYP,
    CONFIRM_URL,
    ENROL_TYP,
    ENROL_URL,
    ConfirmProof,
    ConfirmResponse,
    EnrolProof,
    EnrolResponse,
)
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, TokenRsaPrivateKey, key_in_token, token_private_key
from nftrust.pkcs11.operations import DestroyKey, GenerateKeyPair, ListKeys, Mac, TransportIakMac


class EnrolmentPort(Protocol):
    """The CA/RA's EnrolmentService as the procedure needs it."""

    async def enrol(self, accepted: AcceptedInfo, proof: str) -> str:
        """The signed response. Raises NftrustError as the CA/RA gave it."""
        ...

    async def renew(self, accepted: AcceptedInfo, proof: str) -> str: ...

    async def confirm(self, accepted: AcceptedInfo, proof: str) -> str: ...


class Superseded(Exception):
    """Another delivery has taken the attempt's place."""


@dataclass(slots=True)
class Procedure:
    """Runs one attempt to its end; resumes wherever it was left.

    Every method raises Superseded where ``request_id`` is no longer the attempt under way.
    """

    states: StateStore
    token: TokenClient
    ca_ra: EnrolmentPort
    key_type: Literal["ec-p256", "ec-p384"]
    request_id: str
    #: Preconfigured roots; none: whatever is delivered.
    anchors: Sequence[x509.Certificate] = ()
    _key: TokenEcPrivateKey | None = field(default=None, init=False)

    async def run(self, accepted: AcceptedInfo) -> None:
        """Until the certificate is confirmed. Raises NftrustError; transient ones are worth another run."""
        if self._attempt.proof is None:
            await self._make_request(accepted)
        attempt = self._attempt
        if not attempt.chain or attempt.confirmation is None:
            attempt = await self._request_certificate(accepted)
        await self._confirm(accepted, attempt)

    @property
    def _attempt(self) -> Attempt:
        attempt = self.states.state.attempt
        if attempt is None or attempt.request_id != self.request_id:
            raise Superseded
        return attempt

    def _save(self, attempt: Attempt) -> None:
        assert self._attempt.request_id == attempt.request_id
        self.states.save(replace(self.states.state, attempt=attempt))

    def _switched(self, attempt: Attempt) -> AgentState:
        """The state in which the attempt's certificate is in use."""
        state = replace(self.states.state, attempt=attempt)
        return replace(state.with_current(attempt), phase="confirmed", reason="")

    async def _make_request(self, accepted: AcceptedInfo) -> None:
        """Step 8: a fresh key pair and CSR in the token, and the proof over them by the IAK."""
        attempt = self._attempt
        info = accepted.info
        key = self._key = await self._fresh_key(attempt.key_label)
        csr = await asyncio.to_thread(self._sign_csr, key, info.nf_instance_id, info.fqdns)
        request = EnrolProof(
            ca_id=info.ca_id,
            registration=info.registration,
            nf_instance_id=info.nf_instance_id,
            request_id=attempt.request_id,
            csr=jose.b64url(csr),
        )
        header = jose.Header(alg=info.mac_algorithm, typ=ENROL_TYP, kid=info.reference, url=ENROL_URL)
        data = jose.signing_input(header, request)
        if attempt.iak_label is not None:
            mac = await self.token.run(Mac(attempt.iak_label, data))
        else:
            mac = await self.token.run(TransportIakMac(TRANSPORT_KEY, jose.b64url_decode(info.wrapped_iak), data))
        now = utc_now().timestamp()
        self._save(replace(attempt, proof=jose.join(data, mac), csr_time=now, request_time=now))

    async def key(self) -> TokenEcPrivateKey:
        """The attempt's key in the token. Raises NftrustError(KEY_MISSING)."""
        if self._key is None:
            self._key = _ec(await asyncio.to_thread(token_private_key, self.token, self._attempt.key_label))
        return self._key

    async def _fresh_key(self, label: str) -> TokenEcPrivateKey:
        generate = GenerateKeyPair(label, self.key_type)
        try:
            public = await self.token.run(generate)
        except NftrustError as error:
            if error.reason is not Reason.KEY_EXISTS:
                raise
            await self.token.run(DestroyKey(label))  # left by a kill before the request was persisted
            public = await self.token.run(generate)
        return _ec(key_in_token(self.token, label, public))

    async def _destroy(self, label: str) -> None:
        if any(key.label == label for key in await self.token.run(ListKeys())):
            await self.token.run(DestroyKey(label))

    def _sign_csr(self, key: TokenEcPrivateKey, nf_instance_id: str, fqdns: list[str]) -> bytes:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(urn(nf_instance_id))]
        names += [x509.DNSName(name) for name in fqdns]
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        digest = hashes.SHA384() if self.key_type == "ec-p384" else hashes.SHA256()
        return builder.sign(key, digest).public_bytes(Encoding.DER)

    async def _request_certificate(self, accepted: AcceptedInfo) -> Attempt:
        """Steps 9 and 10, and the confirmation of what came.

        It is not yet persisted: the CA/RA answers the same request with the same
        certificate, and takes another confirmation of it for the same.
        """
        attempt = self._attempt
        proof = attempt.proof
        assert proof is not None
        response = await self._ask(accepted, proof)
        key = await self.key()
        chain = accept_certificate(response, accepted, jose.sha256(proof.encode()), key.public_key(), utc_now())
        now = utc_now().timestamp()
        confirmation = await asyncio.to_thread(self._sign_confirmation, accepted, key, chain[0])
        return replace(
            attempt, chain=tuple(der.hex() for der in chain), certificate_time=now, confirmation=confirmation
        )

    async def _ask(self, accepted: AcceptedInfo, proof: str) -> EnrolResponse:
        text = await self.ca_ra.enrol(accepted, proof)
        return accepted.read_response(text, ENROL_URL, EnrolResponse)

    async def _confirm(self, accepted: AcceptedInfo, attempt: Attempt) -> None:
        """The new key confirms the certificate (security rule 11); then the IAK is gone."""
        assert attempt.confirmation is not None
        text = await self.ca_ra.confirm(accepted, attempt.confirmation)
        response = accepted.read_response(text, CONFIRM_URL, ConfirmResponse)
        if response.request_sha256 != jose.b64url(jose.sha256(attempt.confirmation.encode())):
            raise NftrustError(Reason.RESPONSE_INVALID)
        if attempt.iak_label is not None:
            await self._destroy(attempt.iak_label)
        now = utc_now().timestamp()
        bundle = cas_at_confirmation(attempt, response, self.anchors)
        attempt = replace(attempt, confirm_time=now, confirmed=text, iak_label=None)
        assert self._attempt.request_id == attempt.request_id
        self.states.save(replace(self._switched(attempt), bundle=bundle, bundle_time=now))

    def _sign_confirmation(self, accepted: AcceptedInfo, key: TokenEcPrivateKey, certificate: bytes) -> str:
        info = accepted.info
        certificate_sha256 = jose.b64url(jose.sha256(certificate))
        payload = ConfirmProof(
            ca_id=info.ca_id,
            registration=info.registration,
            nf_instance_id=info.nf_instance_id,
            request_id=self.request_id,
            certificate_sha256=certificate_sha256,
        )
        algorithm = jose.algorithm_for(key.public_key())
        header = jose.Header(alg=algorithm, typ=CONFIRM_TYP, kid=certificate_sha256, url=CONFIRM_URL)
        return jose.sign(key, header, payload)


def _ec(key: TokenEcPrivateKey | TokenRsaPrivateKey) -> TokenEcPrivateKey:
    """Certificate keys are EC keys. Raises NftrustError(KEY_MISSING)."""
    if not isinstance(key, TokenEcPrivateKey):
        raise NftrustError(Reason.KEY_MISSING, metadata={"label": key.label})
    return key


def new_attempt(enrolment_info: str, registration: str, iak_label: str | None) -> Attempt:
    """An attempt with its request id and key label chosen, nothing done yet."""
    request_id = str(uuid.uuid4())
    return Attempt(
        enrolment_info=enrolment_info,
        registration=registration,
        iak_label=iak_label,
        correlation=correlation_id.get(),
        request_id=request_id,
        key_label=f"nf-{request_id}",
    )
