"""A network function with its NF agent inside: `python nf.py agent.toml`, after `nf-agent init --config agent.toml`."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nf_agent import AgentConfig, Credential, NfAgent


def use(credential: Credential) -> None:
    """Where an NF hands the certificate to its TLS stack. Here: signed in the token, verified by the certificate."""
    signature = credential.private_key.sign(b"hello", ec.ECDSA(hashes.SHA256()))
    credential.certificate.public_key().verify(signature, b"hello", ec.ECDSA(hashes.SHA256()))
    print(f"certificate {credential.certificate.serial_number:x}, key {credential.pkcs11_uri}", flush=True)


async def main() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    async with NfAgent.open(AgentConfig.from_file(Path(sys.argv[1]))) as agent:  # serves the CM proxy, enrols
        credentials = asyncio.Queue()
        agent.on_change(credentials.put_nowait)  # each new one, from the event loop
        if agent.state.current is not None:
            credentials.put_nowait(await agent.credential())  # the one it has
        while True:
            await asyncio.to_thread(use, await credentials.get())  # token work blocks: off the event loop


with contextlib.suppress(asyncio.CancelledError):
    asyncio.run(main())
