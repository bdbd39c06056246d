"""The layers of the CA/RA: which code belongs to which, and what it would take to be rid of what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """Code that is paid for together."""

    name: str
    #: Parts of paths: a stack belongs to the first layer, in the order below, of which it has a frame.
    paths: tuple[str, ...]
    removal: str


#: A process of its own, and threads without Python: found by whose CPU it is, not by stacks.
WORKER = Layer(
    "token worker",
    (),
    "Irreducible but for the worker's own Python (decode, find the key, encode): a worker in C, or two signatures "
    "fewer, if the response were signed for a whole batch at once (a Merkle root).",
)
NATIVE = Layer("gRPC's own threads", (), "TLS records and HTTP/2 frames in C: nothing short of another transport.")

LAYERS: Sequence[Layer] = (
    Layer("audit chain", ("nftrust/storage/audit_log", "nftrust/audit.py"), "Nothing to win: one hash and one row."),
    Layer(
        "metrics and logs",
        ("/prometheus_client/", "/logging/", "nftrust/logs.py", "nftrust/role/metrics"),
        "Count per batch instead of per call; log lines written by a thread of their own.",
    ),
    Layer(
        "CSR and X.509",
        ("nftrust/x509/", "/cryptography/"),
        "The check of the CSR is irreducible; a template per profile with the few changing fields spliced in would "
        "replace the builder, at the price of an encoder of our own beside the library's.",
    ),
    Layer(
        "JWS and messages",
        ("nftrust/jose.py", "nftrust/messages.py", "/msgspec/"),
        "Base64 and JSON of proof and response: CBOR (COSE) would halve it and change the protocol.",
    ),
    Layer(
        "token client",
        ("nftrust/pkcs11/",),
        "One future per redemption instead of per operation; encoding straight into the socket's buffer.",
    ),
    Layer(
        "storage",
        ("/sqlalchemy/", "nftrust/storage/", "_store.py", "ca_ra/rows", "sqlite3", "/psycopg/"),
        "Statements by the driver instead of SQLAlchemy Core, several rows in one INSERT; then SQLite itself remains.",
    ),
    Layer(
        "enrolment's checks",
        ("ca_ra/enrolment", "ca_ra/custody", "ca_ra/model", "ca_ra/service", "ca_ra/convert"),
        "Nothing to win.",
    ),
    Layer(
        "gRPC and the event loop",
        ("/grpc/", "/asyncio/", "nftrust/rpc/", "/google/", "/concurrent/futures/", "nftrust/process/"),
        "Fewer hops between threads and tasks per call; beyond that a server that is not in Python.",
    ),
)
OTHER = Layer("other", (), "Nothing in particular.")


def layer_of(paths: Sequence[str]) -> Layer:
    """The layer of a stack, given the files of its frames."""
    for layer in LAYERS:
        if any(part in path for part in layer.paths for path in paths):
            return layer
    return OTHER
