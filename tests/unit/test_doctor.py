"""The order of checks, and judgements that a lab cannot easily be brought to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as ca_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2 as diagnosis_pb
from nftrust.cli.doctor import certificates
from nftrust.cli.doctor.authority import CertificateAuthority
from nftrust.cli.doctor.checks import Check, Finding, Result, Verdict, broken, cannot_tell, ok, refused, run
from nftrust.cli.doctor.network_functions import Look, Nf
from nftrust.cli.doctor.report import EXIT_ATTENTION, EXIT_BROKEN, exit_code
from nftrust.cli.doctor.services import Clocks, Service, series
from nftrust.clock import SystemClock
from nftrust.errors import Reason
from tests.pki import Authority, make_ca, service_leaf

NOW = datetime.now(UTC)
NOBODY = cast(Service, None)


def verdicts(results: Iterator[Result]) -> dict[str, Verdict | None]:
    return {result.check.key: result.finding and result.finding.verdict for result in results}


def test_what_rests_on_something_broken_is_not_looked_at() -> None:
    def never() -> Finding:
        raise AssertionError("looked at")

    checks = [
        Check("a", "", lambda: ok("")),
        Check("b", "", lambda: broken("", "mend it"), ("a",)),
        Check("c", "", never, ("b",)),
        Check("d", "", never, ("c",)),
        Check("e", "", lambda: cannot_tell("", ""), ("a",)),
        Check("f", "", never, ("e",)),
        Check("g", "", lambda: ok(""), ("a",)),
    ]
    assert verdicts(run(checks)) == {
        "a": Verdict.OK,
        "b": Verdict.BROKEN,
        "c": None,
        "d": None,
        "e": Verdict.CANNOT_TELL,
        "f": None,
        "g": Verdict.OK,
    }


def test_checks_that_a_finding_adds_come_next_and_keep_their_order() -> None:
    more = (Check("n", "", lambda: ok(""), ("a",), "1"), Check("n", "", lambda: ok(""), ("n 1",), "2"))
    found = [result.check.key for result in run([Check("a", "", lambda: ok("", more)), Check("z", "", lambda: ok(""))])]
    assert found == ["a", "n 1", "n 2", "z"]


def test_exit_status() -> None:
    def status(*findings: Finding) -> int:
        return exit_code(run([Check(str(n), "", lambda f=f: f) for n, f in enumerate(findings)]))  # type: ignore[misc]

    assert status(ok("")) == 0
    assert status(ok(""), cannot_tell("", "")) == EXIT_ATTENTION
    assert status(cannot_tell("", ""), broken("", "")) == EXIT_BROKEN


def test_a_reason_of_a_newer_role_is_told_all_the_same() -> None:
    found = refused("SOMETHING_NEW", "It is new.")
    assert (found.verdict, found.reason) == (Verdict.BROKEN, "SOMETHING_NEW")
    assert "version" in found.remedy


@pytest.mark.parametrize(
    ("age", "lifetime", "verdict"),
    [
        (timedelta(days=1), timedelta(days=30), Verdict.OK),
        (timedelta(days=28), timedelta(days=30), Verdict.ATTENTION),
        (timedelta(days=31), timedelta(days=30), Verdict.BROKEN),
        (timedelta(days=-1), timedelta(days=30), Verdict.BROKEN),
        (timedelta(days=3600), timedelta(days=3650), Verdict.OK),
        (timedelta(days=3625), timedelta(days=3650), Verdict.ATTENTION),
    ],
)
def test_validity(age: timedelta, lifetime: timedelta, verdict: Verdict) -> None:
    leaf = make_ca("CA").issue(not_before=NOW - age, lifetime=lifetime - age)
    found = certificates.validity("it", leaf.certificate, NOW, "renew it")
    assert found.verdict is verdict
    assert bool(found.remedy) == (verdict is not Verdict.OK)


def test_trust_is_not_a_question_of_time() -> None:
    ca, other = make_ca("CA"), make_ca("CA")
    below = ca.intermediate("Intermediate")
    for issuer in (ca, below):
        for lifetime in (timedelta(days=1), timedelta(days=-1)):
            leaf = issuer.issue(uri_sans=["urn:nftrust:oam:a"], lifetime=lifetime)
            chain = [leaf.certificate, *leaf.intermediates]
            assert certificates.leads_to(chain, [other.certificate, ca.certificate], NOW)
            assert not certificates.leads_to(chain, [other.certificate], NOW)


def test_a_certificate_is_for_its_hosts() -> None:
    certificate = service_leaf(make_ca("CA"), "ca-ra").certificate
    assert certificates.is_for_host(certificate, "LocalHost")
    assert certificates.is_for_host(certificate, "127.0.0.1")
    assert not certificates.is_for_host(certificate, "127.0.0.2")
    assert not certificates.is_for_host(certificate, "ca-ra one")


# The CA


def authority(ca: Authority, crl: bytes = b"") -> CertificateAuthority:
    about = ca_pb.CertificateAuthority(issuing_ca_pem=ca.pem.decode(), crl_url="http://ca/crl")
    return CertificateAuthority(NOBODY, SystemClock(), about, crl)


def crl(ca: Authority, next_update: timedelta) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(NOW - timedelta(days=2))
        .next_update(NOW + next_update)
    )
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("lifetime", "verdict"),
    [
        (timedelta(days=-1), Verdict.BROKEN),
        (timedelta(days=20), Verdict.ATTENTION),
        (timedelta(days=900), Verdict.OK),
    ],
)
def test_the_issuing_ca(lifetime: timedelta, verdict: Verdict) -> None:
    issuing = make_ca("Issuing").issue(lifetime=lifetime, not_before=NOW - timedelta(days=10))
    found = authority(Authority(issuing.certificate, issuing.key)).issuing_ca()
    assert found.verdict is verdict
    assert ("ca-ra rollover" in found.remedy) == (verdict is not Verdict.OK)


def test_the_crl() -> None:
    ca, other = make_ca("Issuing"), make_ca("Issuing")
    assert authority(ca, crl(ca, timedelta(days=1))).judge_crl().verdict is Verdict.OK
    stale = authority(ca, crl(ca, timedelta(days=-1))).judge_crl()
    assert (stale.verdict, "stale" in stale.text) == (Verdict.BROKEN, True)
    for foreign in (crl(other, timedelta(days=1)), b"<html>"):
        found = authority(ca, foreign).judge_crl()
        assert (found.verdict, "public_url" in found.remedy) == (Verdict.BROKEN, True)


# Clocks


def clocks(**ahead: float) -> Clocks:
    return Clocks(SystemClock(), {name: timedelta(seconds=seconds) for name, seconds in ahead.items()})


def wrong(found: Clocks) -> set[str]:
    own = {"oam"} if found.check().look().verdict is Verdict.BROKEN else set()
    return own | {name for name in found.ahead if found.of(name, name).verdict is Verdict.BROKEN}


def test_the_clock_that_differs_from_the_others_is_the_wrong_one() -> None:
    assert wrong(clocks(a=0.1, b=-0.1, c=1)) == set()
    assert wrong(clocks(a=0, b=900, c=0)) == {"b"}
    assert wrong(clocks(a=900, b=900, c=901)) == {"oam"}
    assert wrong(clocks(a=0, b=-900)) == {"b"}
    assert wrong(clocks(a=900)) == {"a"}
    assert clocks().check().look().verdict is Verdict.CANNOT_TELL


# NFs


class FixedNf(Nf):
    """Whose last enrolment is known."""

    last: pb.Enrolment | None = None

    def _last(self) -> pb.Enrolment | None:
        return self.last


def nf(last: pb.Enrolment | None = None, **agent: str) -> FixedNf:
    look = diagnosis_pb.Finding(agent=diagnosis_pb.AgentReport(version="1", **agent))  # type: ignore[arg-type]
    made = FixedNf(NOBODY, SystemClock(), pb.NetworkFunction(nf_type="AMF"), Look(look, NOW))
    made.last = last
    return made


def test_enrolments() -> None:
    failed = pb.Enrolment(
        state=pb.Enrolment.FAILED, error=pb.EnrolmentError(reason="OUT_OF_SCOPE", message="No.", remedy="Ask.")
    )
    succeeded = pb.Enrolment(state=pb.Enrolment.SUCCEEDED)
    assert nf(state="ARMED").enrolment().verdict is Verdict.OK
    assert nf(succeeded, state="CONFIRMED").enrolment().verdict is Verdict.OK
    assert nf(failed, state="CONFIRMED").enrolment().verdict is Verdict.ATTENTION
    found = nf(failed, state="FAILED").enrolment()
    assert (found.verdict, found.reason, found.remedy) == (Verdict.BROKEN, "OUT_OF_SCOPE", "Ask.")
    retrying = nf(state="ENROLLING", reason=Reason.PEER_UNAVAILABLE.name).enrolment()
    assert (retrying.verdict, retrying.reason) == (Verdict.BROKEN, "PEER_UNAVAILABLE")
    assert "to the CA/RA" in retrying.text


def test_versions_go_together_within_a_series() -> None:
    assert series("0.1.0") == series("0.1.7")
    assert series("0.1.0") != series("0.2.0")
    assert series("") != series("0.1")


def test_an_nfs_clock_and_day0_certificate() -> None:
    made = nf(state="ARMED")
    made.look.agent.time.FromDatetime(NOW + timedelta(seconds=5))
    made.look.agent.day0_expire_time.FromDatetime(NOW + timedelta(days=60))
    assert (made.time().verdict, made.day0_expiry().verdict) == (Verdict.OK, Verdict.OK)
    made.look.agent.time.FromDatetime(NOW - timedelta(minutes=5))
    made.look.agent.day0_expire_time.FromDatetime(NOW + timedelta(days=2))
    assert (made.time().verdict, made.day0_expiry().verdict) == (Verdict.BROKEN, Verdict.ATTENTION)


def test_an_nfs_certificate_and_whether_it_knows_it() -> None:
    made = nf(state="CONFIRMED")
    assert (made.certificate().verdict, made.told().verdict) == (Verdict.OK, Verdict.OK)
    for left, verdict in ((20, Verdict.OK), (2, Verdict.ATTENTION), (-1, Verdict.BROKEN)):
        made.look.agent.not_before.FromDatetime(NOW + timedelta(days=left - 30))
        made.look.agent.not_after.FromDatetime(NOW + timedelta(days=left))
        assert made.certificate().verdict is verdict, left
    made.look.agent.pending_hooks.append("command")
    found = made.told()
    assert (found.verdict, "command" in found.text) == (Verdict.ATTENTION, True)


# The page


def test_every_check_is_documented() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "doctor.md").read_text("utf-8")
    sources = [path.read_text("utf-8") for path in (root / "nftrust" / "cli" / "doctor").glob("*.py")]
    ids = {name for text in sources for name in re.findall(r'"((?:oam|ca-ra|cm-proxy|nf|local)\.[a-z0-9.-]+)"', text)}
    assert len(ids) > 20
    assert {name for name in ids if f"`{name}`" not in page and name not in ("ca-ra.enrolment",)} == set()
