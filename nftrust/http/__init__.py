"""A small HTTP/1.1 server on h11 for what PKI serves in plain HTTP: CRLs, CA certificates."""

from nftrust.http.server import HttpServer, Request, Response

__all__ = ["HttpServer", "Request", "Response"]
