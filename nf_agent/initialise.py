"""`nf-agent init`: at instantiation, never at image build (security rule 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from nf_agent.acceptance import utc_now
from nf_agent.config import AgentConfig
from nf_agent.state import STATE_FILE, TRANSPORT_KEY, AgentState, read_state
from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file, write_atomically
from nftrust.identity import urn
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import GenerateKeyPair, ListKeys, ProveCustody, PublicKey

DAY0_CSR_FILE = "day0.csr"


@dataclass(frozen=True, slots=True)
class Initialised:
    """What OAM needs to know of a new NF."""

    transport_key_sha256: bytes
    day0_csr: Path


def initialise(config: AgentConfig) -> Initialised:
    """Make the transport key in the token, the day-0 TLS key and its CSR; again: the same keys.

    Raises NftrustError(STATE_FOREIGN, TOKEN_MISSING, PIN_INCORRECT, TOKEN_CUSTODY_UNPROVEN).
    """
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = read_state(config.state_dir)
    if known is not None and known.nf_instance_id != config.nf_instance_id:
        raise NftrustError(Reason.STATE_FOREIGN)
    token = TokenClient.in_process(config.token)
    try:
        token.ready()
        if config.minimum_delivery_mode == "wrapped":
            token.call(ProveCustody())
        present = {key.label for key in token.call(ListKeys())}
        if known is None and TRANSPORT_KEY in present:
            raise NftrustError(Reason.STATE_FOREIGN, "the token holds the transport key of another instance")
        if known is None:
            # The state first: a kill in the middle of key generation is then repaired by running init again.
            state = AgentState(nf_instance_id=config.nf_instance_id, instantiate_time=utc_now().timestamp())
            write_atomically(config.state_dir / STATE_FILE, msgspec.json.encode(state))
        if TRANSPORT_KEY in present:
            transport_key = token.call(PublicKey(TRANSPORT_KEY))
        else:
            transport_key = token.call(GenerateKeyPair(TRANSPORT_KEY, "rsa-transport"), timeout=120.0)
    finally:
        token.close()
    return Initialised(jose.sha256(transport_key), _day0_request(config))


def _day0_request(config: AgentConfig) -> Path:
    """The day-0 TLS key (a file: gRPC for Python has no server-side key offload) and its CSR."""
    key_path = config.listener.tls.private_key
    if not key_path.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(key_path, pem)
    key = load_pem_private_key(read_file(key_path), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(urn(config.nf_instance_id))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    path = config.state_dir / DAY0_CSR_FILE
    write_atomically(path, csr.public_bytes(Encoding.PEM), 0o644)
    return path
