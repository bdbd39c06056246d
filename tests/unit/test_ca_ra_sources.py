"""Failed proofs are budgeted per source: one IPv4 address, or the /64 that one host commands (security rule 6)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ca_ra.enrolment import EnrolmentEngine
from ca_ra.service import EnrolmentServicer
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as pb
from nftrust.rpc.peer import Peer, set_current_peer


class RecordingEngine:
    """Takes the source of each call down."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    async def enrol(self, proof: str, source: str) -> str:
        self.sources.append(source)
        return "signed"

    confirm = enrol


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
async def test_a_host_cannot_change_its_source_by_changing_its_address(address: str, source: str) -> None:
    engine = RecordingEngine()
    servicer = EnrolmentServicer(cast(EnrolmentEngine, engine))
    set_current_peer(Peer(address=address))
    context = cast(Any, None)
    await servicer.EnrolCertificate(pb.EnrolCertificateRequest(proof="p"), context)
    await servicer.ConfirmCertificate(pb.ConfirmCertificateRequest(proof="p"), context)
    assert engine.sources == [source, source]
