import json
import random
from pathlib import Path

import pytest

from ssmoe_embed.data import calibration_texts, read_records, search_corpus, tiny_folder

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "ssmoe_embed" / "data"
OFFLINE = sorted(path.name for path in (DATA / "offline").glob("*.jsonl"))


@pytest.fixture
def make_data(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))


def folded(text):
    return "".join(c for c in text.lower() if c.isalnum())


def documented_sources():
    lines = (DATA / "LICENSES.md").read_text(encoding="utf-8").splitlines()
    return {line.removeprefix("## ") for line in lines if line.startswith("## ")}


def task_texts():
    """The texts of the offline tasks, but for questions to the search corpus, and single words."""
    for name in OFFLINE:
        if name not in {"howto_search.jsonl", "word_relatedness.jsonl"}:
            for record in read_records(f"offline/{name}"):
                yield from (record[key] for key in ("document", "query", "first", "second", "text") if key in record)
                yield from record.get("positive", []) + record.get("negative", [])


@pytest.mark.parametrize(
    ("files", "most"), [("calibration.jsonl", 500_000), ("search/*.jsonl", 1_200_000), ("offline/*.jsonl", 1_500_000)]
)
def test_the_files_are_small_and_every_line_is_a_json_object(files, most):
    paths = sorted(DATA.glob(files))
    assert paths
    assert sum(path.stat().st_size for path in paths) <= most
    assert all(isinstance(json.loads(line), dict) for path in paths for line in path.read_text("utf-8").splitlines())


def test_the_calibration_sample_is_varied_and_has_no_text_twice():
    texts = calibration_texts()
    lengths = [len(text.split()) for text in texts]
    assert 1_900 <= len(texts) <= 2_200
    assert len({text.casefold() for text in texts}) == len(texts)
    assert all(text.strip() == text and text for text in texts)
    assert min(lengths) <= 3
    assert max(lengths) <= 120
    assert sum(n > 50 for n in lengths) > 200
    assert sum(n < 6 for n in lengths) > 200
    assert sum(not text.isascii() for text in texts) > 50


def test_the_calibration_sample_holds_no_text_of_the_offline_tasks():
    sample = [folded(text) for text in calibration_texts()]
    exact = set(sample)
    joined = "\n".join(sample)
    for text in task_texts():
        key = folded(text.removeprefix("what do you call this: "))
        assert key not in exact, text
        assert len(key) < 25 or key not in joined, text


def test_the_search_corpus_is_valid_and_answers_the_readmes_question():
    documents = search_corpus()
    assert 1_000 <= len(documents) <= 2_500
    for field in ("id", "title", "text"):
        values = [getattr(document, field).casefold() for document in documents]
        assert len(set(values)) == len(values)
        assert all(value.strip() for value in values)
    assert sum(document.source == "ssmoe_embed" for document in documents) >= 150
    (answer,) = (document for document in documents if document.title == "Undo the last commit")
    assert "git reset --soft HEAD~1" in answer.text
    assert answer.full_text.startswith("Undo the last commit. To undo")


def test_every_source_has_its_licence_text():
    sources = {record["source"] for record in read_records("calibration.jsonl")}
    sources |= {document.source for document in search_corpus()}
    sources |= {"wordnet", "reviews", "bible", "wordsim353"}  # of the offline tasks
    assert sources <= documented_sources()
    assert {document.metadata["license"] for document in search_corpus()} == {
        "Apache-2.0",
        "PSF-2.0",
        "PostgreSQL",
        "MIT OR Apache-2.0",
    }


def test_every_file_of_the_offline_tasks_is_one_of_a_task_and_has_its_source():
    pytest.importorskip("mteb")
    from ssmoe_embed.evaluation.tasks.offline import OFFLINE as TASKS

    assert {task.file for task in TASKS} == set(OFFLINE)
    text = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in OFFLINE if "howto" not in name)


def test_every_question_names_documents_of_the_corpus_in_other_words_than_the_title():
    titles = {document.id: document.title.casefold() for document in search_corpus()}
    questions = list(read_records("offline/howto_search.jsonl"))
    assert len(questions) >= 120
    assert len({q["query"] for q in questions}) == len(questions)
    for question in questions:
        assert question["relevant"]
        assert all(question["query"].casefold() != titles[identifier] for identifier in question["relevant"])


def test_the_bundled_models_folder_lies_with_the_data():
    assert tiny_folder() == DATA / "tiny"


def test_training_and_tasks_hold_out_the_same_words(make_data, monkeypatch):
    from make_data.heldout import is_held_out

    monkeypatch.syspath_prepend(str(REPOSITORY / "examples" / "train_tiny"))
    from holdout import is_held_out as held_out_in_training

    rng = random.Random(0)
    words = ["".join(rng.choices("aeioubcdfg _AEIO", k=6)) for _ in range(2_000)]
    held_out = [is_held_out(word) for word in words]
    assert held_out == [held_out_in_training(word) for word in words]
    assert 50 < sum(held_out) < 150


def test_a_line_of_wordnet_is_read_as_its_manual_says(make_data):
    from make_data.wordnet import _parse

    line = '6269 03 n 02 life 0 living_thing 0 002 @ 00004258 n 0000 ~ 07993776 n 0000 | living things; "it has life"'
    synset = _parse(line, "n")
    assert (synset.key, synset.file, synset.lemmas) == ("n6269", "noun.Tops", ("life", "living thing"))
    assert (synset.definition, synset.examples) == ("living things", ("it has life",))
    assert synset.pointers == (("@", "n00004258"), ("~", "n07993776"))


def test_a_manuals_page_is_cut_into_sections(make_data, tmp_path):
    from make_data.sections import read_sections, shorten

    page = tmp_path / "page.html"
    page.write_text(
        "<head><title>no</title></head><nav><p>no</p></nav><h2>1.2. Sorting<a class='headerlink'>¶</a></h2>"
        "<p>Use <code>sorted</code>. It\nis stable.</p><pre>sorted(x)</pre><h3 class='title'>Note</h3><p>Fast.</p>",
        encoding="utf-8",
    )
    (section,) = read_sections(page)
    assert section.title == "Sorting"
    assert section.blocks == ["Use `sorted`. It is stable.", "```\nsorted(x)\n```", "Fast."]
    assert shorten(section.blocks, target=6, most=8) == "Use `sorted`. It is stable.\n\n```\nsorted(x)\n```"
    assert shorten(["One two. Three four five."], target=9, most=3) == "One two."


def test_a_bible_in_the_format_of_sword_is_read_by_chapter_and_verse(make_data, tmp_path):
    import struct
    import zlib

    from make_data.verses import read_verses

    entries = [
        "",
        '<chapter n="3" osisID="Ps.3" sID="Ps.3"/> ',
        "<title>A song</title>LORD, <w x='1'>how</w> are<note>a note</note> they &amp; I ,",
        "¶ Many there  be.",
        '<chapter n="4" osisID="Ps.4" sID="Ps.4"/>',
        "Hear me.",
    ]
    block = "".join(entries).encode()
    packed = zlib.compress(block)
    places, start = b"", 0
    for entry in entries:
        places += struct.pack("<IIH", 0, start, len(entry.encode()))
        start += len(entry.encode())
    for testament, content in (
        ("ot", (struct.pack("<III", 0, len(packed), len(block)), places, packed)),
        ("nt", (b"",) * 3),
    ):
        for kind, data in zip(("bzs", "bzv", "bzz"), content, strict=True):
            (tmp_path / f"{testament}.{kind}").write_bytes(data)
    assert read_verses(tmp_path) == {
        ("Ps", 3, 1): "LORD, how are they & I,",
        ("Ps", 3, 2): "Many there be.",
        ("Ps", 4, 1): "Hear me.",
    }


def test_reviews_are_labelled_by_their_ratings_and_unclear_ones_left_out(make_data, tmp_path):
    from make_data.ratings import REVIEWS, review_sentiment

    path = tmp_path / REVIEWS
    path.parent.mkdir()
    rows = ["1_1\t2.5\tit plays almost everything you give it .", "1_2\t-1.0\tthe sound is bad and it breaks ."]
    rows += [
        "2_1\t0.9\tit is neither good nor bad at all .",
        "3_1\t2.0\ttoo short .",
        "4_1\t2.0\tIt plays almost everything you give it .",
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    found = {record["text"]: record["label"] for record in review_sentiment(tmp_path)}
    assert found == {
        "it plays almost everything you give it .": "positive",
        "the sound is bad and it breaks .": "negative",
    }
