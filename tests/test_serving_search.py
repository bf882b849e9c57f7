"""Search over HTTP and the page: the same hits as in Python, no script from a document, a map that stays as it is."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest

import ssmoe_embed
from ssmoe_embed.retrieval.corpus import read_corpus
from ssmoe_embed.retrieval.search import CorpusSearch

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")
pytest.importorskip("faiss", reason="an index needs the extra `faiss`")

from serving import serving

from ssmoe_embed.retrieval.documents import Document
from ssmoe_embed.retrieval.index import SemanticIndex
from ssmoe_embed.serving.app import create_app
from ssmoe_embed.serving.corpora import spread
from ssmoe_embed.serving.indexed import IndexCorpus
from ssmoe_embed.serving.limits import Limits
from ssmoe_embed.serving.maps import MapMaker
from ssmoe_embed.serving.page import page
from ssmoe_embed.serving.projection import Projection, group, project
from ssmoe_embed.serving.shipped import ShippedCorpus

ATTACK = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture(scope="module")
def index(model, texts, tmp_path_factory):
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
    index = SemanticIndex.create(tmp_path_factory.mktemp("indexes") / "notes", model)
    index.add(documents, progress=False)
    return index


@pytest.fixture(scope="module")
def app(model, index):
    limits = Limits(max_query=100, max_top=50)
    return create_app(model, name="ssmoe/test", corpus=IndexCorpus(index), limits=limits)


@pytest.fixture(scope="module")
def client(app):
    with serving(app) as client:
        app.state.maps.wait()
        yield client


def test_hits_are_those_of_the_index_with_the_best_sentence_marked(client, index):
    answer = client.get("/api/search", params={"q": "hello world", "top": 4}).json()
    hits = index.search("hello world", 4, snippets=True)
    assert [hit["id"] for hit in answer["hits"]] == [hit.document.id for hit in hits]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in hits], atol=1e-5)
    for shown, hit in zip(answer["hits"], hits, strict=True):
        assert "".join(part["text"] for part in shown["snippet"]) == hit.snippet.text
        assert [part["text"] for part in shown["snippet"] if part["best"]] == [hit.snippet.sentence]
        assert (shown["title"], shown["source"]) == (hit.document.title, hit.document.source)
    assert answer["documents"] == len(index)


def test_filters_and_hybrid_reach_the_index(client, index):
    asked = {"q": "hello", "top": 50, "filter": ["parity=odd"]}
    assert {hit["metadata"]["parity"] for hit in client.get("/api/search", params=asked).json()["hits"]} == {"odd"}
    hybrid = client.get("/api/search", params={"q": "soup", "top": 5, "hybrid": True}).json()["hits"]
    expected = [(hit.document.id, hit.score, hit.similarity) for hit in index.search("soup", 5, hybrid=True)]
    assert [(hit["id"], hit["score"], hit["similarity"]) for hit in hybrid] == expected
    several = asked | {"filter": ["number=3", "number = 4", "parity=odd"]}
    assert {hit["id"] for hit in client.get("/api/search", params=several).json()["hits"]} == {"d3"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "q: "),
        ({"q": "  "}, "q is empty"),
        ({"q": "x" * 101}, "at most 100"),
        ({"q": "x", "top": 0}, "outside 1 to 50"),
        ({"q": "x", "top": "many"}, "top: "),
        ({"q": "x", "filter": "parity"}, "key=value"),
        ({"q": "x", "filter": "color=red"}, "'color'"),
    ],
)
def test_a_senseless_search_is_refused(client, asked, message):
    response = client.get("/api/search", params=asked)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_document_is_found_by_id(client, index):
    shown = client.get("/api/document", params={"id": "d3"}).json()
    assert (shown["text"], shown["metadata"]) == (index["d3"].text, dict(index["d3"].metadata))
    assert client.get("/api/document", params={"id": "nothing"}).status_code == 404


def test_a_score_is_explained_block_by_block(client, index):
    shown = client.get("/api/explain", params={"q": "soup", "id": "d3"}).json()
    expected = index.explain("soup", "d3")
    assert [(block["name"], block["score"]) for block in shown["blocks"]] == [
        (part.block, pytest.approx(part.score, abs=1e-5)) for part in expected.contributions
    ]
    assert shown["score"] == pytest.approx(expected.score, abs=1e-4)
    assert client.get("/api/explain", params={"q": "soup", "id": "nothing"}).status_code == 404
    assert client.get("/api/explain", params={"q": " ", "id": "d3"}).status_code == 400


def test_a_change_of_the_index_is_seen_by_the_next_search(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "changing", model)
    index.add([Document("a", "the cat")], progress=False)
    other = SemanticIndex.open(tmp_path / "changing", model)
    with serving(create_app(model, name="x", corpus=IndexCorpus(index))) as client:
        other.add([Document("b", "a soup")], progress=False)
        assert {hit["id"] for hit in client.get("/api/search", params={"q": "soup"}).json()["hits"]} == {"a", "b"}


def test_the_packages_corpus_is_served_without_an_index(model, tmp_path):
    (tmp_path / "c.txt").write_text("the cat sat. It was warm.\na soup\ngit reset\n")
    search = CorpusSearch(model, read_corpus(tmp_path / "c.txt"), cache=tmp_path / "cache", progress=False)
    app = create_app(model, name="x", corpus=ShippedCorpus(model, search), map_size=0)
    with serving(app) as client:
        hits = client.get("/api/search", params={"q": "cat", "top": 2}).json()["hits"]
        assert [hit["id"] for hit in hits] == [hit.document.id for hit in search.search("cat", 2)]
        assert client.get("/api/map").json()["state"] == "none"
        assert client.get("/api/explain", params={"q": "x", "id": hits[0]["id"]}).status_code == 400
        for asked in ({"q": "x", "hybrid": True}, {"q": "x", "filter": "color=red"}):
            assert client.get("/api/search", params=asked).status_code == 400


# --- the map -----------------------------------------------------------------------------------------------------------


def test_the_map_shows_every_document_and_says_where_hits_are(client, index):
    shown = client.get("/api/map").json()
    assert shown["state"] == "ready"
    assert shown["ids"] == [document.id for document in index.documents()]
    assert all(len(shown[name]) == len(index) for name in ("x", "y", "titles"))
    assert max(map(abs, shown["x"] + shown["y"])) <= 1
    assert len(shown["colors"]["parity"]["names"]) == 3
    assert "number" not in shown["colors"]  # as many values as documents
    for hit in client.get("/api/search", params={"q": "hello"}).json()["hits"]:
        row = shown["ids"].index(hit["id"])
        np.testing.assert_allclose(hit["point"], [shown["x"][row], shown["y"][row]], atol=1e-4)


def test_the_map_is_the_same_every_time_and_made_only_once(index, monkeypatch):
    vectors = index.vectors()
    assert np.array_equal(project(vectors, Projection.TSNE), project(vectors, Projection.TSNE))
    first = MapMaker(IndexCorpus(index))
    first.start()
    first.wait()
    assert first.error is None
    monkeypatch.setattr("ssmoe_embed.serving.maps.project", None)  # would be called to make it again
    second = MapMaker(IndexCorpus(index))
    second.start()
    second.wait()
    assert np.array_equal(first.made.points, second.made.points)
    assert list(first.made.names) == list(second.made.names)
    third = MapMaker(IndexCorpus(index), most=10)  # another sample is another map
    third.start()
    third.wait()
    assert third.error


def test_documents_that_are_not_on_the_map_are_placed_by_their_neighbours(index):
    maker = MapMaker(IndexCorpus(index), most=20)
    maker.start()
    maker.wait()
    assert len(maker.made.entries) == 20
    again = maker.made.place(maker.made.vectors[:3] * 7)
    distance = np.linalg.norm(again - maker.made.points[:3], axis=1)
    anywhere = np.linalg.norm(maker.made.points[:, None] - maker.made.points[None], axis=2).mean()
    assert distance.mean() < anywhere / 2


def test_like_vectors_are_near_each_other_on_the_map():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 20)) * 10
    vectors = np.concatenate([centre + generator.normal(size=(30, 20)) for centre in centres])
    for method in (Projection.TSNE, Projection.PCA):
        points = project(vectors, method)
        middles = points.reshape(3, 30, 2).mean(axis=1)
        nearest = np.linalg.norm(points[:, None] - middles, axis=2).argmin(axis=1)
        assert np.array_equal(nearest, np.repeat([0, 1, 2], 30))
    words = np.repeat(["apple pie", "steam engine", "night sky"], 30)
    groups, names = group(vectors, words.tolist(), most=3)
    named = {names[number]: set(words[groups == number]) for number in range(3)}
    assert all(len(inside) == 1 and name.split(" · ")[0] in next(iter(inside)) for name, inside in named.items())


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("alike", [True, False])
def test_a_small_corpus_has_a_map_too(count, alike):
    vectors = np.ones((count, 8)) if alike else np.random.default_rng(0).normal(size=(count, 8))
    assert project(vectors, Projection.TSNE).shape == (count, 2)
    assert np.isfinite(project(vectors, Projection.TSNE)).all()
    groups, names = group(vectors, ["12"] * count)
    assert groups.max() < len(names)


@pytest.mark.parametrize(("count", "most"), [(0, 5), (3, 5), (5, 5), (1000, 7)])
def test_a_sample_is_spread_evenly(count, most):
    positions = spread(count, most)
    assert len(positions) == len(set(positions)) == min(count, most)
    if count > most:
        assert (positions[0], positions[-1]) == (0, count - 1)
        assert np.ptp(np.diff(positions)) <= 1


# --- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_its_policy_allows_nothing_else(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    markup = response.text.replace(re.search(r"<script>(.*)</script>", response.text, re.DOTALL)[1], "")
    assert re.findall(r"""(?:src=|href=|url\(|@import)\s*["']?([^"'\s>]+)""", markup) == ["data:,"]
    assert "//" not in re.sub(r"^\s*//.*|\s//\s.*", "", response.text, flags=re.MULTILINE).replace(
        r"/^https?:\/\//", ""
    )
    assert not re.search(r"\son\w+=", response.text), "an inline event handler, which the policy would block"
    assert page().html == response.text


def test_the_page_never_parses_a_documents_text_as_html(client):
    script = re.search(r"<script>(.*)</script>", page().html, re.DOTALL)[1]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function("):
        assert way not in script
    response = client.get("/api/document", params={"id": "bad"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["text"] == ATTACK


@needs_chromium
def test_a_browser_shows_hits_and_escapes_documents(client, index, tmp_path):
    """The page as a browser has it after its scripts ran."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=10000", "--dump-dom", f"{client.base_url}?q=hello+world"]
    dumped = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "<title>hello world – ssmoe search</title>" in dumped
    assert dumped.count('class="hit"') == 10
    assert "<mark>" in dumped
    for hit in index.search("hello world", 10):
        assert html.escape(hit.document.title, quote=False) in dumped
    assert "31 documents · model ssmoe/test" in dumped
    legend = re.search(r'<ul id="legend">(.*?)</ul>', dumped, re.DOTALL)[1]
    assert "<button" in legend


@needs_chromium
def test_a_browser_can_be_used_with_keyboard_and_mouse(client):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives the browser, is not installed"
    )
    with playwright.sync_playwright() as drive:
        browser = drive.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page()
        wrong, asked = [], []
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        view.on("request", lambda request: asked.append(request.url))
        view.goto(str(client.base_url))
        view.wait_for_selector("#legend button")
        view.keyboard.type("attack script onerror")
        view.click("summary")
        view.select_option("#top", "50")
        view.press("#query", "Enter")
        view.wait_for_selector(".hit[data-id=bad]")
        assert view.locator(".hit").count() == 31
        assert view.locator(".hit[data-id=bad] .title").inner_text() == f"Attack {ATTACK}"
        assert view.locator("#results img, #results script, #results a").count() == 0
        view.locator(".hit[data-id=bad] .title").click()
        view.wait_for_selector("#document:not([hidden])")
        assert view.locator("#document .text").inner_text() == ATTACK
        view.wait_for_selector("#document .reason")
        view.keyboard.press("Escape")
        assert view.locator("#document").is_hidden()
        view.focus("#canvas")
        view.keyboard.press("ArrowRight")
        assert view.locator("#tip").is_visible()
        title = view.locator("#tip").inner_text()
        view.keyboard.press("Enter")
        view.wait_for_selector("#document:not([hidden])")
        assert " ".join(view.locator("#document strong").inner_text().split()) == " ".join(title.split())
        view.focus("#canvas")
        view.keyboard.press("+")
        view.click("#whole")
        assert view.title() == "attack script onerror – ssmoe search"
        assert all(url.startswith(str(client.base_url)) or url == "data:," for url in asked)
        assert wrong == []
        browser.close()
