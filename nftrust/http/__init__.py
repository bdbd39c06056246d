"""A small HTTP/1.1 server on h11 for what PKI serves in plain HTTP: CRLs, OCSP, CA certificates."""

from nftrust.http.server import Handler, HttpServer, Request, Response

__all__ = ["Handler", "HttpServer", "Request", "Response"]
