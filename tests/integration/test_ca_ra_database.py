"""A database changed behind the CA/RA's back is found (security rule 7)."""

from __future__ import annotations

import pytest

from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.errors import Reason
from tests.lab_kit import RunningLab, SecondCa, refused
from tests.soft_nf import Iak, new_key

pytestmark = pytest.mark.process

#: Every immutable column, and what an attacker would write there.
CHANGES = {
    "nf_instance_id": "'00000000-0000-4000-8000-000000000000'",
    "nf_type": "'SMF'",
    "fqdns": "'stolen.amf.5gc.mnc001.mcc001.3gppnetwork.org'",
    "tenant": "'other'",
    "profile": "'nf-set'",
    "delivery_mode": "'tls-only'",
    "transport_key_sha256": "(SELECT transport_key_sha256 FROM registration WHERE id = :other)",
    "create_time": "create_time + 1000000",
    "expire_time": "expire_time + 3600000000",
    "row_mac": "(SELECT row_mac FROM registration WHERE id = :other)",
}


@pytest.fixture
def iaks(running_lab: RunningLab, second_ca: SecondCa) -> tuple[Iak, Iak]:
    return second_ca.register(running_lab.soft_nf()), second_ca.register(running_lab.soft_nf())


def identifier(iak: Iak) -> str:
    return iak.info.registration.removeprefix("registrations/")


def change(second_ca: SecondCa, column: str, value: str, mine: Iak, other: Iak) -> None:
    # A constant table of columns and expressions, in a test.
    statement = f"UPDATE registration SET {column} = {value.replace(':other', '?1')} WHERE id = ?2"
    arguments = (identifier(other), identifier(mine)) if ":other" in value else (identifier(mine),)
    if ":other" not in value:
        statement = statement.replace("?2", "?1")
    second_ca.execute(statement, *arguments)


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_column_is_found(second_ca: SecondCa, iaks: tuple[Iak, Iak], column: str) -> None:
    mine, other = iaks
    change(second_ca, column, CHANGES[column], mine, other)
    with refused(Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(mine.proof())
    second_ca.enrol(other.proof())


def test_the_id_and_the_reference_are_covered_too(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    mine, other = iaks
    second_ca.execute("UPDATE registration SET reference = 'r' || reference WHERE id = ?", identifier(mine))
    with refused(Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(mine.proof(header={"kid": "r" + mine.info.reference}))
    second_ca.execute("UPDATE registration SET id = 'f' || substr(id, 2) || 'f' WHERE id = ?", identifier(other)[:32])
    with refused(Reason.STORED_ROW_TAMPERED, Reason.PROOF_INVALID):
        second_ca.enrol(other.proof())


def test_the_mac_algorithm_is_covered(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    mine, other = iaks
    change(second_ca, "mac_algorithm", "'HS384'", mine, other)
    with refused(Reason.PROOF_INVALID):  # not even tried with another algorithm
        second_ca.enrol(mine.proof())


def test_a_swapped_blob_does_not_make_anothers_iak_good(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    mine, other = iaks
    change(second_ca, "iak_blob", "(SELECT iak_blob FROM registration WHERE id = :other)", mine, other)
    for secret in (mine.value, other.value):
        with refused(Reason.STORED_ROW_TAMPERED):
            second_ca.enrol(mine.proof(secret=secret))


def test_a_damaged_blob_is_found(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    mine, other = iaks
    change(second_ca, "iak_blob", "zeroblob(40)", mine, other)
    with refused(Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(mine.proof())


def test_a_cleared_flag_does_not_make_a_spent_iak_good(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    """Consumption is the certificate's row, not a flag."""
    mine, other = iaks
    second_ca.enrol(mine.proof())
    change(second_ca, "certificate_serial", "NULL", mine, other)
    with refused(Reason.IAK_USED, Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(mine.proof(csr=mine.csr(key=new_key())))
    rows = second_ca.execute("SELECT count(*) FROM certificate WHERE registration_id = ?", identifier(mine))
    assert rows == [(1,)]


def test_a_revocation_taken_back_by_hand_revives_nothing(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    mine, other = iaks
    request = pb.RevokeRegistrationRequest(name=mine.info.registration)
    second_ca.oam.registrations.RevokeRegistration(request)
    change(second_ca, "revoke_time", "NULL", mine, other)
    with refused(Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(mine.proof())


def test_a_forged_flag_names_no_certificate(second_ca: SecondCa, iaks: tuple[Iak, Iak]) -> None:
    mine, other = iaks
    change(second_ca, "certificate_serial", "'7'", mine, other)
    with refused(Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(mine.proof())
