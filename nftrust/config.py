"""Configuration: TOML, parsed once into frozen structs; an unknown key is fatal.

Each role composes its own root struct from the parts here. docs/configuration.md
lists every key.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from nftrust.errors import NftrustError, Reason

MAX_CONFIG_BYTES = 1 << 20
#: msgspec repeats the value of a wrong choice.
_ENUM_VALUE = re.compile(r"Invalid enum value .*(?= - at `)", re.DOTALL)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every configuration section."""


class TokenConfig(Section, frozen=True):
    """A PKCS#11 token. The PIN comes from a file or an inherited descriptor, never from argv."""

    module: Path
    label: str
    pin_file: Path | None = None
    pin_fd: int | None = None
    #: Cross-process lock around start, login, writes and finds (SoftHSM 2.6.1).
    lock_file: Path | None = None
    #: Set before the module is loaded, for example SOFTHSM2_CONF.
    environment: dict[str, str] = {}
    #: Given to C_Initialize where the standard has pReserved: NSS softokn's configdir and the like.
    module_parameters: Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""

    def __post_init__(self) -> None:
        if (self.pin_file is None) == (self.pin_fd is None):
            raise ValueError("exactly one of pin_file and pin_fd is required")


class ServerTlsConfig(Section, frozen=True):
    """A listener's TLS material. ``client_ca`` present means mutual TLS."""

    certificate: Path
    private_key: Path
    client_ca: Path | None = None


class ListenerConfig(Section, frozen=True):
    """One gRPC listener."""

    address: str
    tls: ServerTlsConfig
    max_message_bytes: int = 256 * 1024
    max_concurrent_rpcs: Annotated[int, msgspec.Meta(ge=1)] = 1000
    max_calls_per_peer: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_streams_per_peer: Annotated[int, msgspec.Meta(ge=1)] = 64
    calls_per_second_per_peer: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    max_connection_age_seconds: float = 3600.0
    handshake_timeout_seconds: float = 10.0
    default_deadline_seconds: float = 30.0


class ProbeConfig(Section, frozen=True):
    """The plaintext endpoint for orchestrators and Prometheus."""

    address: str


class HttpConfig(Section, frozen=True):
    """The plain HTTP listener (CRL)."""

    address: str
    #: Base URL under which relying parties reach it; goes into certificates.
    public_url: str
    header_timeout_seconds: float = 5.0
    body_timeout_seconds: float = 10.0
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 512
    max_connections_per_peer: Annotated[int, msgspec.Meta(ge=1)] = 128


class StoreConfig(Section, frozen=True):
    """The database: an SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg://…``."""

    url: str
    #: A password for the URL, if any, comes from this file.
    password_file: Path | None = None


class LogConfig(Section, frozen=True):
    """JSON lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Day0RootConfig(Section, frozen=True):
    """A root that vouches for day-0 certificates, with its scope (security rule 16)."""

    name: str
    certificate: Path
    tenant: str
    nf_types: tuple[str, ...] = ("*",)
    fqdn_suffixes: tuple[str, ...] = ("*",)


class FqdnConfig(Section, frozen=True):
    """Forms of FQDNs per NF type, relative to the home domain; regular expressions."""

    nf_type: str
    forms: tuple[str, ...]


Deployment = Literal["production", "lab"]

C = TypeVar("C", bound=Section)


def _decode_hook(target: type, value: Any) -> Any:
    if target is Path and isinstance(value, str):
        return Path(value)
    raise ValueError("Expected a path")


def load(section: type[C], path: Path) -> C:
    """Read ``path`` into ``section``. Relative paths inside stay relative to the file's folder.

    Raises NftrustError(CONFIG_INVALID) with the key's name; values are not repeated.
    """
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: {os.strerror(error.errno or 0)}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: nested too deeply") from None
    try:
        config = msgspec.convert(tree, section, dec_hook=_decode_hook)
    except (msgspec.ValidationError, ValueError) as error:
        why = _ENUM_VALUE.sub("Invalid value", str(error))
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: {why}") from None
    anchored: C = _anchor(config, path.resolve().parent)
    return anchored


def _anchor(value: Any, base: Path) -> Any:
    """Resolve each relative path in ``value`` against the configuration file's folder."""
    if isinstance(value, Path):
        return value if value.is_absolute() else base / value
    if isinstance(value, msgspec.Struct):
        fields = {name: _anchor(getattr(value, name), base) for name in value.__struct_fields__}
        return type(value)(**fields)
    if isinstance(value, tuple):
        return tuple(_anchor(item, base) for item in value)
    return value
