"""Publishes CRLs: the first one before the first certificate (design decision 13), the next when it is due.

Due is when half of the last one's life is over, or when a certificate was
revoked since: within about a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta

from ca_ra.authority import CRL_PATH, ISSUING_PATH, ROOT_PATH, Authority
from ca_ra.custody import CA_KEY
from ca_ra.model import PublishedCrl
from ca_ra.revocation_store import SqlRevocationStore
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError
from nftrust.http import Request, Response
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.x509.crl import make_crl
from nftrust.x509.path import der

log = logging.getLogger("ca_ra.crl")

#: How often a front looks for revocations that others have stored.
CHECK_SECONDS = 1.0
#: How long a CRL is kept after its end.
KEEP = timedelta(days=1)
SWEEP_LIMIT = 100


class CrlPublisher:
    """Several fronts may run one each: the number decides whose is published.

    Certificates that nobody has confirmed for ``confirm_within`` are revoked on the way (security rule 13).
    """

    def __init__(
        self,
        authority: Authority,
        token: TokenClient,
        store: SqlRevocationStore,
        clock: GuardedClock,
        *,
        lifetime: timedelta,
        confirm_within: timedelta,
    ) -> None:
        self._authority = authority
        self._token = token
        self._store = store
        self._clock = clock
        self._lifetime = lifetime
        self._confirm_within = confirm_within
        self._wake = asyncio.Event()
        #: Number and DER of the CRL that was read last.
        self._content: tuple[int, bytes | None] = (0, None)

    def wake(self) -> None:
        """A certificate was revoked."""
        self._wake.set()

    async def ensure(self) -> None:
        """Sign and publish the next CRL if it is due. Raises NftrustError."""
        latest = await self._store.latest_crl()
        now = self._clock.now()
        fresh = latest is not None and latest.next_update - now > self._lifetime / 2
        if fresh and latest is not None and latest.revocations >= await self._store.last_revocation():
            return
        number = 1 if latest is None else latest.number + 1
        # A certificate that has ended was on at least one CRL after its end (RFC 5280 clause 3.3).
        last, revoked = await self._store.entries(now - self._lifetime)
        issuing = self._authority.issuer.certificate

        def sign() -> bytes:
            key = token_private_key(self._token, CA_KEY)
            assert isinstance(key, TokenEcPrivateKey)
            return make_crl(key, issuing, number, now, self._lifetime, revoked)

        new = PublishedCrl(number, now + self._lifetime, last)
        if await self._store.add_crl(new, await asyncio.to_thread(sign), now, KEEP):
            log.info("CRL published", extra={"number": number, "entries": len(revoked)})

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self._store.revoke_unconfirmed(self._clock.now(), self._confirm_within, SWEEP_LIMIT)
                await self.ensure()
            except NftrustError as error:
                log.warning("CRL not published", extra={"reason": error.reason.name})
            except Exception:
                log.exception("CRL not published")  # whatever it is: relying parties need the next one
            with contextlib.suppress(TimeoutError):
                # Not wait_for: that of Python 3.11 forgets a cancellation which meets the wake-up.
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()

    async def _latest_content(self) -> bytes | None:
        """The latest CRL, DER; read once for all who ask for it: it may be megabytes."""
        latest = await self._store.latest_crl()
        if latest is None:
            return None
        number, content = self._content
        if number != latest.number:
            content = await self._store.crl_content(latest.number)
            self._content = latest.number, content
        return content

    async def handle(self, request: Request) -> Response:
        """GET of the CRL and the CA certificates, as CRLDP and AIA name them."""
        if request.method not in ("GET", "HEAD"):
            return Response(405)
        if request.path == CRL_PATH:
            content = await self._latest_content()
            if content is not None:
                return Response(200, content, "application/pkix-crl")
        certificates = {ISSUING_PATH: self._authority.chain[0], ROOT_PATH: self._authority.chain[-1]}
        if request.path in certificates:
            return Response(200, der(certificates[request.path]), "application/pkix-cert")
        return Response(404)
