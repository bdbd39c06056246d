"""Where the CA/RA's time goes while it issues: CPU of each thread, shared out by samples of its stack.

The kernel says how much CPU each thread took; py-spy, from outside and 100
times a second, what it was doing. It reads without stopping the process, which
the supervisor would take for a hang; the few stacks that changed while they
were read are left out. Threads without Python are gRPC's own. The
token worker is a process and needs no samples.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import issuance, labs, machine
from bench.figures import Run, Share, per
from bench.layers import LAYERS, NATIVE, OTHER, WORKER, layer_of
from nftrust.lab import control
from nftrust.lab.layout import Lab

SAMPLES_PER_SECOND = 100
STOP_SECONDS = 60.0
_THREAD = re.compile(r"thread \((\d+)\)")
_FILE = re.compile(r"\(([^()]+):\d+\)$")

#: Samples by thread (its number in the kernel) and layer.
Samples = dict[int, Counter[str]]


def measure(run: Run, lab: Lab) -> None:
    """Milliseconds of CPU per certificate and layer."""
    count, concurrency = max(1, run.settings["certificates"] // 2), run.settings["concurrency"]
    _, proofs = asyncio.run(issuance.register(lab, count, concurrency))
    front, worker = _processes(lab)
    output = lab.directory / "samples"
    try:
        with _sampled(front, output):
            before = machine.threads(front), machine.usage([worker])
            asyncio.run(issuance.redeem(lab, proofs, concurrency))
            after = machine.threads(front), machine.usage([worker])
    except RuntimeError as error:
        labs.say(f"not sampled: {error}")
        return
    used = {thread: cpu - before[0].get(thread, 0.0) for thread, cpu in after[0].items()}
    seconds = share_out(used, read_samples(output.read_text()))
    seconds[WORKER.name] = (after[1] - before[1]).cpu
    shares = [
        Share(layer=layer.name, milliseconds=per(seconds[layer.name], count), removal=layer.removal)
        for layer in (WORKER, NATIVE, *LAYERS, OTHER)
        if seconds[layer.name] > 0
    ]
    run.shares = sorted(shares, key=lambda share: -share.milliseconds)


def read_samples(text: str) -> Samples:
    """py-spy's raw form: ``thread (7): name;function (file:line);… count``, the innermost frame last."""
    found: Samples = {}
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        number = _THREAD.match(thread)
        if number is None:
            continue
        files = [match[1] for frame in frames if (match := _FILE.search(frame))]
        found.setdefault(int(number[1]), Counter())[layer_of(files).name] += int(count)
    return found


def share_out(used: dict[int, float], samples: Samples) -> defaultdict[str, float]:
    """CPU seconds by layer: each thread's own, in the proportion of its samples."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for thread, cpu in used.items():
        seen = samples.get(thread)
        if not seen:
            seconds[NATIVE.name] += cpu
            continue
        for layer, count in seen.items():
            seconds[layer] += cpu * count / seen.total()
    return seconds


def _processes(lab: Lab) -> tuple[int, int]:
    """The front and its token worker."""
    tree = machine.tree(control.processes(lab)["ca_ra"][0])
    front, worker = (
        next(pid for pid in tree if mark in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        for mark in (b"front", b"nftrust.pkcs11.worker")
    )
    return front, worker


@contextmanager
def _sampled(pid: int, output: Path) -> Iterator[None]:
    """py-spy looks during the block. Raises RuntimeError where it may not."""
    sampler = Path(sys.executable).with_name("py-spy")
    rate = ["--rate", str(SAMPLES_PER_SECOND), "--duration", "unlimited"]
    form = ["--nonblocking", "--format", "raw", "--threads", "--full-filenames", "--output", str(output)]
    try:
        process = subprocess.Popen(
            [sampler, "record", "--pid", str(pid), *rate, *form],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise RuntimeError(f"py-spy: {error.strerror}") from None
    try:
        time.sleep(1.0)  # it says nothing when it has begun
        if process.poll() is not None:
            assert process.stderr is not None
            raise RuntimeError((process.stderr.read().strip().splitlines() or ["py-spy ended"])[0])
        yield
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
