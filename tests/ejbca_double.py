"""A double of EJBCA's end entity REST API over HTTPS with mutual TLS.

The forms of requests and answers are those of EJBCA's OpenAPI description
(Keyfactor/ejbca-ce at 28c583d, modules/ejbca-rest-api/resources/openapi.json;
the project is LGPL-2.1-or-later, nothing of it is copied here); the statuses
are those of its ExceptionHandler. A request that is not of that form gets 400
and is remembered in ``faults``.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.pki import Authority, Leaf, make_ca

API = "/ejbca/ejbca-rest-api/v1/endentity"
VERSION = "EJBCA 9.1.0 Community (double)"
TOKENS = {"USERGENERATED", "P12", "BCFKS", "JKS", "PEM"}
STATUSES = {"NEW", "FAILED", "INITIALIZED", "INPROCESS", "GENERATED", "REVOKED", "HISTORICAL", "KEYRECOVERY"}
#: Properties by schema: type, and the values where they are listed.
SCHEMAS: dict[str, dict[str, Any]] = {
    "AddEndEntityRestRequest": {
        **dict.fromkeys(
            ("username", "password", "subject_dn", "subject_alt_name", "email", "ca_name", "account_binding_id"), str
        ),
        **dict.fromkeys(("certificate_profile_name", "end_entity_profile_name", "start_time", "end_time"), str),
        "token": TOKENS,
        "status": STATUSES,
        "key_recoverable": bool,
        "send_notification": bool,
    },
    "SetEndEntityStatusRestRequest": {"password": str, "token": TOKENS, "status": STATUSES},
    "EndEntityRevocationRestRequest": {"reason_code": {0, 1, 2, 3, 4, 5, 6, 8, 9, 10}, "delete": bool},
}
#: What EJBCA's validators want present.
REQUIRED = {
    "AddEndEntityRestRequest": {"username", "ca_name", "certificate_profile_name", "end_entity_profile_name", "token"},
    "SetEndEntityStatusRestRequest": {"token", "status"},
    "EndEntityRevocationRestRequest": {"reason_code"},
}


def conforms(schema: str, body: Any) -> bool:
    if not isinstance(body, dict) or not body.keys() >= REQUIRED[schema] or not body.keys() <= SCHEMAS[schema].keys():
        return False
    return all(
        value in allowed if isinstance(allowed, set) else isinstance(value, allowed)
        for name, value in body.items()
        for allowed in [SCHEMAS[schema][name]]
    )


@dataclass
class EjbcaDouble:
    """What it knows, and what it is to do next."""

    url: str
    #: For ``foreign_ca_ra.settings``.
    settings: dict[str, str]
    end_entities: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    #: Status to answer instead of doing anything; None: behave.
    answer: int | None = None

    def handle(self, method: str, path: str, raw: bytes) -> tuple[int, dict[str, Any]]:
        if self.answer is not None:
            return self.answer, {"error_code": self.answer, "error_message": "as told"}
        if (method, path) == ("GET", API + "/status"):
            return 200, {"status": "OK", "version": "1.0", "revision": VERSION}
        body = json.loads(raw)
        if (method, path) == ("POST", API):
            return self._checked("AddEndEntityRestRequest", body, lambda: self._add(body))
        name, _, verb = path.removeprefix(API + "/").partition("/")
        if (method, verb) == ("POST", "setstatus"):
            return self._checked("SetEndEntityStatusRestRequest", body, lambda: self._set(name, body))
        if (method, verb) == ("PUT", "revoke"):
            return self._checked("EndEntityRevocationRestRequest", body, lambda: self._set(name, {"status": "REVOKED"}))
        return 404, {"error_code": 404, "error_message": "HTTP 404 Not Found"}

    def _checked(self, schema: str, body: Any, then: Any) -> tuple[int, dict[str, Any]]:
        if not conforms(schema, body):
            self.faults.append(schema)
            return 400, {"error_code": 400, "error_message": "Invalid " + schema}
        status: int = then()
        return status, {} if status == 200 else {"error_code": status, "error_message": "refused"}

    def _add(self, body: dict[str, Any]) -> int:
        if body["username"] in self.end_entities:
            return 400  # EndEntityExistsException
        self.end_entities[body["username"]] = {"status": "NEW", **body}
        return 200

    def _set(self, name: str, change: dict[str, Any]) -> int:
        known = self.end_entities.get(name)
        if known is None:
            return 404  # NoSuchEndEntityException
        if change["status"] == known["status"] == "REVOKED":
            return 409  # AlreadyRevokedException
        known.update(change)
        return 200


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[EjbcaDouble]:
    """On a port of its own, admitting the RA certificate in ``directory`` alone."""
    authority = make_ca("EJBCA management CA")
    server = _files(directory, "server", authority, authority.issue(dns_sans=["localhost"]))
    client = _files(directory, "ra", authority, authority.issue(common_name="nftrust RA"))
    anchors = authority.write(directory, "management-ca")

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = double.handle(self.command, self.path, raw)
            data = json.dumps(body).encode() if body else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A refused handshake is what some tests want."""

    httpd = Server(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(anchors))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*server)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True, do_handshake_on_connect=False)
    url = f"https://localhost:{httpd.server_port}"
    settings = {
        "url": url,
        "trust_anchors": str(anchors),
        "certificate": str(client[0]),
        "private_key": str(client[1]),
        "ca_name": "NfIssuingCA",
        "end_entity_profile": "NF",
        "certificate_profile": "NFServerClient",
    }
    double = EjbcaDouble(url, settings)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield double
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def _files(directory: Path, name: str, authority: Authority, leaf: Leaf) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate.write_bytes(leaf.chain_pem)
    key.touch(mode=0o600)
    key.write_bytes(leaf.key_pem)
    return certificate, key
