"""The CA/RA's services over gRPC: parse, call, convert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

from ca_ra import convert
from ca_ra.authority import Authorities
from ca_ra.issuance_store import SqlIssuanceStore
from ca_ra.registration import Registrar
from ca_ra.registration_store import SqlRegistrationStore
from ca_ra.renewal import RenewalEngine
from ca_ra.retirement_store import SqlRetirementStore
from ca_ra.revocation_store import SqlRevocationStore
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.api.ca_ra.v1.certificate_service_pb2_grpc import CertificateServiceServicer
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceServicer
from nftrust.api.ca_ra.v1.registration_service_pb2_grpc import RegistrationServiceServicer
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError, Reason
from nftrust.identity import parse_nf_instance_id
from nftrust.paging import cut, decode_number, page_size
from nftrust.rpc.peer import current_peer
from nftrust.source import source_key

Context = grpc.aio.ServicerContext[Any, Any]
_REGISTRATIONS, _CERTIFICATES = "registration", "certificate"


class RegistrationServicer(RegistrationServiceServicer):
    """Steps 5 and 6, for the CM proxy and OAM."""

    def __init__(
        self,
        registrar: Registrar,
        store: SqlRegistrationStore,
        retirements: SqlRetirementStore,
        clock: GuardedClock,
        on_revoked: Callable[[], None],
    ) -> None:
        self._registrar = registrar
        self._store = store
        self._retirements = retirements
        self._clock = clock
        self._on_revoked = on_revoked

    async def RegisterEndEntity(
        self, request: pb.RegisterEndEntityRequest, context: Context
    ) -> pb.RegisterEndEntityResponse:
        peer = current_peer()
        registered = await self._registrar.register(convert.registration_request(request), peer.uri, peer.scope)
        return convert.registered_message(registered, self._clock.now())

    async def GetRegistration(self, request: pb.GetRegistrationRequest, context: Context) -> pb.Registration:
        found = await self._store.get_registration(convert.resource_id(request.name, "registrations"))
        if found is None or not current_peer().scope.covers_tenant(found.tenant):
            raise NftrustError(Reason.REGISTRATION_NOT_FOUND)
        return convert.registration_message(found, self._clock.now())

    async def ListRegistrations(
        self, request: pb.ListRegistrationsRequest, context: Context
    ) -> pb.ListRegistrationsResponse:
        size = page_size(request.page_size)
        before = decode_number(_REGISTRATIONS, request.page_token)
        nf_instance_id = parse_nf_instance_id(request.nf_instance_id) if request.nf_instance_id else None
        rows = await self._store.list_registrations(nf_instance_id, current_peer().scope.tenants, size + 1, before)
        page, token = cut(_REGISTRATIONS, rows, size, lambda row: row[0])
        now = self._clock.now()
        return pb.ListRegistrationsResponse(
            registrations=[convert.registration_message(row, now) for _, row in page], next_page_token=token
        )

    async def RevokeRegistration(self, request: pb.RevokeRegistrationRequest, context: Context) -> pb.Registration:
        peer = current_peer()
        registration_id = convert.resource_id(request.name, "registrations")
        known = await self._store.get_registration(registration_id)
        if known is None or not peer.scope.covers_tenant(known.tenant):
            raise NftrustError(Reason.REGISTRATION_NOT_FOUND)
        revoked = await self._store.revoke_registration(registration_id, peer.uri)
        return convert.registration_message(revoked, self._clock.now())

    async def ReinstateEndEntity(
        self, request: pb.ReinstateEndEntityRequest, context: Context
    ) -> pb.ReinstateEndEntityResponse:
        peer = current_peer()
        nf_instance_id = parse_nf_instance_id(request.nf_instance_id)
        await self._store.reinstate(nf_instance_id, peer.scope.tenants, peer.uri)
        return pb.ReinstateEndEntityResponse()

    async def RetireEndEntity(self, request: pb.RetireEndEntityRequest, context: Context) -> pb.RetireEndEntityResponse:
        peer = current_peer()
        retire_time = await self._retirements.retire(convert.end_entity(request), peer.uri, peer.scope)
        self._on_revoked()
        return pb.RetireEndEntityResponse(retire_time=convert.timestamp(retire_time))


class EnrolmentServicer(EnrolmentServiceServicer):
    """Steps 9 and 10, and renewals, for NFs."""

    def __init__(self, engine: RenewalEngine) -> None:
        self._engine = engine

    async def EnrolCertificate(
        self, request: enrolment_pb.EnrolCertificateRequest, context: Context
    ) -> enrolment_pb.EnrolCertificateResponse:
        response = await self._engine.enrol(request.proof, source_key(current_peer().address))
        return enrolment_pb.EnrolCertificateResponse(signed_response=response)

    async def RenewCertificate(
        self, request: enrolment_pb.RenewCertificateRequest, context: Context
    ) -> enrolment_pb.RenewCertificateResponse:
        response = await self._engine.renew(request.proof, source_key(current_peer().address))
        return enrolment_pb.RenewCertificateResponse(signed_response=response)

    async def ConfirmCertificate(
        self, request: enrolment_pb.ConfirmCertificateRequest, context: Context
    ) -> enrolment_pb.ConfirmCertificateResponse:
        response = await self._engine.confirm(request.proof, source_key(current_peer().address))
        return enrolment_pb.ConfirmCertificateResponse(signed_response=response)

    async def GetTrustBundle(
        self, request: enrolment_pb.GetTrustBundleRequest, context: Context
    ) -> enrolment_pb.GetTrustBundleResponse:
        response = await self._engine.trust_bundle(request.nonce, request.ca_id)
        return enrolment_pb.GetTrustBundleResponse(signed_response=response)


class CertificateServicer(CertificateServiceServicer):
    """What has been issued and what of it is revoked, and the CA itself."""

    def __init__(
        self,
        authorities: Authorities,
        store: SqlIssuanceStore,
        revocations: SqlRevocationStore,
        on_revoked: Callable[[], None],
        *,
        home_domain: str,
        endpoints: Sequence[str],
        tls_trust_anchors: Sequence[str],
    ) -> None:
        self._authorities = authorities
        self._store = store
        self._revocations = revocations
        self._on_revoked = on_revoked
        self._home_domain = home_domain
        self._endpoints = endpoints
        self._tls_trust_anchors = tls_trust_anchors

    async def GetCertificate(
        self, request: certificate_pb.GetCertificateRequest, context: Context
    ) -> certificate_pb.Certificate:
        serial = convert.resource_id(request.name, "certificates")
        found = await self._store.get_certificate(serial)
        if found is None or not current_peer().scope.covers_tenant(found.tenant):
            raise NftrustError(Reason.CERTIFICATE_NOT_FOUND)
        revoked = await self._revocations.revocations([serial])
        return convert.certificate_message(found, revoked.get(serial))

    async def ListCertificates(
        self, request: certificate_pb.ListCertificatesRequest, context: Context
    ) -> certificate_pb.ListCertificatesResponse:
        size = page_size(request.page_size)
        rows = await self._store.list_certificates(
            parse_nf_instance_id(request.nf_instance_id) if request.nf_instance_id else None,
            current_peer().scope.tenants,
            size + 1,
            decode_number(_CERTIFICATES, request.page_token),
            expire_before=convert.expire_before(request),
            exclude_revoked=request.exclude_revoked,
        )
        page, token = cut(_CERTIFICATES, rows, size, lambda row: row[0])
        revoked = await self._revocations.revocations([row.serial for _, row in page])
        return certificate_pb.ListCertificatesResponse(
            certificates=[convert.certificate_message(row, revoked.get(row.serial)) for _, row in page],
            next_page_token=token,
        )

    async def RevokeCertificate(
        self, request: certificate_pb.RevokeCertificateRequest, context: Context
    ) -> certificate_pb.Certificate:
        peer = current_peer()
        serial = convert.resource_id(request.name, "certificates")
        reason = convert.revocation_reason(request.reason)
        found, revocation = await self._revocations.revoke(serial, reason, peer.uri, peer.scope.tenants)
        self._on_revoked()
        return convert.certificate_message(found, revocation)

    async def GetCertificateAuthority(
        self, request: certificate_pb.GetCertificateAuthorityRequest, context: Context
    ) -> certificate_pb.CertificateAuthority:
        authority = self._authorities.active
        message = certificate_pb.CertificateAuthority(
            ca_id=authority.ca_id,
            issuing_ca_pem=convert.pem(authority.chain[0]),
            root_ca_pem=convert.pem(authority.chain[-1]),
            response_certificate_pem=convert.pem(authority.response_certificate),
            crl_url=authority.issuer.crl_url,
            ocsp_url=authority.issuer.ocsp_url,
            home_domain=self._home_domain,
            certificate_count=await self._store.count_certificates(),
            enrolment_endpoints=self._endpoints,
            enrolment_trust_anchors_pem="".join(self._tls_trust_anchors),
        )
        for known in self._authorities.known:
            crl = await self._revocations.latest_crl(known.authority.generation)
            message.issuing_cas.append(convert.issuing_ca_message(known, crl))
            if known.authority is authority and crl is not None:
                message.crl_next_update.CopyFrom(convert.timestamp(crl.next_update))
        return message
