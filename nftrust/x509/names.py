"""The names an NF certificate carries (TS 33.310 table 6.1.3c.3-1; 6.1.3c.4 for the SCP)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from nftrust.identity import urn


@dataclass(frozen=True, slots=True)
class NfIdentity:
    """A registered identity: what a certificate may say about an NF."""

    nf_instance_id: str
    nf_type: str
    fqdns: tuple[str, ...]

    def uris(self) -> list[str]:
        """``urn:uuid:`` first, then the https apiRoots; an SCP has none (6.1.3c.4)."""
        api_roots = [] if self.nf_type == "SCP" else [f"https://{name}" for name in self.fqdns]
        return [urn(self.nf_instance_id), *api_roots]

    def alternative_names(self) -> x509.SubjectAlternativeName:
        return _alternative_names(self)


@lru_cache(maxsize=256)
def _alternative_names(identity: NfIdentity) -> x509.SubjectAlternativeName:
    """Each is needed three times within a few milliseconds: to check the CSR, to build and to lint."""
    uris = [x509.UniformResourceIdentifier(uri) for uri in identity.uris()]
    return x509.SubjectAlternativeName([*uris, *(x509.DNSName(name) for name in identity.fqdns)])


def subject(country: str, home_domain: str) -> x509.Name:
    """C=<country>, O=<home domain>."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, country),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, home_domain),
        ]
    )
