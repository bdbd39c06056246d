"""Identities of network functions: instance id, NF type, FQDN, scope.

Sources: TS 29.571 (UUID version 4), TS 29.510 clause 6.1.6.3.3 (NFType, an
open enumeration), RFC 9310 (1 to 32 IA5 characters), TS 23.003 clause 28.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.x509 import ObjectIdentifier

from nftrust.errors import NftrustError, Reason

MAX_FQDNS = 16
URN_PREFIX = "urn:uuid:"
#: A non-critical extension that marks a lab certificate; production servers refuse it (security rule 17).
LAB_MARKER_OID = ObjectIdentifier("1.3.6.1.4.1.59999.33876.1")

_NF_TYPE = re.compile(r"[A-Z0-9][A-Z0-9_]{0,31}\Z")
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)\Z")
_HOME_DOMAIN = re.compile(r"5gc(\.nid[0-9a-f]{11})?\.mnc[0-9]{3}\.mcc[0-9]{3}\.3gppnetwork\.org\Z")

_L = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
#: Forms of TS 23.003 clauses 28.2 to 28.5, below the home domain.
FQDN_FORMS: Mapping[str, tuple[str, ...]] = {
    "NRF": ("nrf",),
    "NSSF": ("nssf",),
    "AMF": (rf"{_L}\.amf", rf"set{_L}\.region{_L}\.amfset", rf"pt{_L}\.set{_L}\.region{_L}\.amfi"),
    "SMF": (rf"{_L}\.smf", rf"set{_L}\.smfset"),
    "SMSF": (rf"{_L}\.smsf",),
}


def parse_nf_instance_id(text: str) -> str:
    """The instance id in lower case. Raises NftrustError(INVALID_NF_INSTANCE_ID)."""
    try:
        if len(text) != 36:
            raise ValueError
        value = uuid.UUID(text)
        if str(value) != text.lower() or value.version != 4:
            raise ValueError
    except ValueError:
        raise NftrustError(Reason.INVALID_NF_INSTANCE_ID) from None
    return str(value)


def parse_uuid(text: str, field_name: str) -> str:
    """Any UUID in lower case, for request ids (AIP-155). Raises NftrustError(INVALID_FIELD)."""
    try:
        value = str(uuid.UUID(text))
        if value != text.lower():
            raise ValueError
        return value
    except ValueError:
        raise NftrustError(Reason.INVALID_FIELD, f"{field_name}: not a UUID", metadata={"field": field_name}) from None


def parse_nf_type(text: str) -> str:
    """An NFType by syntax; unknown values are allowed. Raises NftrustError(INVALID_NF_TYPE)."""
    if not _NF_TYPE.match(text):
        raise NftrustError(Reason.INVALID_NF_TYPE)
    return text


def is_home_domain(text: str) -> bool:
    """Whether ``text`` is a home domain of TS 23.003 clause 28.2 (or 28.2 with NID, for an SNPN)."""
    return bool(_HOME_DOMAIN.match(text))


def urn(nf_instance_id: str) -> str:
    """``urn:uuid:<id>`` as TS 33.310 clause 6.1.3c.3 puts it into certificates."""
    return URN_PREFIX + nf_instance_id


def day0_name(nf_instance_id: str, home_domain: str) -> str:
    """The DNS name of a day-0 certificate (our own rule)."""
    return f"{nf_instance_id}.day0.{home_domain}"


@dataclass(frozen=True, slots=True)
class FqdnRules:
    """Which FQDNs an NF type may have below the home domain.

    ``forms`` replaces or adds regular expressions per NF type, relative to the
    home domain. An NF type without a form uses ``<label>.<nf type>``.
    """

    home_domain: str
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, nf_type: str, fqdns: Iterable[str]) -> tuple[str, ...]:
        """The names in lower case, without duplicates.

        Raises NftrustError(INVALID_FIELD, FQDN_OUTSIDE_HOME_DOMAIN, FQDN_FORM_MISMATCH).
        """
        names = tuple(dict.fromkeys(name.lower() for name in fqdns))
        if not 1 <= len(names) <= MAX_FQDNS:
            raise NftrustError(Reason.INVALID_FIELD, f"fqdns: 1 to {MAX_FQDNS} names", metadata={"field": "fqdns"})
        for name in names:
            self._check_one(nf_type, name)
        return names

    def _check_one(self, nf_type: str, name: str) -> None:
        if len(name) > 253 or not all(_LABEL.match(label) for label in name.split(".")):
            raise NftrustError(Reason.INVALID_FIELD, "fqdns: not a domain name", metadata={"field": "fqdns"})
        suffix = "." + self.home_domain
        if not name.endswith(suffix):
            raise NftrustError(Reason.FQDN_OUTSIDE_HOME_DOMAIN)
        default = (rf"{_L}\.{re.escape(nf_type.lower().replace('_', '-'))}",)
        forms = self.forms.get(nf_type) or FQDN_FORMS.get(nf_type) or default
        if not any(re.fullmatch(form, name[: -len(suffix)]) for form in forms):
            raise NftrustError(Reason.FQDN_FORM_MISMATCH, metadata={"nf_type": nf_type})


@dataclass(frozen=True, slots=True)
class Scope:
    """What a principal or a day-0 root may speak for (security rule 16). ``*`` is everything."""

    tenants: tuple[str, ...] = ()
    nf_types: tuple[str, ...] = ()
    fqdn_suffixes: tuple[str, ...] = ()

    def covers_tenant(self, tenant: str) -> bool:
        return "*" in self.tenants or tenant in self.tenants

    def require(self, *, tenant: str, nf_type: str, fqdns: Iterable[str]) -> None:
        """Raises NftrustError(OUT_OF_SCOPE) unless all of it is inside."""
        if not self.covers_tenant(tenant):
            raise NftrustError(Reason.OUT_OF_SCOPE, metadata={"field": "tenant"})
        if "*" not in self.nf_types and nf_type not in self.nf_types:
            raise NftrustError(Reason.OUT_OF_SCOPE, metadata={"field": "nf_type"})
        if "*" in self.fqdn_suffixes:
            return
        for name in fqdns:
            if not any(name == suffix or name.endswith("." + suffix) for suffix in self.fqdn_suffixes):
                raise NftrustError(Reason.OUT_OF_SCOPE, metadata={"field": "fqdns"})
