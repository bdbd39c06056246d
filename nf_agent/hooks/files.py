"""Certificate, trust bundle, key URI and status as files, all of them or none.

    <directory>/sets/<name>/certificate.pem …    written once, never changed
    <directory>/current -> sets/<name>           replaced in one step
    <directory>/certificate.pem -> current/certificate.pem

A single file is always whole. Who needs several that belong together opens
``current`` once and reads inside (or is the command hook, which is given the
set's own path): the set before the present one is kept for those who are in
the middle of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from nf_agent.credential import Credential
from nftrust.files import unwritten
from nftrust.x509.path import der, pem_chain

CERTIFICATE_FILE = "certificate.pem"
TRUST_BUNDLE_FILE = "trust-bundle.pem"
KEY_URI_FILE = "key.uri"
STATUS_FILE = "status.json"
CURRENT = "current"
SETS = "sets"


def contents(credential: Credential) -> dict[str, bytes]:
    """The files of a credential, by name."""
    certificate = credential.certificate
    status = {
        "serial_number": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
        "certificate_sha256": hashlib.sha256(der(certificate)).hexdigest(),
        "key_uri": credential.pkcs11_uri,
    }
    return {
        CERTIFICATE_FILE: pem_chain(credential.chain),
        TRUST_BUNDLE_FILE: pem_chain(credential.trust_bundle),
        KEY_URI_FILE: credential.pkcs11_uri.encode() + b"\n",
        STATUS_FILE: msgspec.json.format(msgspec.json.encode(status), indent=1) + b"\n",
    }


def fingerprint(credential: Credential) -> str:
    """Another one for each other content of the files."""
    return hashlib.sha256(msgspec.json.encode(sorted(contents(credential).items()))).hexdigest()


class CredentialFiles:
    """A hook: the directory in which an NF finds its credential. Nothing in it is secret."""

    name = "files"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: What :meth:`publish` has seen there, until it is told of.
        self._seen: dict[str, bytes] | None = None

    async def tell(self, credential: Credential) -> None:
        """Looks again, unless :meth:`publish` just did; as that it waits for the disk. Raises NftrustError."""
        seen, self._seen = self._seen, None
        if seen != contents(credential):
            self.publish(credential)
            self._seen = None

    def publish(self, credential: Credential) -> None:
        """Make ``current`` the set of this credential, durably; else leave what is there.

        Raises NftrustError: STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_UNAVAILABLE.
        """
        files = contents(credential)
        try:
            present = self._present()
            if present is None or not _holds(present, files):
                self._replace(files)
            for name in files:
                _link(self.directory / name, f"{CURRENT}/{name}")
        except OSError as error:
            raise unwritten(error, self.directory) from None
        self._seen = files

    def find(self, credential: Credential) -> Path | None:
        """The present set, by its own path, if it is this credential's."""
        present = self._present()
        return present if present is not None and _holds(present, contents(credential)) else None

    def _present(self) -> Path | None:
        try:
            return self.directory / (self.directory / CURRENT).readlink()
        except OSError:
            return None

    def _replace(self, files: dict[str, bytes]) -> None:
        before = self._present()
        sets = self.directory / SETS
        sets.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=sets, prefix=""))
        try:
            for name, content in files.items():
                _write(fresh / name, content)
            fresh.chmod(0o755)
            _sync(fresh)
            _sync(sets)
            _link(self.directory / CURRENT, f"{SETS}/{fresh.name}")
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        _sync(self.directory)
        self._prune(fresh, before)

    def _prune(self, *kept: Path | None) -> None:
        """Remove older sets, and what a kill left half written."""
        names = {path.name for path in kept if path is not None}
        with contextlib.suppress(OSError):
            for path in (self.directory / SETS).iterdir():
                if path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)


def _holds(directory: Path, files: dict[str, bytes]) -> bool:
    try:
        return all((directory / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as handle:
        handle.write(content)
        handle.flush()
        os.fchmod(handle.fileno(), 0o644)  # whatever the umask
        os.fsync(handle.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, in one step."""
    with contextlib.suppress(OSError):  # no link, or none at all
        if str(path.readlink()) == target:
            return
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
