"""How long whole enrolments take while hostile peers keep the enrolment listener busy, beside the same without them.

The peers share the address and the cores of the servers, so that what they
cost themselves is in the figures, and the limits per peer are at their worst.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc

from bench import enrolling, machine
from bench.figures import Figure, Run
from nftrust import jose
from nftrust.api.ca_ra.v1.enrolment_service_pb2 import EnrolCertificateRequest
from nftrust.cli.session import Session
from nftrust.files import read_file
from nftrust.lab import control
from nftrust.lab.layout import HOST, OPERATOR_FILE, Lab
from nftrust.messages import ENROL_TYP, ENROL_URL, EnrolProof
from tests.floods_kit import BELOW_GRPC, Target, flood

CONNECTIONS = 300
#: Calls that a flood has under way.
CALLS = 64
#: No message; and more than the listener takes.
GARBAGE, OVERSIZE = b"\xff" * 1000, bytes(1 << 20)

Flood = Callable[[], AbstractContextManager[Any]]


def measure(run: Run, lab: Lab) -> None:
    """All NFs of the lab enrol at once, again and again, without and under each flood."""
    target = Target(HOST, lab.settings.ca_ra_enrolment_port, lab.pki / "services-ca.pem")
    floods: dict[str, Flood] = {"none": contextlib.nullcontext}
    for kind in BELOW_GRPC:
        floods[kind.__name__] = _connections(target, kind)
    messages = {"garbage messages": GARBAGE, "oversize messages": OVERSIZE, "wrong proofs": _wrong_proof()}
    floods |= {name: _calls(lab, message) for name, message in messages.items()}
    floods["none again"] = contextlib.nullcontext
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        enrolling.provision(lab, session)
        enrolling.enrol(lab, session)
        for name, started in floods.items():
            with started() as sent:
                times = sorted(_timed(lab, session) for _ in range(run.settings["rounds"]))
                pids = machine.tree(control.processes(lab)["ca_ra"][0])
                memory, handles = machine.proportional_memory(pids), machine.handles(pids)
            calls = f", {sent[0]} calls sent" if sent else ""
            key = f"floods.{name.replace(' ', '_')}"
            run.figures += [
                Figure(
                    name=f"{key}_median", value=statistics.median(times), unit="s", meaning=f"{name}{calls}: median"
                ),
                Figure(name=f"{key}_worst", value=times[-1], unit="s", meaning="the worst"),
                Figure(name=f"{key}_memory", value=memory, unit="MB", meaning=f"CA/RA, with {handles} handles open"),
            ]


def _wrong_proof() -> bytes:
    """A request as an NF would send it, for a reference that nobody has, with a MAC by nobody's IAK."""
    identifier = str(uuid.uuid4())
    payload = EnrolProof(
        ca_id="ca", registration="registrations/none", nf_instance_id=identifier, request_id=identifier, csr="AAAA"
    )
    header = jose.Header(alg="HS256", typ=ENROL_TYP, kid=uuid.uuid4().hex, url=ENROL_URL)
    proof = jose.join(jose.signing_input(header, payload), bytes(32))
    return EnrolCertificateRequest(proof=proof).SerializeToString()


def _timed(lab: Lab, session: Session) -> float:
    started = time.perf_counter()
    enrolling.enrol(lab, session)
    return time.perf_counter() - started


def _connections(target: Target, kind: Callable[[Target], Any]) -> Flood:
    """Many connections of one kind, held open."""

    @contextmanager
    def run() -> Iterator[None]:
        with flood(target, kind, CONNECTIONS):
            yield

    return run


def _calls(lab: Lab, message: bytes) -> Flood:
    """The same call over and over, from threads that stop at the block's end; how many were sent."""

    @contextmanager
    def run() -> Iterator[list[int]]:
        stop, sent = threading.Event(), [0]
        credentials = grpc.ssl_channel_credentials(read_file(lab.pki / "services-ca.pem"))
        with grpc.secure_channel(f"{HOST}:{lab.settings.ca_ra_enrolment_port}", credentials) as channel:
            call: Any = channel.unary_unary(ENROL_URL)

            def again() -> None:
                while not stop.is_set():
                    under_way = [call.future(message, timeout=30) for _ in range(CALLS // 4)]
                    for future in under_way:
                        future.exception()
                    sent[0] += len(under_way)

            threads = [threading.Thread(target=again) for _ in range(4)]
            for thread in threads:
                thread.start()
            try:
                yield sent
            finally:
                stop.set()
                for thread in threads:
                    thread.join()

    return run
