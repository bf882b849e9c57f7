"""A real server on a free port, in a thread."""

import socket
import threading
from contextlib import contextmanager

import httpx

from ssmoe_embed.serving.server import Server, address_of, listen


@contextmanager
def serving(app):
    """An HTTP client of the served application."""
    listener = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(app, ready=ready.set, log_level="critical")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert ready.wait(60)
        with httpx.Client(base_url=address_of(listener), timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def raw_request(client, head, body=b""):
    """What the server answers to bytes that no HTTP library would send."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        return connection.recv(65536).decode()
