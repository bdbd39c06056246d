"""What `nftrust doctor` says of a CA rollover."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as pb
from nftrust.cli.doctor.authority import CertificateAuthority
from nftrust.cli.doctor.checks import Verdict
from nftrust.x509.path import pem_chain
from tests.unit.support import DAY, NOW, NfCa

CA = NfCa("doctor rollover")
HOUR = timedelta(hours=1)
ACTIVE, ANNOUNCED, SUPERSEDED, RETIRED = (
    pb.IssuingCa.ACTIVE,
    pb.IssuingCa.ANNOUNCED,
    pb.IssuingCa.SUPERSEDED,
    pb.IssuingCa.RETIRED,
)


class Clock:
    def now(self) -> datetime:
        return NOW


def stamp(time: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(time)
    return made


def generation(number: int, state: Any, *, lead: timedelta = -HOUR, crl: timedelta = HOUR) -> pb.IssuingCa:
    return pb.IssuingCa(
        generation=number,
        state=state,
        issuing_ca_pem=pem_chain([CA.issuing]).decode(),
        activate_after=stamp(NOW + lead),
        crl_next_update=stamp(NOW + crl),
    )


def look(*generations: pb.IssuingCa, ends_in: timedelta = 365 * DAY) -> CertificateAuthority:
    issuing = NfCa("doctor rollover", lifetime=2 * ends_in).issuing
    nothing: Any = None
    made = CertificateAuthority(nothing, Clock())  # type: ignore[arg-type]
    made.about = pb.CertificateAuthority(issuing_ca_pem=pem_chain([issuing]).decode(), issuing_cas=generations)
    return made


@pytest.mark.parametrize(
    ("generations", "verdict", "text"),
    [
        ([generation(1, ACTIVE)], Verdict.OK, "no rollover"),
        ([generation(1, ACTIVE), generation(2, ANNOUNCED, lead=HOUR)], Verdict.OK, "CA 2 is announced"),
        ([generation(1, ACTIVE), generation(2, ANNOUNCED)], Verdict.ATTENTION, "lead time is over"),
        ([generation(1, SUPERSEDED), generation(2, ACTIVE)], Verdict.OK, "CA 1 is superseded"),
        ([generation(1, SUPERSEDED, crl=-HOUR), generation(2, ACTIVE)], Verdict.BROKEN, "CRL of CA 1"),
        ([generation(1, ACTIVE), generation(2, ANNOUNCED, crl=-HOUR)], Verdict.BROKEN, "CRL of CA 2"),
        ([generation(1, RETIRED, crl=-HOUR), generation(2, ACTIVE)], Verdict.OK, "no rollover"),
    ],
)
def test_the_phase_is_told(generations: list[pb.IssuingCa], verdict: Verdict, text: str) -> None:
    finding = look(*generations).rollover()
    assert finding.verdict is verdict
    assert text in finding.text


def test_a_ca_near_its_end_is_told_with_what_is_next() -> None:
    alone = look(generation(1, ACTIVE), ends_in=10 * DAY).issuing_ca()
    assert alone.verdict is Verdict.ATTENTION
    assert "rollover announce" in alone.remedy
    followed = look(generation(1, ACTIVE), generation(2, ANNOUNCED), ends_in=10 * DAY).issuing_ca()
    assert "rollover activate" in followed.remedy
    assert look(generation(1, ACTIVE)).issuing_ca().verdict is Verdict.OK
