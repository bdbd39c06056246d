"""`make example-nf`: this NF without Docker. A lab comes up, AMF calls NRF, NRF renews its certificate meanwhile."""

import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.session import RENEWAL_SECONDS, Session
from nftrust.lab import control, demo, sba
from nftrust.lab.layout import OPERATOR_FILE, Lab, NfSettings


def calls_until(lab: Lab, client: NfSettings, server: NfSettings, ended: threading.Event) -> list[sba.Answer]:
    """One call after the other, and one more once it has ended."""
    answers = []
    while not ended.is_set():
        answers.append(sba.call(lab, client, server))
    return [*answers, sba.call(lab, client, server)]


def main() -> int:
    console = Console(highlight=False)
    if lacks := sba.missing():
        console.print(f"missing: {lacks}")
        return 1
    with tempfile.TemporaryDirectory(prefix="nf-nginx-") as directory:
        lab = Lab.make(Path(directory) / "lab", 2, nginx=True)
        try:
            control.up(lab, lambda text: console.print(f"[dim]·[/] {text}"))
            return show(console, lab)
        except KeyboardInterrupt:
            console.print("ending the lab")
            return 130
        finally:
            control.down(lab)


def show(console: Console, lab: Lab) -> int:
    server, client = sba.server_of(lab), sba.client_of(lab)
    assert server is not None
    assert client is not None
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        demo.enrol_all(console, lab, session, [client, server])
        first = demo.show_call(console, lab)
        console.print(f"\n{server.nf_type} renews its certificate, with another key, while {client.nf_type} calls")
        answers: list[sba.Answer] = []
        ended = threading.Event()
        calling = threading.Thread(target=lambda: answers.extend(calls_until(lab, client, server, ended)))
        calling.start()
        try:
            request = pb.RenewNetworkFunctionRequest(name=f"networkFunctions/{server.nf_instance_id}")
            session.provisioning().RenewNetworkFunction(request, timeout=RENEWAL_SECONDS)
            sba.wait_until_served(lab, sba.held(lab, server))
        finally:
            ended.set()
            calling.join()
    failed = [answer for answer in answers if not answer.good]
    for answer in failed:
        console.print(f"[red]✘[/] {answer.status} {answer.problem}")
    second = demo.show_call(console, lab)
    console.print(f"\n{len(answers)} calls during the change, {len(failed)} failed")
    return 0 if first and second and not failed else 3


if __name__ == "__main__":
    sys.exit(main())
