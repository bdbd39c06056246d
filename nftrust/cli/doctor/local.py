"""With a role's own configuration at hand, on its host: its files and its token.

The PIN is the role's own, from its `pin_file`; a token is logged into once, as
the role itself would. A PIN given by descriptor is not ours to have.
"""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from nftrust.cli.doctor import certificates
from nftrust.cli.doctor.checks import Check, Finding, broken, cannot_tell, ok, refused
from nftrust.clock import Clock
from nftrust.config import TokenConfig
from nftrust.errors import NftrustError
from nftrust.files import read_file
from nftrust.pkcs11.client import TokenClient

_SECRETS = ("private_key", "pin_file", "password_file")


@dataclass
class LocalRole:
    """The configuration file of one role."""

    path: Path
    clock: Clock
    tree: Mapping[str, Any] = field(default_factory=dict)

    def checks(self) -> tuple[Check, ...]:
        subject = str(self.path)
        return (Check("local.configuration", self._hop, self.configuration, subject=subject),)

    @property
    def _hop(self) -> str:
        return f"files of {self.path}"

    def configuration(self) -> Finding:
        try:
            self.tree = tomllib.loads(read_file(self.path).decode())
        except NftrustError as error:
            return refused(error.reason.name, error.message)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
            return broken(f"{self.path} is not TOML", "Correct it; docs/configuration.md has every key.")
        looks: list[tuple[str, Callable[[], Finding]]] = [("secret-files", self.secret_files), ("pairs", self.pairs)]
        if "token" in self.tree:
            looks.append(("token", self.token))
        subject = str(self.path)
        then = tuple(
            Check(f"local.{name}", self._hop, look, (f"local.configuration {subject}",), subject)
            for name, look in looks
        )
        return ok("it can be read", then)

    def _at(self, value: str) -> Path:
        return self.path.resolve().parent / value

    def secret_files(self) -> Finding:
        for path in (
            self._at(value) for table in _tables(self.tree) for key, value in table.items() if key in _SECRETS
        ):
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
            except OSError:
                return broken(f"{path} is not there, or not for us to see", "Put it back, or run as the role's user.")
            if mode & 0o077:
                return broken(f"{path} has mode {mode:04o}: it is for its owner only", f"`chmod 600 {path}`")
        return ok("keys, PINs and passwords are for their owner only")

    def pairs(self) -> Finding:
        """Each listener's certificate: valid, and of its key."""
        for table in _tables(self.tree):
            if not {"certificate", "private_key"} <= table.keys():
                continue
            certificate_path, key_path = self._at(table["certificate"]), self._at(table["private_key"])
            try:
                certificate = x509.load_pem_x509_certificate(read_file(certificate_path))
                key = load_pem_private_key(read_file(key_path), None)
            except (NftrustError, ValueError, TypeError, UnsupportedAlgorithm):
                return broken(f"{certificate_path} or {key_path} cannot be read", "Issue the pair anew: `nftrust pki`.")
            if key.public_key() != certificate.public_key():
                return broken(f"{key_path} is not the key of {certificate_path}", "Put the pair together again.")
            found = certificates.validity(
                f"{certificate_path}", certificate, self.clock.now(), "Issue a new one: `nftrust pki`."
            )
            if found.remedy:
                return found
        return ok("TLS certificates are valid and of their keys")

    def token(self) -> Finding:
        """Log in as the role does."""
        try:
            config = msgspec.convert(self.tree["token"], TokenConfig, dec_hook=lambda target, value: target(value))
        except (msgspec.ValidationError, ValueError):
            return broken("[token] cannot be used", "Correct it; docs/configuration.md has every key.")
        if config.pin_file is None:
            return cannot_tell(
                "the PIN comes by descriptor: it is not ours", "Ask the running role: its line `token` above."
            )
        anchored = msgspec.structs.replace(
            config,
            module=self._at(str(config.module)),
            pin_file=self._at(str(config.pin_file)),
            lock_file=None if config.lock_file is None else self._at(str(config.lock_file)),
        )
        client = TokenClient.worker(anchored)
        try:
            client.ready()
        except NftrustError as error:
            return refused(error.reason.name, error.message)
        finally:
            client.close()
        return ok("its token opens with its PIN")


def _tables(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The table and every one inside it."""
    yield tree
    for value in tree.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _tables(inner)
