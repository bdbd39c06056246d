"""gRPC as every role and the NF agent use it: servers, channels, errors, authorisation."""

from nftrust.rpc.authz import ANYONE, ROLES, AuthorisationTable, infrastructure
from nftrust.rpc.channel import FileIdentity, SignerIdentity, open_channel
from nftrust.rpc.peer import Access, Peer, current_peer
from nftrust.rpc.preflight import fetch_peer_chain
from nftrust.rpc.ratelimit import RateLimiter
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.rpc.status import RemoteError, from_rpc_error

__all__ = [
    "ANYONE",
    "ROLES",
    "Access",
    "AuthorisationTable",
    "FileIdentity",
    "Peer",
    "RateLimiter",
    "RemoteError",
    "RpcServer",
    "ServiceBinding",
    "SignerIdentity",
    "current_peer",
    "fetch_peer_chain",
    "from_rpc_error",
    "infrastructure",
    "open_channel",
]
