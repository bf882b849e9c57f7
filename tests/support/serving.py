"""A real server on a free port, in a thread, and notes to search through one."""

import socket
import threading
from contextlib import contextmanager

import httpx
import numpy as np

from ssmoe_embed.search import Document, SemanticIndex
from ssmoe_embed.serving.server import Server, address_of, listen

NAME = "ssmoe/test"
URL = "/v1/embeddings"
ATTACK = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


@contextmanager
def serving(app, log_level="critical"):
    """An HTTP client of the served application."""
    listener = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(app, ready=ready.set, log_level=log_level)
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


def post(client, texts, **fields):
    return client.post(URL, json={"model": NAME, "input": texts} | fields)


def vectors_of(response):
    assert response.status_code == 200, response.text
    return np.array([row["embedding"] for row in response.json()["data"]], dtype=np.float32)


def notes(model, texts, folder):
    """An index of a few notes, one of which would do harm to a page that took it for HTML."""
    documents = [
        Document(
            f"d{number}",
            f"{text} Then it was over. {texts[-1 - number]}",
            {"parity": "even" if number % 2 == 0 else "odd", "number": number},
            title=f"About {text[:30]}",
            source=f"notes.txt:{number}",
        )
        for number, text in enumerate(texts[:30])
    ]
    documents.append(
        Document("bad", ATTACK, {"parity": ATTACK}, title=f"Attack {ATTACK}", source="javascript:alert(1)")
    )
    index = SemanticIndex.create(folder / "notes", model)
    index.add(documents, progress=False)
    return index
