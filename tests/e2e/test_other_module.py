"""A lab in which NSS softokn holds all keys but those of CA/RA and NF: nothing depends on SoftHSM without need."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.lab import control
from nftrust.lab.layout import Lab
from softhsm import open_config
from tests.lab_kit import RunningLab, read_toml
from tests.nss_kit import create_nss_token

pytestmark = [pytest.mark.process, pytest.mark.token]

#: The tokens that guard no IAK.
SIGNING_ONLY = ("pki", "ca_root", "cmproxy")


def test_enrolment_with_two_modules(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path / "lab", 1)
    for name in SIGNING_ONLY:
        config = create_nss_token(lab.token(name), f"nftrust-{name.replace('_', '-')}")
        (lab.token(name) / "token.json").write_bytes(msgspec.json.encode(config, enc_hook=str))
    try:
        control.up(lab, print)
        assert "softokn" in read_toml(lab.role("cmproxy") / "config.toml")["token"]["module"]
        assert "softhsm" in str(open_config(lab.token("ca_ra")).module)
        with contextlib.ExitStack() as stack:
            running = RunningLab(lab, stack, tmp_path)
            [nf] = lab.settings.nfs
            name = running.create_nf(running.network_function(nf)).name
            running.wait_for(running.start(name).name, pb.Enrolment.SUCCEEDED)
    finally:
        control.down(lab)
