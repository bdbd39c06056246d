"""The CM proxy takes the CA/RA's signed word for a confirmation, and nobody else's."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from cmproxy.adapters.ca_ra import GrpcCaRaPort
from cmproxy.model import Enrolment
from nftrust import jose
from nftrust.clock import SystemClock
from nftrust.messages import CONFIRM_URL, ENROL_URL, RESPONSE_TYP, ConfirmResponse
from tests.unit.support import NfCa
from tests.unit.test_trust import enrolment_info

CA, STRANGER = NfCa("confirming"), NfCa("confirming stranger")
RESPONSE = ConfirmResponse(
    request_sha256=jose.b64url(bytes(32)),
    registration="registrations/1",
    certificate="certificates/2",
    confirm_time_us=5_000_000,
)


def signed(
    response: ConfirmResponse = RESPONSE, key: ec.EllipticCurvePrivateKey = CA.response_key, url: str = ""
) -> str:
    return jose.sign(key, jose.Header("ES256", RESPONSE_TYP, url=url or CONFIRM_URL), response)


def taken(confirmation: str, registration: str = "registrations/1", info: str = "") -> Any:
    """Looked at without a call to the CA/RA: there is no channel."""
    channel: grpc.aio.Channel = None  # type: ignore[assignment]
    port = GrpcCaRaPort(channel, [CA.root], SystemClock(), 1.0)
    enrolment: Enrolment = Known(registration, info or enrolment_info(CA))  # type: ignore[assignment]
    return port.confirmed(enrolment, confirmation)


class Known:
    """What of an enrolment is looked at."""

    def __init__(self, registration: str, enrolment_info: str) -> None:
        self.registration, self.enrolment_info = registration, enrolment_info


def test_the_signed_answer_counts() -> None:
    found = taken(signed())
    assert (found.name, found.state, found.certificate) == ("registrations/1", "confirmed", "certificates/2")
    assert found.confirm_time.timestamp() == 5


@pytest.mark.parametrize(
    "confirmation",
    [
        "",
        "garbage",
        signed(key=STRANGER.response_key),
        signed(key=CA.issuing_key),
        signed(url=ENROL_URL),
        signed(replace(RESPONSE, registration="registrations/2")),
        signed(replace(RESPONSE, confirm_time_us=1 << 62)),
        signed()[:-4] + "AAAA",
    ],
)
def test_nothing_else_does(confirmation: str) -> None:
    assert taken(confirmation) is None


def test_nor_does_one_under_information_that_the_operators_root_does_not_stand_for() -> None:
    assert taken(signed(key=STRANGER.response_key), info=enrolment_info(STRANGER)) is None
