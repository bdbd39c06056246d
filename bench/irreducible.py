"""What a certificate costs at least: the token's signature, the check of the CSR, the IAK's unwrapping and HMAC.

By the worker that the CA/RA uses, in the batches in which it uses it: many
redemptions at once, each proved and then signed for.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

from cryptography import x509

from bench import load, machine
from bench.figures import Figure, Run, per
from nftrust.lab.layout import HOME_DOMAIN
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import (
    GenerateKeyPair,
    GenerateSecret,
    MintIak,
    Operation,
    ProveCustody,
    SignDigest,
    VerifyIakMac,
)
from softhsm import create_token

KEY, KEK = "signing", "kek"
#: About the length of a proof: a JWS that holds a CSR.
PROOF_BYTES = 1200


def measure(run: Run) -> None:
    """CPU of each part, and their sum."""
    count = 4 * run.settings["certificates"]
    with tempfile.TemporaryDirectory(prefix="nftrust-bench-") as folder:
        client = TokenClient.worker(create_token(Path(folder) / "token", "bench"))
        try:
            client.ready()
            sign, verify = _operations(client)
            concurrency = run.settings["concurrency"]
            signature = per(_cpu(client, sign, count, concurrency), count)
            proof = per(_cpu(client, verify, count, concurrency), count)
        finally:
            client.close()
    csr = per(_csr_check(count), count)
    for name, value, meaning in (
        ("signature", signature, "P-256 signature in the token"),
        ("proof", proof, "IAK unwrapped and its HMAC, in the token"),
        ("csr", csr, "CSR parsed and its signature verified"),
        ("cpu", signature + proof + csr, "the irreducible cost of a certificate: their sum"),
    ):
        run.figures.append(Figure(name=f"irreducible.{name}", value=value, unit="ms CPU", meaning=meaning))


def _operations(client: TokenClient) -> tuple[Operation[bytes], Operation[bool]]:
    client.call(ProveCustody())
    client.call(GenerateKeyPair(KEY, "ec-p256"))
    client.call(GenerateSecret(KEK, "kek"))
    minted, data = client.call(MintIak(KEK, None)), secrets.token_bytes(PROOF_BYTES)
    mac = hmac.digest(minted.delivery, data, hashlib.sha256)
    return SignDigest(KEY, "ecdsa", "sha256", bytes(32)), VerifyIakMac(KEK, minted.vault_blob, data, mac)


def _cpu(client: TokenClient, operation: Operation[object], count: int, concurrency: int) -> float:
    """CPU seconds of the worker for that many of them."""
    assert client.worker_pid is not None

    async def go() -> None:
        results = await load.at_once([partial(client.run, operation)] * count, concurrency)
        assert all(results)

    before = machine.usage([client.worker_pid])
    asyncio.run(go())
    return (machine.usage([client.worker_pid]) - before).cpu


def _csr_check(count: int) -> float:
    csr = load.make_csr(str(uuid.uuid4()), f"amf1.amf.{HOME_DOMAIN}")
    started = time.process_time()
    for _ in range(count):
        assert x509.load_der_x509_csr(csr).is_signature_valid
    return time.process_time() - started
