"""A call on the service-based interface of a lab: AMF → NRF, both keys in their tokens (examples/nf-nginx).

The lab's NRF is then the example's entry script in place of the bare agent:
nf-agent, and nginx as soon as there is a certificate.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nftrust.errors import NftrustError, Reason
from nftrust.lab.layout import ADDRESS, Lab, NfSettings

#: Beside the package in a clone; an installed wheel does not have it.
EXAMPLE = Path(__file__).parents[2] / "examples" / "nf-nginx"
ENGINES = "/usr/lib/*/engines-3/pkcs11.so"
SERVER_TYPE, CLIENT_TYPE = "NRF", "AMF"
RESOURCE = "/nnrf-disc/v1/nf-instances?target-nf-type=SMF&requester-nf-type=AMF"
START_SECONDS, CALL_SECONDS = 30.0, 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call."""

    #: 0 where there was no answer.
    status: int
    #: ``2`` for HTTP/2.
    http_version: str
    body: str
    #: Of curl, where it failed.
    problem: str

    @property
    def good(self) -> bool:
        return (self.status, self.http_version) == (200, "2")


def missing() -> str:
    """What there has to be and is not, for people; empty: nothing."""
    lacks = [tool for tool in ("nginx", "curl") if shutil.which(tool, path=_path()) is None]
    if not list(Path("/").glob(ENGINES.lstrip("/"))):
        lacks.append("libengine-pkcs11-openssl")
    if not (EXAMPLE / "entry").exists():
        lacks.append("examples/nf-nginx (only in a clone of the repository)")
    return ", ".join(lacks)


def server_of(lab: Lab) -> NfSettings | None:
    """The NF of this lab that serves, if any."""
    return _first(lab, SERVER_TYPE) if lab.settings.nginx else None


def client_of(lab: Lab) -> NfSettings | None:
    return _first(lab, CLIENT_TYPE)


def command(lab: Lab, nf: NfSettings) -> tuple[list[str], dict[str, str]]:
    """What runs as this NF in place of `nf-agent run`, and its environment."""
    environment = {
        **_token_environment(lab, nf),
        **hook(lab, nf)["environment"],
        "NF_TLS": str(lab.nf(nf) / "state"),
        "NF_LISTEN": f"{ADDRESS}:{lab.settings.sba_port}",
        "NF_FQDN": nf.fqdn,
        "NF_AGENT": f"{sys.executable} -m nf_agent",
    }
    return [str(EXAMPLE / "entry")], {**os.environ, "PATH": _path(), **environment}


def hook(lab: Lab, nf: NfSettings) -> dict[str, Any]:
    """The section ``hooks`` of its agent."""
    environment = {"NF_RUN": str(lab.nf(nf) / "nginx"), "PKCS11_MODULE_PATH": _token(lab, nf)["module"]}
    return {"command": [str(EXAMPLE / "on-certificate")], "environment": environment}


def url(lab: Lab, server: NfSettings) -> str:
    return f"https://{server.fqdn}:{lab.settings.sba_port}{RESOURCE}"


def call_command(lab: Lab, client: NfSettings, server: NfSettings) -> tuple[list[str], dict[str, str]]:
    """The call as a command, and the variables that it needs. No PIN is in it."""
    resolve = f"{server.fqdn}:{lab.settings.sba_port}:{ADDRESS}"
    script = [str(EXAMPLE / "call"), str(lab.nf(client) / "state"), url(lab, server), "--resolve", resolve]
    return script, {"PKCS11_MODULE_PATH": _token(lab, client)["module"], **_token_environment(lab, client)}


def call(lab: Lab, client: NfSettings, server: NfSettings) -> Answer:
    """By mutual TLS, each with its certificate. Never raises for what the call itself meets."""
    script, environment = call_command(lab, client, server)
    done = subprocess.run(
        [*script, "--write-out", "\n%{http_code} %{http_version}"],
        env={"PATH": _path(), **environment},
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    body, _, numbers = done.stdout.rpartition("\n")
    status, _, version = numbers.partition(" ")
    problem = (done.stderr.strip().splitlines() or ["curl says nothing"])[-1] if done.returncode else ""
    return Answer(int(status) if status.isdigit() else 0, version, body, problem)


def wait_until_served(lab: Lab, certificate: str) -> None:
    """Until the server shows this certificate (PEM). Raises NftrustError(PEER_UNAVAILABLE)."""
    deadline = time.monotonic() + START_SECONDS
    while served(lab) != certificate:
        if time.monotonic() > deadline:
            raise NftrustError(Reason.PEER_UNAVAILABLE, "nginx does not serve the NF's certificate")
        time.sleep(0.1)


def served(lab: Lab) -> str | None:
    """The certificate that the server shows, PEM; None where there is no server."""
    try:
        return ssl.get_server_certificate((ADDRESS, lab.settings.sba_port), timeout=5.0)
    except (OSError, ValueError):
        return None


def held(lab: Lab, nf: NfSettings) -> str:
    """The certificate that its agent has handed to the NF, PEM."""
    text = (lab.nf(nf) / "state" / "certificate.pem").read_text("ascii")
    return text[: text.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"


def _first(lab: Lab, nf_type: str) -> NfSettings | None:
    return next((nf for nf in lab.settings.nfs if nf.nf_type == nf_type), None)


def _token(lab: Lab, nf: NfSettings) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.json.decode((lab.token(nf.folder) / "token.json").read_bytes())
    return raw


def _token_environment(lab: Lab, nf: NfSettings) -> dict[str, str]:
    environment: dict[str, str] = _token(lab, nf)["environment"]
    return environment


def _path() -> str:
    """Debian has nginx in a directory that is not everybody's to search."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
