"""What the command fetches over plain HTTP comes from a server that may be any."""

from __future__ import annotations

import socket
import threading

import pytest

from nftrust.cli.download import fetch
from nftrust.errors import NftrustError, Reason


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 500 no\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n" * 200],
    ids=["nothing", "another protocol", "refusal", "too many headers"],
)
def test_what_is_no_answer_is_peer_unavailable(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(NftrustError) as caught:
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/crl", 10)
        serving.join()
    assert caught.value.reason is Reason.PEER_UNAVAILABLE


@pytest.mark.parametrize("url", ["file:///etc/hostname", "https://localhost/crl", "http://", "http://[::1", ""])
def test_other_urls_are_not_followed(url: str) -> None:
    with pytest.raises(NftrustError) as caught:
        fetch(url, 1)
    assert caught.value.reason is Reason.PEER_INCOMPATIBLE
