"""Publishes CRLs: the first one before the first certificate (design decision 13), the next when it is due.

Due is when half of the last one's life is over, or when a certificate was
revoked since: within about a second. Each CA of a rollover has its own, until
its own end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta

from ca_ra.authority import Authorities, Authority
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

    On the way certificates that nobody has confirmed for ``confirm_within`` are revoked (security rule 13), and the
    front notices what a rollover has changed.
    """

    def __init__(
        self,
        authorities: Authorities,
        token: TokenClient,
        store: SqlRevocationStore,
        clock: GuardedClock,
        *,
        lifetime: timedelta,
        confirm_within: timedelta,
    ) -> None:
        self._authorities = authorities
        self._token = token
        self._store = store
        self._clock = clock
        self._lifetime = lifetime
        self._confirm_within = confirm_within
        self._wake = asyncio.Event()
        #: Number and DER of each CA's CRL that was read last.
        self._contents: dict[int, tuple[int, bytes | None]] = {}

    def wake(self) -> None:
        """A certificate was revoked."""
        self._wake.set()

    async def ensure(self) -> None:
        """Sign and publish each CA's next CRL if it is due. Raises NftrustError of the first that fails, after all."""
        failures = []
        for authority in self._authorities.publishing(self._clock.now()):
            try:
                await self._ensure(authority)
            except NftrustError as error:  # one CA's key is no reason to let another's CRL run out
                failures.append(error)
        if failures:
            raise failures[0]

    async def _ensure(self, authority: Authority) -> None:
        generation = authority.generation
        latest = await self._store.latest_crl(generation)
        now = self._clock.now()
        fresh = latest is not None and latest.next_update - now > self._lifetime / 2
        if fresh and latest is not None and latest.revocations >= await self._store.last_revocation(generation):
            return
        number = 1 if latest is None else latest.number + 1
        # A certificate that has ended was on at least one CRL after its end (RFC 5280 clause 3.3).
        last, revoked = await self._store.entries(generation, now - self._lifetime)
        issuing = authority.issuer.certificate

        def sign() -> bytes:
            key = token_private_key(self._token, authority.labels.ca)
            assert isinstance(key, TokenEcPrivateKey)
            return make_crl(key, issuing, number, now, self._lifetime, revoked)

        new = PublishedCrl(number, now + self._lifetime, last)
        if await self._store.add_crl(generation, new, await asyncio.to_thread(sign), now, KEEP):
            log.info("CRL published", extra={"generation": generation, "number": number, "entries": len(revoked)})

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self._authorities.refresh()
                await self._store.revoke_unconfirmed(self._clock.now(), self._confirm_within, SWEEP_LIMIT)
                await self.ensure()
            except NftrustError as error:
                log.warning("CRL not published", extra={"reason": error.reason.name})
            except Exception:
                log.exception("CRL not published")  # whatever it is: relying parties need the next one
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()

    async def _latest_content(self, generation: int) -> bytes | None:
        """A CA's latest CRL, DER; read once for all who ask for it: it may be megabytes."""
        latest = await self._store.latest_crl(generation)
        if latest is None:
            return None
        number, content = self._contents.get(generation, (0, None))
        if number != latest.number:
            content = await self._store.crl_content(generation, latest.number)
            self._contents[generation] = latest.number, content
        return content

    async def handle(self, request: Request) -> Response:
        """GET of the CRLs and the CA certificates, as CRLDP and AIA name them."""
        if request.method not in ("GET", "HEAD"):
            return Response(405)
        for known in self._authorities.known:
            authority, paths = known.authority, known.authority.paths
            if request.path == paths.crl:
                content = await self._latest_content(authority.generation)
                return Response(404) if content is None else Response(200, content, "application/pkix-crl")
            certificates = {paths.issuing: authority.chain[0], paths.root: authority.chain[-1]}
            if request.path in certificates:
                return Response(200, der(certificates[request.path]), "application/pkix-cert")
        return Response(404)
