"""Publishes the CRL: an empty signed one exists from the first certificate on (design decision 13)."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from ca_ra.authority import CRL_PATH, ISSUING_PATH, ROOT_PATH, Authority
from ca_ra.custody import CA_KEY
from ca_ra.issuance_store import SqlIssuanceStore
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError
from nftrust.http import Request, Response
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.x509.authority import make_crl
from nftrust.x509.path import der

log = logging.getLogger("ca_ra.crl")
CHECK_SECONDS = 30.0


class CrlPublisher:
    """Keeps a CRL that is good for at least half its lifetime; several fronts may run one each."""

    def __init__(
        self,
        authority: Authority,
        token: TokenClient,
        store: SqlIssuanceStore,
        clock: GuardedClock,
        lifetime: timedelta,
    ) -> None:
        self._authority = authority
        self._token = token
        self._store = store
        self._clock = clock
        self._lifetime = lifetime

    async def ensure(self) -> None:
        """Sign and publish the next CRL if the last one is half through. Raises NftrustError."""
        latest = await self._store.latest_crl()
        now = self._clock.now()
        if latest is not None and latest[2] - now > self._lifetime / 2:
            return
        number = 1 if latest is None else latest[0] + 1
        issuing = self._authority.issuer.certificate

        def sign() -> bytes:
            key = token_private_key(self._token, CA_KEY)
            assert isinstance(key, TokenEcPrivateKey)
            return make_crl(key, issuing, number, now, self._lifetime)

        encoded = await asyncio.to_thread(sign)
        if await self._store.add_crl(number, encoded, now, now + self._lifetime):
            log.info("CRL published", extra={"number": number})

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.ensure()
            except NftrustError as error:
                log.warning("CRL not published", extra={"reason": error.reason.name})
            await asyncio.sleep(CHECK_SECONDS)

    async def handle(self, request: Request) -> Response:
        """GET of the CRL and the CA certificates, as CRLDP and AIA name them."""
        if request.method not in ("GET", "HEAD"):
            return Response(405)
        if request.path == CRL_PATH:
            latest = await self._store.latest_crl()
            if latest is not None:
                return Response(200, latest[1], "application/pkix-crl")
        certificates = {ISSUING_PATH: self._authority.chain[0], ROOT_PATH: self._authority.chain[-1]}
        if request.path in certificates:
            return Response(200, der(certificates[request.path]), "application/pkix-cert")
        return Response(404)
