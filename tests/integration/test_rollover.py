"""The issuing CA is rolled over while the CA/RA serves, with real tokens and openssl as relying party."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from nf_agent.ca_ra import GrpcEnrolmentPort
from nf_agent.trust import RefreshPolicy, TrustRefresher, trust_anchors
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.cli.download import fetch
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.client import TokenClient
from nftrust.x509.authority import make_issuing
from nftrust.x509.path import der, pem_chain
from softhsm import create_token
from tests.lab_kit import WAIT_SECONDS, RunningLab, read_toml, refused, write_toml
from tests.pki import make_ca
from tests.renewal_kit import RealNf
from tests.rollover_kit import LEAD_IS_OVER, Issued, Relying, RollingCa, response_certificate, roots

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(300)]

#: How a CA is announced, with these options.
Announce = Callable[[RollingCa, Path, Sequence[str]], None]


@pytest.fixture(scope="module")
def served(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RollingCa]:
    with RollingCa.open(running_lab, tmp_path_factory.mktemp("rolling")) as made:
        yield made


@pytest.fixture
def ca(served: RollingCa) -> RollingCa:
    """Nothing is announced, whatever the test before has left."""
    for generation, state in served.states().items():
        if state == "ANNOUNCED":
            served.rollover("retire", "--generation", str(generation))
            wait_for(served, generation, "RETIRED")
    return served


def under_the_same_root(ca: RollingCa, directory: Path, options: Sequence[str]) -> None:
    ca.rollover("announce", "--root-token", str(ca.root_token), *options)


def under_a_new_root(ca: RollingCa, directory: Path, options: Sequence[str]) -> None:
    ca.rollover("announce", "--root-token", str(ca.root_token), "--new-root", *options)


def under_an_external_root(ca: RollingCa, directory: Path, options: Sequence[str]) -> None:
    path = directory / "chain.pem"
    path.write_bytes(pem_chain(external_chain(ca, directory)))
    ca.rollover("announce", "--chain", str(path), *options)


def external_chain(ca: RollingCa, directory: Path) -> list[x509.Certificate]:
    """What an external root makes of the request."""
    ca.rollover("request", "--csr", str(directory / "issuing.csr"))
    csr = x509.load_pem_x509_csr((directory / "issuing.csr").read_bytes())
    root = make_ca("External root")
    now, year = datetime.now(UTC), timedelta(days=365)
    issuing = make_issuing(root.key, root.certificate, csr.public_key(), csr.subject, now, year)  # type: ignore[arg-type]
    return [issuing, root.certificate]


def next_generation(ca: RollingCa) -> int:
    return max(ca.states()) + 1


def under_a_root_of_our_own(ca: RollingCa) -> None:
    """Whose key is in the root's token."""
    root = x509.load_pem_x509_certificate(ca.active().root_ca_pem.encode())
    if "Operator Root CA" not in root.subject.rfc4514_string():
        generation = next_generation(ca)
        ca.rollover("announce", "--root-token", str(ca.root_token), "--new-root", *LEAD_IS_OVER)
        ca.rollover("activate")
        wait_for(ca, generation, "ACTIVE")


def wait_for(ca: RollingCa, generation: int, state: str) -> None:
    """The front sees in the database what a person has done."""
    deadline = time.monotonic() + WAIT_SECONDS
    while ca.states().get(generation) != state:
        assert time.monotonic() < deadline, ca.states()
        time.sleep(0.05)


def wait_for_crl(ca: RollingCa, generation: int, holds: Callable[[x509.CertificateRevocationList], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    [url] = [each.crl_url for each in ca.about().issuing_cas if each.generation == generation]
    while True:
        try:
            if holds(x509.load_der_x509_crl(fetch(url, 10))):
                return
        except NftrustError:
            pass  # not published yet
        assert time.monotonic() < deadline, url
        time.sleep(0.05)


def lists(issued: Issued) -> Callable[[x509.CertificateRevocationList], bool]:
    serial = issued.certificate.serial_number
    return lambda crl: crl.get_revoked_certificate_by_serial_number(serial) is not None


@pytest.mark.parametrize(
    ("announce", "restarted"),
    [(under_the_same_root, False), (under_a_new_root, True), (under_an_external_root, False)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nothing_breaks_from_one_ca_to_the_next(
    ca: RollingCa, tmp_path: Path, announce: Announce, restarted: bool
) -> None:
    def next_phase(generation: int, state: str) -> None:
        if restarted:
            ca.restart()
        wait_for(ca, generation, state)

    if announce is under_the_same_root:
        under_a_root_of_our_own(ca)
    before, after = ca.active().generation, next_generation(ca)
    held = ca.redeem(ca.register())
    response = response_certificate(held.iak)
    alone = Relying(tmp_path, roots(ca.bundle(response)))

    announce(ca, tmp_path, ["--lead-hours", "1"])
    next_phase(after, "ANNOUNCED")
    wait_for_crl(ca, after, lambda crl: len(crl) == 0)
    with pytest.raises(NftrustError) as early:
        ca.rollover("activate")
    assert early.value.reason is Reason.ROLLOVER_TOO_EARLY
    bundle = ca.bundle(response, held.iak.info.ca_id)  # an NF learns of it before it is used
    assert bundle.ca_id == held.iak.info.ca_id
    assert [entry.state for entry in bundle.authorities][-1] == "announced"
    relying = Relying(tmp_path, roots(bundle))
    meanwhile = ca.redeem(ca.register())
    assert meanwhile.certificate.issuer == held.certificate.issuer
    under_way = ca.register()

    ca.rollover("activate", "--force")
    next_phase(after, "ACTIVE")
    assert ca.states()[before] == "SUPERSEDED"
    new = ca.redeem(ca.register())
    assert new.certificate.issuer != held.certificate.issuer
    assert new.crl_url.endswith(f"/issuing-{after}.crl")
    late = ca.redeem(under_way)  # it was told to expect the CA before
    assert late.certificate.issuer == held.certificate.issuer
    # NFs of either CA verify each other: with the bundle of the old one's response key, and of the new one's.
    for anchors in (relying, Relying(tmp_path, roots(ca.bundle(response_certificate(new.iak))))):
        for issued in (held, meanwhile, late, new):
            assert anchors.accepts(issued), anchors.verify(issued)
            assert anchors.ocsp(issued) == "good"
    assert alone.accepts(held)
    ca_issuers = new.access(x509.AuthorityInformationAccessOID.CA_ISSUERS)
    assert fetch(ca_issuers, 10) == der(new.issuing)

    # What the old CA issued stays revocable, on its own CRL.
    ca.revoke(held)
    wait_for_crl(ca, before, lists(held))
    assert not relying.accepts(held)
    assert relying.ocsp(held) == "revoked"
    assert relying.accepts(new)
    assert relying.ocsp(held, new.issuing) == "unknown"
    with pytest.raises(NftrustError) as good:
        ca.rollover("retire", "--generation", str(before))
    assert good.value.reason is Reason.ROLLOVER_OUT_OF_ORDER
    revoke_all(ca, before)
    ca.rollover("retire", "--generation", str(before))
    next_phase(before, "RETIRED")
    with refused(Reason.CA_UNKNOWN):
        ca.bundle(response, held.iak.info.ca_id)
    assert new.iak.info.ca_id in [entry.ca_id for entry in ca.bundle(response_certificate(new.iak)).authorities]
    assert held.iak.info.ca_id not in [entry.ca_id for entry in ca.bundle(response_certificate(new.iak)).authorities]
    wait_for_crl(ca, before, lists(late))  # until its end


def revoke_all(ca: RollingCa, generation: int) -> None:
    """Of a CA, by the names of its certificates' issuers."""
    [about] = [each for each in ca.about().issuing_cas if each.generation == generation]
    issuer = x509.load_pem_x509_certificate(about.issuing_ca_pem.encode()).subject
    request = certificate_pb.ListCertificatesRequest(exclude_revoked=True, page_size=1000)
    for found in ca.oam.certificates.ListCertificates(request).certificates:
        if x509.load_pem_x509_certificate(found.pem.encode()).issuer == issuer:
            revoke = certificate_pb.RevokeCertificateRequest(name=found.name, reason=certificate_pb.SUPERSEDED)
            ca.oam.certificates.RevokeCertificate(revoke)


def test_an_announced_ca_may_be_withdrawn(ca: RollingCa, tmp_path: Path) -> None:
    before, after = ca.active().generation, next_generation(ca)
    under_a_new_root(ca, tmp_path, LEAD_IS_OVER)
    wait_for(ca, after, "ANNOUNCED")
    with pytest.raises(NftrustError) as second:
        under_a_new_root(ca, tmp_path, LEAD_IS_OVER)
    assert second.value.reason is Reason.ROLLOVER_OUT_OF_ORDER
    ca.rollover("retire", "--generation", str(after))
    wait_for(ca, after, "RETIRED")
    ca.rollover("retire", "--generation", str(after))  # again: nothing changes
    with pytest.raises(NftrustError) as nothing:
        ca.rollover("activate", "--force")
    assert nothing.value.reason is Reason.ROLLOVER_OUT_OF_ORDER
    assert ca.active().generation == before
    for generation in (before, 99):
        with pytest.raises(NftrustError) as refusal:
            ca.rollover("retire", "--generation", str(generation))
        assert refusal.value.reason is Reason.ROLLOVER_OUT_OF_ORDER
    ca.redeem(ca.register())


def test_what_an_external_root_gives_is_checked(ca: RollingCa, tmp_path: Path) -> None:
    issuing, root = external_chain(ca, tmp_path)
    other = make_ca("Another root").certificate
    present = x509.load_pem_x509_certificate(ca.active().issuing_ca_pem.encode())
    same_name = make_issuing(
        make_ca("External root").key, root, issuing.public_key(), present.subject, datetime.now(UTC), timedelta(days=9)
    )
    for chain in ([issuing], [issuing, other], [present, root], [same_name, root], [other, root]):
        (tmp_path / "chain.pem").write_bytes(pem_chain(chain))
        with pytest.raises(NftrustError) as refusal:
            ca.rollover("announce", "--chain", str(tmp_path / "chain.pem"))
        assert refusal.value.reason is Reason.CONFIG_INVALID
    assert "ANNOUNCED" not in ca.states().values()


def test_a_root_token_that_is_not_the_present_root_s_is_refused(ca: RollingCa) -> None:
    wrong = ca.directory / "wrong.toml"
    write_toml(wrong, read_toml(ca.config)["token"])  # the issuing CA's own
    with pytest.raises(NftrustError) as refusal:
        ca.rollover("announce", "--root-token", str(wrong))
    assert refusal.value.reason is Reason.CONFIG_INVALID
    assert "ANNOUNCED" not in ca.states().values()


# The NF agent


@pytest.fixture(scope="module")
def rolling_nf(served: RollingCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNf]:
    """An agent's parts with a token of their own, at the CA/RA that rolls over."""
    config = create_token(tmp_path_factory.mktemp("rolling-nf") / "token", "rolling-nf")
    token = TokenClient.in_process(config)
    try:
        token.ready()
        yield RealNf.make(served, tmp_path_factory.mktemp("rolling-agent"), config, token)  # type: ignore[arg-type]
    finally:
        token.close()


async def refresh(nf: RealNf) -> None:
    """What the agent's schedule does when it is time."""
    fetched = asyncio.Event()
    before = nf.state.bundle_time
    async with GrpcEnrolmentPort(WAIT_SECONDS) as port:
        policy = RefreshPolicy(interval_seconds=0.01, retry_cap_seconds=0.01)
        refresher = TrustRefresher(nf.states, port, (), policy, asyncio.Event, fetched.set)
        running = asyncio.create_task(refresher.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await fetched.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert nf.state.bundle_time != before


def issuer_of(nf: RealNf) -> x509.Name:
    assert nf.state.current is not None
    return x509.load_der_x509_certificate(bytes.fromhex(nf.state.current.chain[0])).issuer


def issuing_ca(ca: RollingCa) -> x509.Name:
    return x509.load_pem_x509_certificate(ca.active().issuing_ca_pem.encode()).subject


def root_of(ca: RollingCa) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ca.active().root_ca_pem.encode())


async def test_an_agent_is_renewed_from_one_ca_to_the_next(ca: RollingCa, rolling_nf: RealNf, tmp_path: Path) -> None:
    nf = rolling_nf
    nf.clock.ahead = timedelta(0)
    await nf.enrol()
    before, old_issuer, old_root, after = ca.active().generation, issuing_ca(ca), root_of(ca), next_generation(ca)
    assert issuer_of(nf) == old_issuer
    await refresh(nf)
    assert set(trust_anchors(nf.state)) >= {old_root}

    def step(*arguments: str, state: tuple[int, str]) -> None:
        ca.rollover(*arguments)
        wait_for(ca, *state)

    announce = ("announce", "--root-token", str(ca.root_token), "--new-root", *LEAD_IS_OVER)
    await asyncio.to_thread(step, *announce, state=(after, "ANNOUNCED"))
    await asyncio.to_thread(step, "activate", state=(after, "ACTIVE"))
    # It has missed the whole lead time: a certificate under a root that it does not know is not taken …
    nf.make_due()
    renewer = await nf.renewer()
    await renewer.look()
    assert nf.state.renewal.reason == Reason.RESPONSE_INVALID.name
    assert issuer_of(nf) == old_issuer
    # … until the bundle names it; the request is the same.
    await refresh(nf)
    new_root = root_of(ca)
    assert set(trust_anchors(nf.state)) >= {old_root, new_root}
    nf.make_due()
    await renewer.look()
    assert nf.state.renewal.reason == ""
    assert issuer_of(nf) == issuing_ca(ca) != old_issuer
    renewed = nf.serial

    # Without the old CA, whose response key was the one that came with the enrolment.
    await asyncio.to_thread(revoke_all, ca, before)
    await asyncio.to_thread(step, "retire", "--generation", str(before), state=(before, "RETIRED"))
    await refresh(nf)
    assert old_root not in trust_anchors(nf.state) or old_root == new_root
    nf.make_due()
    await renewer.look()
    assert nf.serial != renewed
    assert nf.state.renewal.reason == ""
