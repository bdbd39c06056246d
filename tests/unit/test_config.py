"""Configuration files: what is fatal, how it is named, and where relative paths lead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftrust.config import (
    MAX_CONFIG_BYTES,
    Day0RootConfig,
    HttpConfig,
    ListenerConfig,
    LogConfig,
    Section,
    ServerTlsConfig,
    TokenConfig,
    load,
)
from nftrust.errors import NftrustError, Reason
from tests.unit.support import refused

SECRET = "hunter2"


class Root(Section, frozen=True):
    """A role's configuration in small."""

    listener: ListenerConfig
    token: TokenConfig | None = None
    day0_root: tuple[Day0RootConfig, ...] = ()
    log: LogConfig = LogConfig()
    limit: int = 1


LISTENER = """
[listener]
address = "localhost:1"
[listener.tls]
certificate = "tls/a.pem"
private_key = "/etc/a.key"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "role"
    folder.mkdir()
    return folder / "role.toml"


def refusal_of(file: Path, text: str | bytes) -> str:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with refused(Reason.CONFIG_INVALID) as caught:
        load(Root, file)
    assert caught.value.message.startswith(f"{file}: ")
    return caught.value.message.removeprefix(str(file))


def test_paths_are_relative_to_the_file(file: Path) -> None:
    file.write_text(
        LISTENER
        + """
[token]
module = "/usr/lib/module.so"
label = "x"
pin_file = "../pin"
environment = { SOFTHSM2_CONF = "softhsm2.conf" }
[[day0_root]]
name = "vendor"
certificate = "roots/vendor.pem"
tenant = "north"
"""
    )
    root = load(Root, file)
    here = file.parent
    assert root.listener.tls == ServerTlsConfig(
        certificate=here / "tls/a.pem", private_key=Path("/etc/a.key"), client_ca=None
    )
    assert root.token is not None
    assert (root.token.module, root.token.pin_file) == (Path("/usr/lib/module.so"), here / "../pin")
    assert root.token.environment == {"SOFTHSM2_CONF": "softhsm2.conf"}
    assert [day0.certificate for day0 in root.day0_root] == [here / "roots/vendor.pem"]


def test_the_working_directory_does_not_matter(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(LISTENER)
    monkeypatch.chdir(file.parent)
    assert load(Root, Path(file.name)).listener.tls.certificate == file.parent / "tls/a.pem"


def test_defaults(file: Path) -> None:
    file.write_text(LISTENER)
    root = load(Root, file)
    assert (root.token, root.day0_root, root.log.level, root.limit) == (None, (), "info", 1)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("limits", f"limits = '{SECRET}'\n" + LISTENER),
        ("addres", LISTENER.replace("address", "addres")),
        ("client_cert", LISTENER + f"client_cert = '{SECRET}'"),
        ("leve", LISTENER + f"[log]\nleve = '{SECRET}'"),
        ("pin", LISTENER + f"[token]\nmodule = 'm'\nlabel = 'l'\npin_file = 'p'\npin = '{SECRET}'"),
        ("Limit", "Limit = 1\n" + LISTENER),
    ],
)
def test_unknown_key_is_named(file: Path, key: str, text: str) -> None:
    message = refusal_of(file, text)
    assert f"`{key}`" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("address", LISTENER.replace('address = "localhost:1"', "")),
        ("listener", ""),
        ("private_key", LISTENER.replace('private_key = "/etc/a.key"', "")),
        ("certificate", LISTENER + "[[day0_root]]\nname = 'x'\ntenant = 'north'"),
    ],
)
def test_missing_key_is_named(file: Path, key: str, text: str) -> None:
    assert f"`{key}`" in refusal_of(file, text)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("limit", f"limit = '{SECRET}'\n" + LISTENER),
        ("log.level", LISTENER + f"[log]\nlevel = '{SECRET}'"),
        ("log.level", LISTENER + f'[log]\nlevel = "{SECRET}\' {SECRET}"'),
        ("log.level", LISTENER + f'[log]\nlevel = "{SECRET}\\n{SECRET}"'),
        ("log.level", LISTENER + "[log]\nlevel = 424242"),
        ("listener.address", LISTENER.replace('"localhost:1"', f"['{SECRET}']")),
        ("listener.tls.certificate", LISTENER.replace('"tls/a.pem"', "424242")),
        ("token.pin_fd", LISTENER + f"[token]\nmodule = 'm'\nlabel = 'l'\npin_fd = '{SECRET}'"),
        ("token", LISTENER + f"[token]\nmodule = 'm'\nlabel = 'l'\npin_fd = 3\npin_file = '{SECRET}'"),
        ("day0_root[0].nf_types", LISTENER + "[[day0_root]]\nname='x'\ncertificate='c'\ntenant='t'\nnf_types='AMF'"),
    ],
)
def test_wrong_value_is_named_by_its_key_and_not_repeated(file: Path, where: str, text: str) -> None:
    message = refusal_of(file, text)
    assert f"`$.{where}`" in message
    assert SECRET not in message
    assert "424242" not in message


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        f"limit = {SECRET}",
        f"limit = '{SECRET}",
        f"limit {SECRET}",
        f"limit = 1\nlimit = '{SECRET}'",
        f"[log]\nlevel = '{SECRET}'\n[log]\n",
        "[[",
        "\0",
        "x = " + "[" * 5000,
    ],
)
def test_not_toml(file: Path, text: str | bytes) -> None:
    assert SECRET not in refusal_of(file, text)


def test_no_file(file: Path) -> None:
    with refused(Reason.CONFIG_INVALID) as caught:
        load(Root, file)
    assert str(file) in caught.value.message


def test_a_directory(tmp_path: Path) -> None:
    with refused(Reason.CONFIG_INVALID):
        load(Root, tmp_path)


def test_size_is_bounded(file: Path) -> None:
    message = refusal_of(file, b"#" * (MAX_CONFIG_BYTES + 1))
    assert str(MAX_CONFIG_BYTES) in message


@pytest.mark.parametrize("pins", [{}, {"pin_file": Path("p"), "pin_fd": 3}])
def test_token_has_exactly_one_source_of_its_pin(pins: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        TokenConfig(module=Path("m"), label="l", **pins)  # type: ignore[arg-type]


def test_sections_are_frozen() -> None:
    with pytest.raises(AttributeError):
        HttpConfig(address="a", public_url="u").address = "b"  # type: ignore[misc]


@given(text=st.text(max_size=60))
def test_any_text_is_refused_by_type(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(NftrustError) as caught:
        load(Root, file)
    assert caught.value.reason is Reason.CONFIG_INVALID
