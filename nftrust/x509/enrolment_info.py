"""The signature of enrolment information (step 7), as the CM proxy and the NF agent verify it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.messages import ENROLMENT_INFO_TYP, EnrolmentInfo
from nftrust.x509.authority import check_response_certificate
from nftrust.x509.keys import spki_sha256
from nftrust.x509.path import PathInvalid, load_chain

_ES256 = frozenset({"ES256"})


@dataclass(frozen=True, slots=True)
class VerifiedInfo:
    """Enrolment information whose signature leads to ``ca_chain``'s root."""

    info: EnrolmentInfo
    #: Issuing CA first, root last.
    ca_chain: tuple[x509.Certificate, ...]
    response_key: ec.EllipticCurvePublicKey


def verify_enrolment_info(text: str, anchors: Sequence[x509.Certificate], now: datetime) -> VerifiedInfo:
    """Checks 1 to 3: form, the response key's signature, the anchors (the delivered root's word where there are none).

    Raises NftrustError(ENROLMENT_INFO_INVALID).
    """
    try:
        jws = jose.split(text, typ=ENROLMENT_INFO_TYP, algorithms=_ES256)  # 1: form
        info = jose.parse_payload(jws, EnrolmentInfo)  # needed to find the key; believed only after 2 and 3
        signer = _signer(info.response_certificate, tuple(info.ca_certificates))
        chain, response_key = signer.chain, signer.key(now)
        jose.verify(response_key, jws)  # 2: signed by the CA/RA's response key
    except (NftrustError, PathInvalid, ValueError):
        raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "the enrolment information does not verify") from None
    if anchors and chain[-1] not in anchors:  # 3: the anchor
        raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "the delivered root is not the preconfigured one")
    issuing_key = chain[0].public_key()
    if not isinstance(issuing_key, ec.EllipticCurvePublicKey) or info.ca_id != jose.b64url(spki_sha256(issuing_key)):
        raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "it names another CA")
    return VerifiedInfo(info, chain, response_key)


@dataclass(slots=True)
class _Signer:
    """A response certificate with its chain: the same in the information for every NF."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    _proven: ec.EllipticCurvePublicKey | None = None

    def key(self, now: datetime) -> ec.EllipticCurvePublicKey:
        """As check_response_certificate, whose result depends on nothing else than whether all are valid ``now``."""
        all_valid = all(
            each.not_valid_before_utc <= now <= each.not_valid_after_utc for each in (self.certificate, *self.chain)
        )
        if self._proven is None or not all_valid:
            self._proven = check_response_certificate(self.certificate, self.chain, now)
        return self._proven


@lru_cache(maxsize=16)
def _signer(certificate: str, chain: tuple[str, ...]) -> _Signer:
    """Parsed once. Raises PathInvalid, ValueError."""
    ca_chain = load_chain([jose.b64url_decode(each) for each in chain])
    [response_certificate] = load_chain([jose.b64url_decode(certificate)])
    return _Signer(response_certificate, tuple(ca_chain))
