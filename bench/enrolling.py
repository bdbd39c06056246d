"""OAM and the NF agents of a lab, each a process of its own: what floods and soak keep busy."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.json_format import Parse

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.session import Session
from nftrust.lab import control
from nftrust.lab.layout import Lab


def provision(lab: Lab, session: Session) -> None:
    """Step 3 for every NF of the lab."""
    stub = session.provisioning()
    for nf in lab.settings.nfs:
        body = Parse((lab.nf(nf) / control.PROVISION_FILE).read_bytes(), pb.NetworkFunction())
        stub.CreateNetworkFunction(pb.CreateNetworkFunctionRequest(network_function=body), timeout=10)


def enrol(lab: Lab, session: Session, rounds: int = 1) -> None:
    """All NFs at once, each so often. Raises RuntimeError where one does not succeed."""
    stub = session.provisioning()

    def one(nf_instance_id: str) -> None:
        for _ in range(rounds):
            parent = f"networkFunctions/{nf_instance_id}"
            request = pb.StartEnrolmentRequest(parent=parent, allow_re_enrolment=True, request_id=str(uuid.uuid4()))
            started = stub.StartEnrolment(request, timeout=10)
            last = pb.Enrolment()
            for update in stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=started.name), timeout=60):
                last = update.enrolment
            if last.state != pb.Enrolment.SUCCEEDED:
                raise RuntimeError(f"{started.name}: {last.error.reason}")

    ids = [nf.nf_instance_id for nf in lab.settings.nfs]
    with ThreadPoolExecutor(max_workers=len(ids)) as pool:
        list(pool.map(one, ids))
