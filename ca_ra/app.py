"""The CA/RA's composition root: everything is made and wired here, nothing elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial

from cryptography import x509

from ca_ra.authority import OCSP_PATH, Authorities, Authority, StoredCa
from ca_ra.authority_store import SqlAuthorityStore
from ca_ra.config import CaRaConfig
from ca_ra.crl import CrlPublisher
from ca_ra.custody import ROW_MAC_KEY, VAULT_KEK, Custody
from ca_ra.issuance_store import SqlIssuanceStore
from ca_ra.ocsp import OcspService
from ca_ra.pace import RenewalPace
from ca_ra.registration import Day0Root, Registrar, RegistrationPolicy
from ca_ra.registration_store import SqlRegistrationStore
from ca_ra.renewal import RenewalEngine
from ca_ra.renewal_store import SqlRenewalStore
from ca_ra.retirement_store import SqlRetirementStore
from ca_ra.revocation_store import SqlRevocationStore
from ca_ra.service import CertificateServicer, EnrolmentServicer, RegistrationServicer
from nftrust.api.ca_ra.v1 import (
    certificate_service_pb2,
    certificate_service_pb2_grpc,
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
    registration_service_pb2,
    registration_service_pb2_grpc,
)
from nftrust.clock import GuardedClock, SystemClock
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file
from nftrust.http import Handler, HttpServer, Request, Response
from nftrust.identity import FqdnRules, Scope
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import token_private_key
from nftrust.pkcs11.operations import ListKeys, ProveCustody
from nftrust.role import audit_service, diagnosis_service, metrics
from nftrust.role.health import Served
from nftrust.rpc.authz import ANYONE, AuthorisationTable, infrastructure
from nftrust.rpc.peer import Access
from nftrust.rpc.ratelimit import RateLimiter
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.storage import Store
from nftrust.storage.migrate import verify
from nftrust.x509.profile import CertificateProfile

_PROXY_OAM = frozenset({"cm-proxy", "oam"})
_OAM = frozenset({"oam"})
_REGISTRATION = "/nftrust.api.ca_ra.v1.RegistrationService/"
_CERTIFICATE = "/nftrust.api.ca_ra.v1.CertificateService/"
_ENROLMENT = "/nftrust.api.ca_ra.v1.EnrolmentService/"
MANAGEMENT_TABLE: AuthorisationTable = {
    _REGISTRATION + "RegisterEndEntity": _PROXY_OAM,
    _REGISTRATION + "GetRegistration": _PROXY_OAM,
    _REGISTRATION + "ListRegistrations": _PROXY_OAM,
    _REGISTRATION + "RevokeRegistration": _PROXY_OAM,
    _REGISTRATION + "ReinstateEndEntity": _OAM,
    _REGISTRATION + "RetireEndEntity": _PROXY_OAM,
    _CERTIFICATE + "GetCertificate": _PROXY_OAM,
    _CERTIFICATE + "ListCertificates": _PROXY_OAM,
    _CERTIFICATE + "RevokeCertificate": _OAM,
    _CERTIFICATE + "GetCertificateAuthority": _PROXY_OAM,
    audit_service.METHOD: _OAM,
    diagnosis_service.METHOD: _OAM,
    **infrastructure(_PROXY_OAM),
}
ENROLMENT_TABLE: AuthorisationTable = {
    _ENROLMENT + "EnrolCertificate": ANYONE,
    _ENROLMENT + "RenewCertificate": ANYONE,
    _ENROLMENT + "ConfirmCertificate": ANYONE,
    _ENROLMENT + "GetTrustBundle": ANYONE,
    **infrastructure(ANYONE),
}
#: Failed proofs per source, and per source and known reference.
FAILED_PROOFS_PER_SECOND, FAILED_PROOFS_BURST = 20.0, 200.0


@contextlib.asynccontextmanager
async def serving(config: CaRaConfig, *, reuse_port: bool) -> AsyncIterator[Served]:
    """Serve until the end of the block, then drain.

    Raises NftrustError: CONFIG_INVALID, TOKEN_MISSING, PIN_INCORRECT, TOKEN_CUSTODY_UNPROVEN,
    KEY_MISSING, SCHEMA_OUTDATED, PORT_IN_USE, LAB_CREDENTIAL, STORAGE_UNAVAILABLE.
    """
    verify(config.store, "ca_ra")
    async with contextlib.AsyncExitStack() as stack:
        clock = GuardedClock(SystemClock())
        store = Store.open(config.store, clock, observe=metrics.commit)
        stack.push_async_callback(asyncio.to_thread, store.close)
        authorities = Authorities(SqlAuthorityStore(store), partial(load_authority, config))
        await authorities.refresh()
        token = TokenClient.worker(config.token, observe=metrics.token_batch)
        stack.push_async_callback(asyncio.to_thread, token.close)
        await asyncio.to_thread(_check_token, token, [known.authority for known in authorities.trusted])
        lifetime = timedelta(hours=config.ca.crl_lifetime_hours)
        revocations = SqlRevocationStore(store)
        publisher = CrlPublisher(
            authorities,
            token,
            revocations,
            clock,
            lifetime=lifetime,
            confirm_within=timedelta(minutes=config.registration.confirm_within_minutes),
        )
        ocsp = OcspService(authorities, token, revocations, clock)
        await publisher.ensure()
        publishing = asyncio.create_task(publisher.run())
        stack.callback(publishing.cancel)
        http = HttpServer(config.http, _by_path(publisher, ocsp), reuse_port=reuse_port)
        await http.start()
        stack.push_async_callback(http.stop)
        servers = _servers(config, authorities, token, store, clock, publisher, reuse_port)
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop)
        certificates = {
            "tls management": config.management.tls.certificate,
            "tls enrolment": config.enrolment.tls.certificate,
        }
        measure = partial(_measure, SqlIssuanceStore(store), revocations, authorities, clock)
        yield Served(servers, store, clock, token, certificates, measure)


def _servers(
    config: CaRaConfig,
    authorities: Authorities,
    token: TokenClient,
    store: Store,
    clock: GuardedClock,
    publisher: CrlPublisher,
    reuse_port: bool,
) -> list[RpcServer]:
    custody = Custody(token)
    policy = load_policy(config)
    registrations, issuance = SqlRegistrationStore(store), SqlIssuanceStore(store)
    registrar = Registrar(policy, authorities, custody, registrations, clock)
    failures = RateLimiter(rate=FAILED_PROOFS_PER_SECOND, burst=FAILED_PROOFS_BURST)
    renewals = SqlRenewalStore(store)
    engine = RenewalEngine(authorities, policy.profiles, custody, issuance, renewals, clock, failures, _pace(config))
    management = RpcServer(
        config.management,
        [
            ServiceBinding(
                registration_service_pb2_grpc.add_RegistrationServiceServicer_to_server,
                RegistrationServicer(registrar, registrations, SqlRetirementStore(store), clock, publisher.wake),
                registration_service_pb2.DESCRIPTOR.services_by_name["RegistrationService"],
            ),
            ServiceBinding(
                certificate_service_pb2_grpc.add_CertificateServiceServicer_to_server,
                CertificateServicer(
                    authorities,
                    issuance,
                    SqlRevocationStore(store),
                    publisher.wake,
                    home_domain=config.home_domain,
                    endpoints=policy.endpoints,
                    tls_trust_anchors=policy.tls_trust_anchors,
                ),
                certificate_service_pb2.DESCRIPTOR.services_by_name["CertificateService"],
            ),
            audit_service.audit_binding(store),
            diagnosis_service.diagnosis_binding(diagnosis_service.own_probes(store, clock, token)),
        ],
        MANAGEMENT_TABLE,
        access=Access(config.access_file),
        deployment=config.deployment,
        reuse_port=reuse_port,
        observe=metrics.call,
    )
    enrolment = RpcServer(
        config.enrolment,
        [
            ServiceBinding(
                enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server,
                EnrolmentServicer(engine),
                enrolment_service_pb2.DESCRIPTOR.services_by_name["EnrolmentService"],
            )
        ],
        ENROLMENT_TABLE,
        deployment=config.deployment,
        reuse_port=reuse_port,
        # Outside the lab reflection needs an authenticated peer (security rule 17).
        reflection=config.deployment == "lab",
        observe=metrics.call,
    )
    return [management, enrolment]


def _pace(config: CaRaConfig) -> RenewalPace | None:
    """This front's share of the renewals that there may be in an hour."""
    most = config.registration.renewals_per_hour
    if most is None:
        return None
    return RenewalPace(most / config.fronts)


def _by_path(publisher: CrlPublisher, ocsp: OcspService) -> Handler:
    async def handle(request: Request) -> Response:
        status = request.path == OCSP_PATH or request.path.startswith(OCSP_PATH + "/")
        return await (ocsp.handle(request) if status else publisher.handle(request))

    return handle


async def _measure(
    store: SqlIssuanceStore, revocations: SqlRevocationStore, authorities: Authorities, clock: GuardedClock
) -> None:
    active = authorities.active
    metrics.not_after("ca", active.chain[0].not_valid_after_utc)
    metrics.not_after("response", active.response_certificate.not_valid_after_utc)
    for left, count in (await store.count_by_time_left(clock.now())).items():
        metrics.NF_CERTIFICATES.labels(left).set(count)
    metrics.SUSPENDED.set(await store.count_suspended())
    published = [await revocations.latest_crl(each.generation) for each in authorities.publishing(clock.now())]
    if published and all(published):
        metrics.CRL_NEXT_UPDATE.set(min(crl.next_update.timestamp() for crl in published if crl is not None))


def load_authority(config: CaRaConfig, stored: StoredCa) -> Authority:
    """A CA's certificates; those of the first generation from their files. Raises NftrustError(CONFIG_INVALID)."""
    try:
        if stored.chain is None or stored.response_certificate is None:
            chain = x509.load_pem_x509_certificates(read_file(config.ca.chain))
            response = x509.load_pem_x509_certificate(read_file(config.ca.response_certificate))
        else:
            chain = x509.load_pem_x509_certificates(stored.chain.encode())
            response = x509.load_pem_x509_certificate(stored.response_certificate.encode())
    except ValueError:
        raise NftrustError(Reason.CONFIG_INVALID, "ca: the certificates cannot be parsed") from None
    return Authority.of(
        chain,
        response,
        public_url=config.http.public_url,
        country=config.ca.country,
        home_domain=config.home_domain,
        generation=stored.generation,
    )


def load_policy(config: CaRaConfig) -> RegistrationPolicy:
    """OAM policy from the configuration. Raises NftrustError(CONFIG_INVALID)."""
    profiles = {
        profile.name: CertificateProfile(profile.name, timedelta(hours=profile.validity_hours), profile.shared_fqdns)
        for profile in config.profiles
    }
    roots = {
        root.name: Day0Root(
            x509.load_pem_x509_certificate(read_file(root.certificate)),
            Scope((root.tenant,), root.nf_types, root.fqdn_suffixes),
        )
        for root in config.day0_roots
    }
    forms = {entry.nf_type: entry.forms for entry in config.fqdn_forms}
    return RegistrationPolicy(
        fqdns=FqdnRules(config.home_domain, forms),
        profiles=profiles,
        day0_roots=roots,
        delivery_modes=frozenset(config.registration.delivery_modes),
        iak_lifetime=timedelta(minutes=config.registration.iak_lifetime_minutes),
        endpoints=config.registration.endpoints,
        tls_trust_anchors=(read_file(config.registration.tls_trust_anchors).decode("ascii"),),
    )


def _check_token(token: TokenClient, authorities: Sequence[Authority]) -> None:
    """The token guards IAKs and holds the CAs' keys, and they are the certificates' keys.

    Raises NftrustError(TOKEN_CUSTODY_UNPROVEN, KEY_MISSING).
    """
    token.ready()
    token.call(ProveCustody())
    present = {key.label for key in token.call(ListKeys())}
    certificates: dict[str, x509.Certificate] = {}
    for authority in authorities:
        certificates[authority.labels.ca] = authority.chain[0]
        certificates[authority.labels.response] = authority.response_certificate
    missing = {*certificates, ROW_MAC_KEY, VAULT_KEK} - present
    if missing:
        raise NftrustError(Reason.KEY_MISSING, f"the token lacks {', '.join(sorted(missing))}; run `ca-ra init`")
    for label, certificate in certificates.items():
        if token_private_key(token, label).public_key() != certificate.public_key():
            raise NftrustError(Reason.KEY_MISSING, f"{label} in the token is not the key of its certificate")
