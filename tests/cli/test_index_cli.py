"""`ssmoe index` and `ssmoe search --index`, as a user types them."""

import json
import sys

import pytest
from indexing import static_model

import ssmoe_embed
from ssmoe_embed.search import Document, SemanticIndex

RECORDS = [
    {"id": "cat", "text": "The cat slept. It rained.", "title": "Cats", "lang": "en"},
    {"id": "soup", "text": "How to make a soup with beans.", "lang": "en"},
    {"id": "git", "text": "Undo a commit with git reset.", "lang": "sh"},
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    return path


@pytest.fixture
def index(ssmoe, corpus, built, tmp_path):
    status, _, err = ssmoe("index", corpus, "-o", tmp_path / "index", "--model", built, "--method", "ssmoe")
    assert status == 0
    assert "3 added; 3 texts encoded" in err
    assert "3 documents" in err
    return tmp_path / "index"


@pytest.mark.parametrize("case", ["a broken line", "no Ray"])
def test_an_index_into_which_nothing_was_put_is_not_left(ssmoe, corpus, built, monkeypatch, case):
    folder = corpus.with_name("index")
    for there in ([], ["mine.txt"]):
        for name in there:
            folder.mkdir()
            (folder / name).write_text("kept", "utf-8")
        if case == "no Ray":
            monkeypatch.setitem(sys.modules, "ray", None)
            ran = ssmoe("index", corpus, "-o", folder, "--model", built, "--engine", "ray", "-q")
            assert "pip install 'ssmoe-embed[ray]'" in ran.err
        else:
            broken = corpus.with_name("broken.jsonl")
            broken.write_text(f"{corpus.read_text('utf-8')}\nno JSON\n", "utf-8")
            ran = ssmoe("index", broken, "-o", folder, "--model", built, "-q")
            assert "broken.jsonl:4" in ran.err
        assert ran.status == 1
        assert folder.is_dir() == bool(there)
        assert [path.name for path in folder.glob("*")] == there


def test_what_was_encoded_before_a_failure_is_kept_for_the_next_run(ssmoe, corpus, built, tmp_path):
    lines = [json.dumps({"text": f"text {number}"}) for number in range(33)]
    corpus.write_text("\n".join([*lines, "no JSON"]), "utf-8")
    asked = ("index", corpus, "-o", tmp_path / "index", "--model", built, "--batch-size", 1)
    assert ssmoe(*asked, "-q").status == 1
    corpus.write_text("\n".join(lines), "utf-8")
    ran = ssmoe(*asked)
    assert "33 added; 1 texts encoded" in ran.err


def test_search_finds_what_the_index_holds_with_the_index_own_model(ssmoe, index, built):
    status, out, _ = ssmoe("search", "a warm soup", "--index", index, "--json", "-k", 2)
    assert status == 0
    found = [json.loads(line) for line in out.splitlines()]
    model = ssmoe_embed.load(built, progress=False, method="ssmoe")
    expected = SemanticIndex.open(index, model).search("a warm soup", 2)
    assert [(hit["id"], hit["score"]) for hit in found] == [(h.document.id, pytest.approx(h.score)) for h in expected]
    assert {hit["words"] > 0 for hit in found} == {True, False}
    by_id = {record["id"]: record for record in RECORDS}
    for hit in found:
        assert hit["text"] == by_id[hit["id"]]["text"]
        assert hit["best_sentence"] in hit["text"]
        assert hit["metadata"] == {"lang": by_id[hit["id"]]["lang"]}


def test_search_prints_for_a_person_with_filters_explanations_and_hybrid(ssmoe, index):
    arguments = ("search", "undo a commit", "--index", index, "--filter", "lang=sh", "--hybrid", "--explain")
    status, out, _ = ssmoe(*arguments)
    assert status == 0
    assert "Undo a commit" in out
    assert "soup" not in out
    assert "hidden" in out
    assert "routing of layer 0" in out
    status, out, _ = ssmoe(*arguments, "--json")
    hit = json.loads(out)
    assert sum(part["score"] for part in hit["explanation"]) == pytest.approx(hit["similarity"], abs=1e-12)


def test_interactive_search_answers_line_by_line(ssmoe, index):
    status, out, _ = ssmoe(
        "search", "--index", index, "--interactive", "--json", "-k", 1, stdin=b"cat\nsoup\n\nnever\n"
    )
    assert status == 0
    assert len(out.splitlines()) == 2


def test_indexing_again_adds_updates_prunes_and_deletes(ssmoe, index, corpus):
    changed = [RECORDS[0], {"id": "soup", "text": "Another soup."}, {"id": "new", "text": RECORDS[2]["text"]}]
    corpus.write_text("\n".join(map(json.dumps, changed)), encoding="utf-8")
    status, _, err = ssmoe("index", corpus, "-o", index, "--prune")
    assert status == 0
    assert "1 added, 1 updated, 1 unchanged, 1 removed; 1 texts encoded" in err
    status, _, err = ssmoe("index", "-o", index, "--delete", "cat", "--delete", "gone", "--verify")
    assert status == 1
    assert "There is no document 'gone'" in err
    assert "nothing was removed" in err
    assert "cat" in SemanticIndex.open(index)
    status, _, err = ssmoe("index", "-o", index, "--delete", "cat", "--verify")
    assert status == 0
    assert "1 document removed" in err
    assert "matches its checksum" in err
    status, _, err = ssmoe("index", "-o", index, "--rebuild", "--kind", "hnsw")
    assert status == 0
    assert "recall@10" in err
    assert {document.id for document in SemanticIndex.open(index).documents()} == {"soup", "new"}


def test_what_a_hit_prints_finds_and_deletes_its_file(ssmoe, built, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("soup", "gate"):
        (notes / f"{name}.md").write_text(
            f"# The {name}\n\nAll about the {name}.\n\n# More\n\nAnd a {name} again.\n", encoding="utf-8"
        )
    (notes / "photo.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "mail.jsonl").write_text('{"id": "m", "text": "a letter"}', encoding="utf-8")
    command = ("index", notes, tmp_path / "mail.jsonl", "-o", tmp_path / "i", "--model", built)
    status, _, err = ssmoe(*command)
    assert status == 0
    assert "5 added" in err
    assert "1 file skipped: 1 image; --list-skipped names them" in err
    _, _, err = ssmoe(*command, "--list-skipped")
    assert f"{notes / 'photo.png'}: image" in err
    _, out, _ = ssmoe("search", "soup", "--index", tmp_path / "i", "--json", "-k", 1)
    hit = json.loads(out)
    for condition in (f"source={hit['source']}", f"path={hit['metadata']['path']}", f"id={hit['id']}", "path=*soup*"):
        _, out, _ = ssmoe("search", "gate", "--index", tmp_path / "i", "--json", "--filter", condition)
        assert {json.loads(line)["metadata"]["path"] for line in out.splitlines()} == {hit["metadata"]["path"]}
    status, _, err = ssmoe("index", "-o", tmp_path / "i", "--delete", "--filter", f"path={hit['metadata']['path']}")
    assert status == 0
    assert "2 documents removed" in err
    assert len(SemanticIndex.open(tmp_path / "i")) == 3


def test_words_are_searched_without_a_model_and_nonsense_is_called_weak(ssmoe, index, monkeypatch):
    _, out, _ = ssmoe("search", "zzz qqq", "--index", index)
    assert out.startswith("No document fits well; these are the nearest.")
    monkeypatch.setattr("ssmoe_embed.hub.models.load", None)
    status, out, _ = ssmoe("search", "Beans soup", "--index", index, "--words-only")
    assert status == 0
    assert "1. soup  words " in out
    _, out, _ = ssmoe("search", "zzz qqq", "--index", index, "--words-only")
    assert out == "Nothing was found.\n"


def test_broken_lines_stop_or_are_skipped_and_told_of(ssmoe, built, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "good"}\n{"text"\n{"text": "fine"}\n', encoding="utf-8")
    status, _, err = ssmoe("index", path, "-o", tmp_path / "i", "--model", built)
    assert status == 1
    assert "broken.jsonl:2 is not valid JSON" in err
    status, _, err = ssmoe("index", path, "-o", tmp_path / "i", "--model", built, "--on-error", "skip")
    assert status == 0
    assert "Skipped" in err
    assert "2 added" in err


def test_searching_an_index_without_documents_says_how_to_fill_it(ssmoe, tmp_path):
    SemanticIndex.create(tmp_path / "i", static_model())
    status, _, err = ssmoe("search", "x", "--index", tmp_path / "i", "--words-only")
    assert status == 1
    assert "no document yet" in err


def test_an_empty_corpus_makes_no_index(ssmoe, tmp_path):
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    status, _, err = ssmoe("index", tmp_path / "empty.txt", "-o", tmp_path / "i", "--model", "no/such/model")
    assert status == 1
    assert "empty.txt holds no document" in err
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index"], "nothing to do"),
        (["index", "-o", "INDEX", "--delete", "cat", "--prune"], "CORPUS does not have; name it"),
        (["index", "-o", "INDEX", "--verify", "--kind", "hnsw"], "changed with --rebuild"),
        (["index", "CORPUS", "-o", "INDEX", "--kind", "hnsw"], "--rebuild"),
        (["index", "CORPUS", "-o", "INDEX", "--method", "ev"], "instead of"),
        (["search", "x", "--index", "INDEX", "--filter", "lang"], "key=value"),
        (["search", "x", "--index", "INDEX", "--filter", "lnag=en"], "'lang'"),
        (["search", "x", "--index", "INDEX", "--corpus", "CORPUS"], "exclude each other"),
        (["search", "--index", "INDEX"], "no query"),
        (["search", "x", "--words-only", "--vectors-only"], "exclude each other"),
        (["index", "-o", "INDEX", "--delete"], "go together"),
        (["index", "-o", "INDEX", "--filter", "lang=en"], "go together"),
        (["index", "-o", "INDEX", "--delete", "--filter", "lang=xx"], "passes lang=xx; nothing was removed"),
        (["search", "x", "--index", "nowhere"], "no index in nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_next_step(ssmoe, index, corpus, arguments, message):
    names = {"CORPUS": corpus, "INDEX": index}
    status, _, err = ssmoe(*(names.get(argument, argument) for argument in arguments))
    assert status == 1
    assert message in err


def test_any_sentence_transformers_model_can_be_indexed(ssmoe, corpus, tmp_path):
    static_model().save(str(tmp_path / "static"))
    status, _, err = ssmoe("index", corpus, "-o", tmp_path / "i", "--model", tmp_path / "static")
    assert status == 0, err
    status, out, _ = ssmoe("search", "How to make a soup with beans.", "--index", tmp_path / "i", "--json", "-k", 1)
    assert json.loads(out)["id"] == "soup"
    status, _, err = ssmoe("search", "soup", "--index", tmp_path / "i", "--explain")
    assert status == 1
    assert "no blocks" in err


def test_the_index_holds_documents_of_the_python_interface_too(ssmoe, index, built):
    made = SemanticIndex.open(index, ssmoe_embed.load(built, progress=False, method="ssmoe"))
    made.add([Document("x", "A text from Python.")], progress=False)
    status, out, _ = ssmoe("search", "A text from Python.", "--index", index, "--json", "-k", 1)
    assert (status, json.loads(out)["id"]) == (0, "x")
