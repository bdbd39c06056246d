"""The configuration files of a lab's roles, as an operator would write them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from nftrust.files import write_atomically
from nftrust.lab import sba
from nftrust.lab.layout import (
    ADDRESS,
    COUNTRY,
    DAY0_ROOT,
    HOME_DOMAIN,
    HOST,
    OPERATOR_FILE,
    TENANT,
    Lab,
    NfSettings,
)

CONFIG_FILE = "config.toml"
ROOT_TOKEN_FILE = "root-token.toml"  # noqa: S105 - a file name
PROXY_URI, OAM_URI, CA_RA_URI, VERIFIER_URI = (
    f"urn:nftrust:{role}:lab" for role in ("cm-proxy", "oam", "ca-ra", "verifier")
)
_LISTENER: dict[str, Any] = {"handshake_timeout_seconds": 10.0}


def write_all(lab: Lab) -> None:
    """Every role's ``config.toml``, the access file and the operator's ``nftrust.toml``."""
    _write(lab.directory / "access.toml", _access())
    _write(lab.role("ca_ra") / CONFIG_FILE, _ca_ra(lab))
    _write(lab.role("ca_ra") / ROOT_TOKEN_FILE, _token(lab, "ca_root"))
    _write(lab.role("cmproxy") / CONFIG_FILE, _cmproxy(lab))
    _write(lab.role("verifier") / CONFIG_FILE, _verifier(lab))
    for nf in lab.settings.nfs:
        _write(lab.nf(nf) / CONFIG_FILE, _agent(lab, nf))
    _write(lab.directory / OPERATOR_FILE, _operator(lab))


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, tomli_w.dumps(_plain(tree)).encode())


def _plain(value: Any) -> Any:
    """Paths as strings, at any depth."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _token(lab: Lab, name: str) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.json.decode((lab.token(name) / "token.json").read_bytes())
    return {key: value for key, value in raw.items() if value}


def _listener(folder: Path, port: int, client_ca: Path | None) -> dict[str, Any]:
    tls: dict[str, Any] = {"certificate": folder / "server.pem", "private_key": folder / "server.key"}
    if client_ca is not None:
        tls["client_ca"] = client_ca
    return {"address": f"{ADDRESS}:{port}", **_LISTENER, "tls": tls}


def _store(lab: Lab, role: str) -> dict[str, Any]:
    """SQLite in the role's folder, or a database of the role's name at the given PostgreSQL server."""
    base = lab.settings.store
    url = f"sqlite:///{lab.role(role) / 'store.sqlite'}" if base is None else f"{base.rstrip('/')}/nftrust_{role}"
    return {"url": url}


def _access() -> dict[str, Any]:
    everything = {"tenants": ["*"], "nf_types": ["*"], "fqdn_suffixes": ["*"]}
    return {
        "denied_certificates": [],
        "denied_principals": [],
        "principal": [
            {"uri": OAM_URI, **everything, "tenants": [TENANT]},
            {"uri": PROXY_URI, **everything, "tenants": [TENANT]},
        ],
    }


def _day0_roots(lab: Lab) -> list[dict[str, Any]]:
    return [{"name": DAY0_ROOT, "certificate": lab.pki / "day0-root.pem", "tenant": TENANT}]


def _modes(lab: Lab) -> list[str]:
    return ["wrapped", "tls-only"] if lab.settings.allow_tls_only_iak else ["wrapped"]


def _ca_ra(lab: Lab) -> dict[str, Any]:
    settings, folder = lab.settings, lab.role("ca_ra")
    services_ca = lab.pki / "services-ca.pem"
    return {
        "probe": {"address": f"{ADDRESS}:{lab.probe_port('ca_ra')}"},
        "deployment": "lab",
        "home_domain": HOME_DOMAIN,
        "access_file": lab.directory / "access.toml",
        "fronts": settings.replicas,
        "token": _token(lab, "ca_ra"),
        "store": _store(lab, "ca_ra"),
        "management": _listener(folder, settings.ca_ra_management_port, services_ca),
        "enrolment": _listener(folder, settings.ca_ra_enrolment_port, None),
        "http": {"address": f"{ADDRESS}:{settings.http_port}", "public_url": f"http://{HOST}:{settings.http_port}"},
        "ca": {
            "chain": folder / "chain.pem",
            "response_certificate": folder / "response.pem",
            "country": COUNTRY,
        },
        "registration": {
            "delivery_modes": _modes(lab),
            "endpoints": [f"{HOST}:{settings.ca_ra_enrolment_port}"],
            "tls_trust_anchors": services_ca,
        },
        "profiles": [
            {"name": "nf", "validity_hours": 24.0 * 90},
            {"name": "nf-set", "validity_hours": 24.0 * 90, "shared_fqdns": True},
        ],
        "day0_roots": _day0_roots(lab),
    }


def _cmproxy(lab: Lab) -> dict[str, Any]:
    settings, folder = lab.settings, lab.role("cmproxy")
    services_ca = lab.pki / "services-ca.pem"
    return {
        "probe": {"address": f"{ADDRESS}:{lab.probe_port('cmproxy')}"},
        "deployment": "lab",
        "home_domain": HOME_DOMAIN,
        "client_certificate": folder / "client.pem",
        "access_file": lab.directory / "access.toml",
        "delivery_modes": _modes(lab),
        "shared_fqdn_profiles": ["nf-set"],
        "token": _token(lab, "cmproxy"),
        "store": _store(lab, "cmproxy"),
        "management": _listener(folder, settings.cmproxy_port, services_ca),
        "ca_ra": {
            "target": f"{HOST}:{settings.ca_ra_management_port}",
            "trust_anchors": services_ca,
            "trust_anchor": lab.role("ca_ra") / "root.pem",
        },
        "verifier": {"target": f"{HOST}:{settings.verifier_port}", "trust_anchors": services_ca},
        "day0_roots": _day0_roots(lab),
        "runner": {"instance": "lab", "lease_seconds": 5.0, "retry_cap_seconds": 2.0, "recovery_seconds": 2.0},
    }


def _verifier(lab: Lab) -> dict[str, Any]:
    folder = lab.role("verifier")
    return {
        "probe": {"address": f"{ADDRESS}:{lab.probe_port('verifier')}"},
        "deployment": "lab",
        "access_file": lab.directory / "access.toml",
        "store": _store(lab, "verifier"),
        "management": _listener(folder, lab.settings.verifier_port, lab.pki / "services-ca.pem"),
    }


def _agent(lab: Lab, nf: NfSettings) -> dict[str, Any]:
    folder = lab.nf(nf)
    return {
        **({"hooks": sba.hook(lab, nf)} if nf == sba.server_of(lab) else {}),
        "deployment": "lab",
        "nf_instance_id": nf.nf_instance_id,
        "metrics_file": lab.nf(nf) / "metrics.prom",
        "state_dir": folder / "state",
        "minimum_delivery_mode": "tls-only" if lab.settings.allow_tls_only_iak else "wrapped",
        "retry_cap_seconds": 2.0,
        "token": _token(lab, nf.folder),
        "listener": {
            "address": f"{ADDRESS}:{nf.port}",
            **_LISTENER,
            "tls": {
                "certificate": folder / "day0.pem",
                "private_key": folder / "day0.key",
                "client_ca": lab.pki / "services-ca.pem",
            },
        },
    }


def _operator(lab: Lab) -> dict[str, Any]:
    settings = lab.settings
    return {
        "services_ca": lab.pki / "services-ca.pem",
        "certificate": lab.pki / "oam.pem",
        "private_key": lab.pki / "oam.key",
        "cmproxy": f"{HOST}:{settings.cmproxy_port}",
        "ca_ra": f"{HOST}:{settings.ca_ra_management_port}",
        "verifier": f"{HOST}:{settings.verifier_port}",
    }
