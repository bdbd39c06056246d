"""Labs for measurements: each in a folder of its own that goes with its processes, however the block ends."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nftrust.files import read_file
from nftrust.lab import control
from nftrust.lab.layout import Lab
from nftrust.rpc.channel import FileIdentity, open_channel


@contextmanager
def made(nfs: int) -> Iterator[Lab]:
    """A lab that is set up and does not run yet, for software NFs too (tls-only IAKs allowed)."""
    with tempfile.TemporaryDirectory(prefix="nftrust-bench-") as folder:
        lab = Lab.make(Path(folder) / "lab", nfs, allow_tls_only_iak=True)
        try:
            control.set_up(lab, say)
            yield lab
        finally:
            control.down(lab)


@contextmanager
def running(nfs: int) -> Iterator[Lab]:
    """A lab that serves until the end of the block."""
    with made(nfs) as lab:
        control.start(lab, say)
        yield lab


def say(text: str) -> None:
    """Tell whoever waits; figures alone go to standard output."""
    print(f"· {text}", file=sys.stderr, flush=True)


def oam_channel(lab: Lab, role: str) -> Any:
    """A channel to a role's management listener as OAM."""
    description = lab.description({})
    files = description["pki"]
    return open_channel(
        description[role]["management"],
        trust_roots=read_file(Path(files["services_ca"])),
        identity=FileIdentity(Path(files["oam_cert"]), Path(files["oam_key"])),
    )


def enrolment_channel(lab: Lab) -> Any:
    """A channel of its own to the CA/RA's enrolment listener, as an NF opens it."""
    description = lab.description({})
    roots = read_file(Path(description["pki"]["services_ca"]))
    return open_channel(description["ca_ra"]["enrolment"], trust_roots=roots)
