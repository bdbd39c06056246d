"""A network function that brings its own NF agent.

    python examples/embed/nf.py agent.toml

`agent.toml` is the agent's configuration (docs/configuration.md); `nf-agent
init --config agent.toml` must have run once, at instantiation. The program
waits until the CM proxy has delivered and the CA/RA has issued, then uses the
certificate and its key, which never leaves the token.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nf_agent import AgentConfig, Credential, NfAgent
from nftrust.errors import NftrustError

log = logging.getLogger("nf")


def take_into_use(credential: Credential) -> None:
    """Where a network function would hand the new certificate to its TLS stack.

    Called from the event loop with every new certificate: keep it short.
    """
    log.info("certificate %x", credential.certificate.serial_number)
    log.info("valid until %s", credential.certificate.not_valid_after_utc)
    log.info("key         %s", credential.pkcs11_uri)


def prove_possession(credential: Credential) -> None:
    """Sign with the key in the token, verify with the certificate."""
    message = b"whatever the SBA asks for"
    signature = credential.private_key.sign(message, ec.ECDSA(hashes.SHA256()))
    public_key = credential.certificate.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    public_key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    log.info("signed in the token, verified by the certificate")


async def serve(path: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Starts the agent's listener and its worker; both end with the block.
    async with NfAgent.open(AgentConfig.from_file(path)) as agent:
        agent.on_change(take_into_use)
        log.info("the agent is %s", agent.state.phase)
        waiting = asyncio.create_task(agent.credential())  # returns at once where a certificate is held
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            # Token work blocks: keep it off the event loop.
            await asyncio.to_thread(prove_possession, waiting.result())
        waiting.cancel()
        await stopped


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        asyncio.run(serve(Path(sys.argv[1])))
    except NftrustError as error:
        log.error("%s: %s %s", error.reason.name, error.message, error.reason.remedy)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
