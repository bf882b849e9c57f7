"""The page: nothing from elsewhere, no text taken for HTML, usable with keyboard and mouse."""

import html
import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")
pytest.importorskip("faiss", reason="an index needs the extra `faiss`")

from serving import ATTACK

from ssmoe_embed.serving.app import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NODE = shutil.which("node")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


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


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_the_pages_script_is_javascript_and_names_fields_as_the_page_does(tmp_path):
    """The function that words errors, run by Node.js, over errors as the server gives them."""
    script = re.search(r"<script>(.*)</script>", page().html, re.DOTALL)[1]
    (tmp_path / "page.js").write_text(script, encoding="utf-8")
    subprocess.run([NODE, "--check", tmp_path / "page.js"], check=True)
    errors = [
        {"message": "top=0 is outside 1 to 50.", "param": "top"},
        {"message": "'x' is no key=value.", "param": "filter"},
        {"message": "Too busy.", "param": None},
    ]
    labels, named = (
        re.search(r"const LABELS = .*?;", script)[0],
        re.search(r"function named.*?\n}\n", script, re.DOTALL)[0],
    )
    code = f"{labels}\n{named}\nconsole.log(JSON.stringify({errors}.map(named)))".replace("None", "null")
    told = json.loads(subprocess.run([NODE, "-e", code], check=True, capture_output=True, encoding="utf-8").stdout)
    assert told == ["Results=0 is outside 1 to 50.", "Filter: 'x' is no key=value.", "Too busy."]
    for label in ("Results", "Filter"):
        assert f"<label>{label} " in page().html


def test_hits_come_before_the_map_on_a_phone():
    narrow = page().html.split("@media (max-width: 52rem)")[1]
    assert re.search(r"grid-template-areas: ([^;]+);", narrow)[1] == '"form" "results" "map"'


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
    dumped = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120).stdout
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
        view.wait_for_selector(".hit[data-id=bad] mark")
        assert view.locator(".hit").count() == 31
        assert view.locator(".hit[data-id=bad] .title").inner_text() == f"Attack {ATTACK}"
        assert view.locator("#results img, #results script, #results a").count() == 0
        view.locator(".hit[data-id=bad] .title").click()
        view.wait_for_selector("#document:not([hidden])")
        assert view.locator("#document .text").inner_text() == ATTACK
        view.wait_for_selector("#document .reason")
        view.keyboard.press("/")
        assert view.evaluate("document.activeElement.id") == "query"
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
