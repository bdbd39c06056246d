"""Makes a lab, starts it, tells how it is and ends it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography import x509

from nftrust import pki
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file, unwritten, write_atomically
from nftrust.lab import sba
from nftrust.lab.configuration import CONFIG_FILE, ROOT_TOKEN_FILE, write_all
from nftrust.lab.layout import ADDRESS, DAY0_ROOT, HOME_DOMAIN, HOST, LAB_FILE, TENANT, Lab, NfSettings
from nftrust.x509.path import pem_chain
from softhsm import create_token

SERVERS = {"ca_ra": "ca-ra", "verifier": "verifier", "cmproxy": "cm-proxy"}
READY_FILE = "ready.json"
LOG_FILE = "log.jsonl"
START_SECONDS, STOP_SECONDS, COMMAND_SECONDS = 60.0, 15.0, 300.0
PROVISION_FILE = "network-function.json"

Say = Callable[[str], None]


def up(lab: Lab, say: Say) -> None:
    """Make what is missing, then start what is not running. Raises NftrustError."""
    try:
        if not _live(lab):
            set_up(lab, say)
    except OSError as error:
        raise unwritten(error, lab.directory) from None
    start(lab, say)


def start(lab: Lab, say: Say) -> None:
    """Start what is not running of a lab that is set up, and wait until it serves. Raises NftrustError."""
    try:
        say("starting CA/RA, verifier, CM proxy and NF agents")
        started = _start(lab)
        lab.write_description(started)
    except OSError as error:
        raise unwritten(error, lab.directory) from None
    _wait_until_ready(lab, started)


def down(lab: Lab) -> None:
    """End every process; what is stored stays."""
    end(*_live(lab))
    if (lab.directory / LAB_FILE).exists():
        lab.write_description({name: [] for name in (*SERVERS, "nfs")})


def end(*pids: int) -> None:
    """End these processes of a lab, by SIGKILL those that will not."""
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids:
        if alive(pid):
            _signal(pid, signal.SIGKILL)
        child = _children.pop(pid, None)
        if child is not None:
            child.wait()


def status(lab: Lab) -> dict[str, bool]:
    """Whether each process runs, by role or NF folder."""
    found = {name: bool(pids) and all(map(alive, pids)) for name, pids in processes(lab).items() if name != "nfs"}
    agents = processes(lab).get("nfs", [])
    for index, nf in enumerate(lab.settings.nfs):
        found[f"nf {nf.folder}"] = index < len(agents) and alive(agents[index])
    return found


def start_server(lab: Lab, role: str) -> int:
    """Start one server role; its supervisor's process id."""
    folder = lab.role(role)
    (folder / READY_FILE).unlink(missing_ok=True)
    command = [sys.executable, "-m", role, "run", "--config", str(folder / CONFIG_FILE)]
    return _spawn([*command, "--ready-file", str(folder / READY_FILE)], folder)


def start_agent(lab: Lab, nf: NfSettings) -> int:
    """Start one NF agent; its process id."""
    folder = lab.nf(nf)
    (folder / READY_FILE).unlink(missing_ok=True)
    command, environment = [sys.executable, "-m", "nf_agent", "run"], None
    if nf == sba.server_of(lab):
        command, environment = sba.command(lab, nf)
    options = ["--config", str(folder / CONFIG_FILE), "--ready-file", str(folder / READY_FILE)]
    return _spawn([*command, *options], folder, environment)


# Set-up


def set_up(lab: Lab, say: Say) -> None:
    """Tokens, keys, certificates, configuration and databases, as far as they are missing. Raises NftrustError."""
    names = ["pki", "ca_root", "ca_ra", "cmproxy", *(nf.folder for nf in lab.settings.nfs)]
    say(f"PKCS#11 tokens: {', '.join(names)}")
    tokens = {name: create_token(lab.token(name), f"nftrust-{name.replace('_', '-')}") for name in names}
    say("services CA and day-0 root")
    pki.initialise(lab.pki, pki.PkiSettings(home_domain=HOME_DOMAIN, token=tokens["pki"], lab=True))
    write_all(lab)
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        say("keys of the NFs (RSA-3072 transport keys take a moment), of the CA and of the CM proxy")
        agents = [pool.submit(_initialise_agent, lab, nf) for nf in lab.settings.nfs]
        servers = [pool.submit(_initialise_server, lab, role) for role in SERVERS]
        try:
            for job in (*servers, *agents):
                job.result()
        except BaseException:  # an interruption, too, does not wait for keys that nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
            for command in list(_commands):
                command.kill()
            raise
    say("certificates of the services, of OAM and of day 0")
    _issue(lab)


def _initialise_server(lab: Lab, role: str) -> None:
    folder = lab.role(role)
    config = ["--config", str(folder / CONFIG_FILE)]
    # Also where there is a file: a disk that was full may have left it without its tables.
    _command([sys.executable, "-m", role, "migrate", *config])
    if role == "ca_ra" and not (folder / "root.pem").exists():
        _command([sys.executable, "-m", role, "init", *config, "--root-token", str(folder / ROOT_TOKEN_FILE)])
        chain = x509.load_pem_x509_certificates(read_file(folder / "chain.pem"))
        write_atomically(folder / "root.pem", pem_chain(chain[-1:]), 0o644)
    if role == "cmproxy" and not (folder / "client.csr").exists():
        _command([sys.executable, "-m", role, "init", *config, "--out", str(folder / "client.csr")])


def _initialise_agent(lab: Lab, nf: NfSettings) -> None:
    folder = lab.nf(nf)
    if (folder / PROVISION_FILE).exists():
        return
    output = _command([sys.executable, "-m", "nf_agent", "init", "--config", str(folder / CONFIG_FILE)])
    [fingerprint] = [line.split()[-1] for line in output.splitlines() if line.startswith("transport key")]
    body = {
        "nf_instance_id": nf.nf_instance_id,
        "nf_type": nf.nf_type,
        "fqdns": [nf.fqdn],
        "agent_endpoint": f"{HOST}:{nf.port}",
        "tenant": TENANT,
        "day0_root": DAY0_ROOT,
        "transport_key_sha256": base64.b64encode(bytes.fromhex(fingerprint)).decode(),
    }
    write_atomically(folder / PROVISION_FILE, json.dumps(body, indent=1).encode())


def _issue(lab: Lab) -> None:
    """Short-lived, so they are issued anew whenever a lab is started."""
    hosts = [HOST, ADDRESS]
    with pki.Pki.open(lab.pki) as opened:
        opened.service_files(lab.pki, "oam", "oam", "lab", [])
        for role, name in SERVERS.items():
            opened.service_files(lab.role(role), "server", name, "lab", hosts)
        client_key = pki.load_csr(read_file(lab.role("cmproxy") / "client.csr")).public_key()
        client = opened.service_certificate(client_key, "cm-proxy", "lab", [])  # type: ignore[arg-type]
        write_atomically(lab.role("cmproxy") / "client.pem", pem_chain([client]), 0o644)
        for nf in lab.settings.nfs:
            request = read_file(lab.nf(nf) / "state" / "day0.csr")
            certificate = opened.day0_certificate(request, nf.nf_instance_id)
            write_atomically(lab.nf(nf) / "day0.pem", pem_chain([certificate]), 0o644)


def _command(command: Sequence[str]) -> str:
    """Run to the end; what it refuses is our refusal. Raises NftrustError."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _commands.add(process)
    try:
        output, errors = process.communicate(timeout=COMMAND_SECONDS)
    except BaseException:
        process.kill()
        raise
    finally:
        _commands.discard(process)
    if process.returncode != 0:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        raise NftrustError(_reason_of(last), f"`{' '.join(command[2:4])}` failed: {last[:300]}")
    return output


def _reason_of(refusal: str) -> Reason:
    """Of a command's last line, ``ROLE: REASON: …``."""
    name = refusal.partition(": ")[2].partition(":")[0]
    return Reason.__members__.get(name, Reason.CONFIG_INVALID)


#: Set-up commands under way.
_commands: set[subprocess.Popen[str]] = set()


# Processes


def _start(lab: Lab) -> dict[str, list[int]]:
    known = processes(lab)
    started: dict[str, list[int]] = {}
    for role in SERVERS:
        running = [pid for pid in known.get(role, []) if alive(pid)]
        started[role] = running or [start_server(lab, role)]
    agents = known.get("nfs", [])
    started["nfs"] = [
        agents[index] if index < len(agents) and alive(agents[index]) else start_agent(lab, nf)
        for index, nf in enumerate(lab.settings.nfs)
    ]
    return started


def _spawn(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> int:
    """A process that outlives us, its log in its folder."""
    with (folder / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    _children[process.pid] = process
    _folders[process.pid] = folder
    return process.pid


#: Processes that this one started: they have to be reaped to be seen to end.
_children: dict[int, subprocess.Popen[bytes]] = {}
#: Where each of them belongs.
_folders: dict[int, Path] = {}


def _wait_until_ready(lab: Lab, started: dict[str, list[int]]) -> None:
    folders = [(lab.role(role), started[role][0]) for role in SERVERS]
    folders += [(lab.nf(nf), started["nfs"][index]) for index, nf in enumerate(lab.settings.nfs)]
    deadline = time.monotonic() + START_SECONDS
    for folder, pid in folders:
        while not (folder / READY_FILE).exists():
            if not alive(pid) or time.monotonic() > deadline:
                down(lab)
                raise NftrustError(Reason.PEER_UNAVAILABLE, f"{folder.name} did not start: {_last_line(folder)}")
            time.sleep(0.05)


def _last_line(folder: Path) -> str:
    lines = read_file(folder / LOG_FILE, 1 << 26).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def processes(lab: Lab) -> dict[str, list[int]]:
    """The process ids of ``lab.json``, by role; ``nfs`` in the order of the lab's NFs."""
    path = lab.directory / LAB_FILE
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(read_file(path))["processes"]
    return found


def _live(lab: Lab) -> list[int]:
    """Those that ``lab.json`` names, and those that a start which was interrupted has not written down yet."""
    named = [pid for pids in processes(lab).values() for pid in pids]
    unnamed = [pid for pid, folder in _folders.items() if folder.is_relative_to(lab.directory) and pid not in named]
    return [pid for pid in (*named, *unnamed) if alive(pid)]


def alive(pid: int) -> bool:
    """Whether the process runs and is one of ours."""
    child = _children.get(pid)
    if child is not None:  # its command line in /proc may be empty for a moment after the start
        return child.poll() is None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and b"--config" in command


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
