"""The CM proxy's composition root: everything is made and wired here, nothing elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial

import grpc
from cryptography import x509

from cmproxy import convert
from cmproxy.adapters.ca_ra import GrpcCaRaPort
from cmproxy.adapters.diagnosis import PeerProbes
from cmproxy.adapters.foreign import BINDING_KEY, ESCROW_KEY, ForeignCaRaPort, ForeignProfile, RoutedCaRaPort, seal
from cmproxy.adapters.nf import GrpcNfPort
from cmproxy.adapters.verifier import GrpcVerifierPort
from cmproxy.changes import Changes
from cmproxy.config import CmProxyConfig, ForeignCaRaConfig, PeerConfig
from cmproxy.lease_store import SqlEnrolmentLease
from cmproxy.machine import RetryPolicy
from cmproxy.model import NetworkFunction, State
from cmproxy.ports import CaRaPort
from cmproxy.provisioning import Provisioner, ProvisioningPolicy
from cmproxy.recovery import Recoverer
from cmproxy.recovery_store import SqlRecoveries
from cmproxy.registrar import load_registrar
from cmproxy.renewal import RenewalRequester
from cmproxy.retirement import Retirer
from cmproxy.retirement_store import SqlRetirements
from cmproxy.runner import Runner, RunnerPolicy
from cmproxy.service import ProvisioningServicer
from cmproxy.store import SqlProxyStore
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.cmproxy.v1.provisioning_service_pb2_grpc import add_ProvisioningServiceServicer_to_server
from nftrust.clock import GuardedClock, SystemClock
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file
from nftrust.identity import FqdnRules, Scope
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.pkcs11.operations import GenerateSecret, ListKeys
from nftrust.role import audit_service, diagnosis_service, metrics
from nftrust.role.health import Served
from nftrust.rpc.authz import AuthorisationTable, infrastructure
from nftrust.rpc.channel import SignerIdentity, open_channel
from nftrust.rpc.peer import Access, current_peer
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.storage import Store
from nftrust.storage.migrate import verify

CLIENT_KEY = "cm-proxy-tls"
_OAM = frozenset({"oam"})
_SERVICE = "/nftrust.api.cmproxy.v1.ProvisioningService/"
TABLE: AuthorisationTable = {
    **{_SERVICE + name: _OAM for name in pb.DESCRIPTOR.services_by_name["ProvisioningService"].methods_by_name},
    audit_service.METHOD: _OAM,
    diagnosis_service.METHOD: _OAM,
    **infrastructure(_OAM),
}


@contextlib.asynccontextmanager
async def serving(config: CmProxyConfig, *, reuse_port: bool) -> AsyncIterator[Served]:
    """Serve and drive enrolments until the end of the block, then drain. Raises NftrustError as the CA/RA's does."""
    verify(config.store, "cmproxy")
    async with contextlib.AsyncExitStack() as stack:
        clock = GuardedClock(SystemClock())
        token = TokenClient.worker(config.token, observe=metrics.token_batch)
        stack.push_async_callback(asyncio.to_thread, token.close)
        identity = await asyncio.to_thread(_identity, config, token)
        store = Store.open(config.store, clock, observe=metrics.commit)
        stack.push_async_callback(asyncio.to_thread, store.close)
        changes, lease = Changes(), timedelta(seconds=config.runner.lease_seconds)
        proxy_store = SqlProxyStore(store, lease, changes)
        nfs = _nf_port(config, identity, clock)
        ca_ra = _ca_ra(config, identity, token, clock, stack)
        leases = SqlEnrolmentLease(store, lease, changes, clock)
        runner = _runner(config, identity, nfs, ca_ra, leases, clock, stack)
        retirer = Retirer(SqlRetirements(store, clock), ca_ra, _retry(config))
        interval = timedelta(seconds=config.runner.recovery_seconds)
        recoverer = Recoverer(SqlRecoveries(store, proxy_store, clock), ca_ra, clock, interval, runner.wake)
        provisioner = Provisioner(_policy(config), proxy_store, clock, partial(seal, token))
        renewals = RenewalRequester(provisioner.get, nfs, store)
        probes = PeerProbes(config, identity, nfs, _finder(provisioner))
        server = RpcServer(
            config.management,
            [
                ServiceBinding(
                    add_ProvisioningServiceServicer_to_server,
                    ProvisioningServicer(provisioner, proxy_store, changes, clock, runner, retirer.wake, renewals),
                    pb.DESCRIPTOR.services_by_name["ProvisioningService"],
                ),
                audit_service.audit_binding(store),
                diagnosis_service.diagnosis_binding(
                    {**diagnosis_service.own_probes(store, clock, token), **probes.by_subject()},
                    probes.network_function,
                ),
            ],
            TABLE,
            access=Access(config.access_file),
            deployment=config.deployment,
            reuse_port=reuse_port,
            observe=metrics.call,
        )
        await server.start()
        stack.push_async_callback(server.stop)
        for work in (runner.run(), retirer.run(), recoverer.run(), changes.follow(proxy_store.newer)):
            stack.push_async_callback(_end, asyncio.create_task(work))
        certificates = {"tls management": config.management.tls.certificate, "tls client": config.client_certificate}
        yield Served([server], store, clock, token, certificates, partial(_measure, proxy_store))


async def _measure(store: SqlProxyStore) -> None:
    counts = await store.count_by_state()
    for state in State:
        metrics.ENROLMENTS.labels(state.value).set(counts.get(state, 0))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _identity(config: CmProxyConfig, token: TokenClient) -> SignerIdentity:
    """The TLS client identity, its key in the token. Raises NftrustError(KEY_MISSING)."""
    token.ready()
    key = token_private_key(token, CLIENT_KEY)
    chain = read_file(config.client_certificate)
    if x509.load_pem_x509_certificate(chain).public_key() != key.public_key():
        raise NftrustError(Reason.KEY_MISSING, "client_certificate is not for the key in the token")
    return SignerIdentity(chain, key, lambda: token.available)


def _channel(peer: PeerConfig, identity: SignerIdentity, stack: contextlib.AsyncExitStack) -> grpc.aio.Channel:
    channel = open_channel(peer.target, trust_roots=read_file(peer.trust_anchors), identity=identity)
    stack.push_async_callback(channel.close)
    return channel


def _runner(
    config: CmProxyConfig,
    identity: SignerIdentity,
    nfs: GrpcNfPort,
    ca_ra: CaRaPort,
    store: SqlEnrolmentLease,
    clock: GuardedClock,
    stack: contextlib.AsyncExitStack,
) -> Runner:
    settings = config.runner
    retry = _retry(config)
    lease = timedelta(seconds=settings.lease_seconds)
    verifier = None if config.verifier is None else _channel(config.verifier, identity, stack)
    verifier_timeout = 0.0 if config.verifier is None else config.verifier.timeout_seconds
    return Runner(
        RunnerPolicy(owner=settings.instance, lease=lease, retry=retry, concurrency=settings.concurrency),
        store,
        nfs,
        ca_ra,
        GrpcVerifierPort(verifier, clock, verifier_timeout),
        clock,
        metrics.EnrolmentMetrics(),
    )


def _retry(config: CmProxyConfig) -> RetryPolicy:
    settings = config.runner
    return RetryPolicy(
        cap=timedelta(seconds=settings.retry_cap_seconds),
        lifetime=timedelta(seconds=settings.enrolment_lifetime_seconds),
    )


def _ca_ra(
    config: CmProxyConfig,
    identity: SignerIdentity,
    token: TokenClient,
    clock: GuardedClock,
    stack: contextlib.AsyncExitStack,
) -> CaRaPort:
    own = GrpcCaRaPort(
        _channel(config.ca_ra, identity, stack),
        x509.load_pem_x509_certificates(read_file(config.ca_ra.trust_anchor)),
        clock,
        config.ca_ra.timeout_seconds,
    )
    foreign = config.foreign_ca_ra
    if foreign is None:
        return own
    return RoutedCaRaPort(own, _foreign_ca_ra(foreign, config, token, clock), frozenset(foreign.certificate_profiles))


def _foreign_ca_ra(
    foreign: ForeignCaRaConfig, config: CmProxyConfig, token: TokenClient, clock: GuardedClock
) -> ForeignCaRaPort:
    """Makes the key for foreign secrets where it is missing. Raises NftrustError(TOKEN_CUSTODY_UNPROVEN)."""
    key = token_private_key(token, CLIENT_KEY)
    if not isinstance(key, TokenEcPrivateKey):
        raise NftrustError(Reason.KEY_MISSING, f"{CLIENT_KEY} is not an EC key")
    present = {known.label for known in token.call(ListKeys())}
    if ESCROW_KEY not in present:
        token.call(GenerateSecret(ESCROW_KEY, "escrow"))
    if BINDING_KEY not in present:
        token.call(GenerateSecret(BINDING_KEY, "mac"))
    profile = ForeignProfile(
        foreign.endpoints,
        x509.load_pem_x509_certificates(read_file(foreign.ca_certificates)),
        foreign.mac_algorithm,
        timedelta(seconds=foreign.credential_lifetime_seconds),
    )
    registrar = None if foreign.registrar is None else load_registrar(foreign.registrar, foreign.settings)
    signer = x509.load_pem_x509_certificates(read_file(config.client_certificate))
    return ForeignCaRaPort(profile, registrar, token, key, signer, clock)


def _nf_port(config: CmProxyConfig, identity: SignerIdentity, clock: GuardedClock) -> GrpcNfPort:
    roots = {root.name: x509.load_pem_x509_certificate(read_file(root.certificate)) for root in config.day0_roots}
    return GrpcNfPort(identity, roots, config.home_domain, clock, config.runner.nf_timeout_seconds)


def _finder(provisioner: Provisioner) -> Callable[[str], Awaitable[NetworkFunction]]:
    """A network function by resource name, as far as the caller of the RPC may see it."""

    async def find(name: str) -> NetworkFunction:
        return await provisioner.get(convert.nf_name(name), current_peer().scope)

    return find


def _policy(config: CmProxyConfig) -> ProvisioningPolicy:
    forms = {entry.nf_type: entry.forms for entry in config.fqdn_forms}
    foreign = config.foreign_ca_ra
    return ProvisioningPolicy(
        fqdns=FqdnRules(config.home_domain, forms),
        day0_roots={root.name: Scope((root.tenant,), root.nf_types, root.fqdn_suffixes) for root in config.day0_roots},
        delivery_modes=frozenset(config.delivery_modes),
        shared_fqdn_profiles=frozenset(config.shared_fqdn_profiles),
        foreign_profiles=frozenset(() if foreign is None else foreign.certificate_profiles),
        by_hand=foreign is not None and foreign.registrar is None,
    )
