"""`ssmoe serve`, as a user types it."""

import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest

import ssmoe_embed

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")

from serving import URL, vectors_of

from ssmoe_embed.serving.server import listen


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


def test_the_command_serves_an_index_until_it_is_stopped(model, built, environment, tmp_path):
    pytest.importorskip("faiss", reason="an index needs the extra `faiss`")
    from ssmoe_embed.data import Document
    from ssmoe_embed.search.index import SemanticIndex

    index = SemanticIndex.create(tmp_path / "index", model, reference={"name": str(built), "settings": {}})
    index.add([Document("a", "the cat"), Document("b", "a soup")], progress=False)
    main = "from ssmoe_embed.cli import main; main()"
    command = [sys.executable, "-c", main, "serve", str(tmp_path / "index"), "--port", "0", "--name", "mine", "--quiet"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8") as process:
        try:
            [address] = re.findall(r"^Serving mine on (http://127\.0\.0\.1:\d+)$", process.stderr.readline())
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                answer = client.post(URL, json={"model": "mine", "input": "hello"})
                np.testing.assert_allclose(vectors_of(answer), model.encode(["hello"]), atol=1e-5)
                hits = client.get("/api/search", params={"q": "soup", "top": 2}).json()["hits"]
                assert [hit["id"] for hit in hits] == [hit.document.id for hit in index.search("soup", 2)]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_an_address_that_is_taken_is_told_before_anything_is_loaded(ssmoe):
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        ran = ssmoe("serve", "--model", "no/such/model", "--port", taken.getsockname()[1])
    assert ran.status == 1
    assert "choose another with --host and --port" in ran.err
