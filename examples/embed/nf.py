"""A network function with its NF agent inside: `python nf.py agent.toml`, after `nf-agent init --config agent.toml`."""

import asyncio
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nf_agent import AgentConfig, Credential, NfAgent


async def use(credential: Credential) -> None:
    """Where an NF hands the certificate to its TLS stack. Here: signed in the token, verified by the certificate."""
    algorithm = ec.ECDSA(hashes.SHA256())
    signature = await asyncio.to_thread(credential.private_key.sign, b"hello", algorithm)  # token work blocks
    credential.certificate.public_key().verify(signature, b"hello", algorithm)
    print(f"certificate {credential.certificate.serial_number:x}, key {credential.pkcs11_uri}", flush=True)


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with NfAgent.open(AgentConfig.from_file(Path(sys.argv[1]))) as agent:  # serves the CM proxy, enrols, renews
        agent.on_change(use)  # with the certificate it has, and with each new one
        await stop.wait()


asyncio.run(main())
