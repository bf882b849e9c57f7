"""Corpora are read as they are, one document at a time, and broken lines are named."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmoe_embed.search.passages import split_passages
from ssmoe_embed.search.reading import read_documents

RECORDS = [
    {"id": "a", "text": "one text", "title": "One", "year": 1999, "lang": "en"},
    {"text": "another, with a comma\nand a break", "year": 2001},
    {"id": 7, "text": "third", "source": "somewhere"},
]


def written(folder, kind):
    path = folder / f"corpus.{kind}"
    names = ["id", "text", "title", "year", "lang", "source"]
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, RECORDS)))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            rows = csv.DictWriter(file, names)
            rows.writeheader()
            rows.writerows(RECORDS)
    else:
        columns = {name: [None if name not in r else str(r[name]) for r in RECORDS] for name in names}
        columns["embedding"] = [[1.0, 2.0]] * 3
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_records_become_documents_with_their_metadata(tmp_path, kind):
    path = written(tmp_path, kind)
    corpus = read_documents(path)
    first, second, third = corpus
    assert (first.id, first.text, first.title) == ("a", "one text", "One")
    assert {key: str(value) for key, value in first.metadata.items()} == {"year": "1999", "lang": "en"}
    assert second.text == RECORDS[1]["text"]
    assert second.id.startswith(f"corpus.{kind}:")
    assert second.source.startswith(str(path))
    assert (third.id, third.source, dict(third.metadata)) == ("7", "somewhere", {})
    assert corpus.position == corpus.size
    assert list(corpus) == [first, second, third], "a corpus can be read again"


def test_every_line_of_a_text_file_is_a_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n  two \nbad \xff byte\n")
    documents = list(read_documents(tmp_path / "a.txt"))
    assert [(d.id, d.text) for d in documents] == [
        ("a.txt:1", "one"),
        ("a.txt:3", "two"),
        ("a.txt:4", "bad \ufffd byte"),
    ]
    assert documents[1].source == f"{tmp_path / 'a.txt'}:3"


def test_a_folder_becomes_passages_with_path_and_lines(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/x.md", "sub/code.py"):
        (tmp_path / name).write_text("not this")
    (tmp_path / "sub" / "b.md").write_text(
        "# Top\nintro\n\n## Next ##\n\nfirst\nsecond\n\n```\n# no heading\n\nstill code\n```\n"
    )
    (tmp_path / "a.txt").write_text("# plain\n\nwords here\n")
    documents = list(read_documents(tmp_path))
    assert [(d.id, d.title) for d in documents] == [
        ("a.txt:1-3", None),
        ("sub/b.md:2-2", "Top"),
        ("sub/b.md:6-13", "Next"),
    ]
    lines = (tmp_path / "sub" / "b.md").read_text().split("\n")
    assert documents[2].text == "\n".join(lines[5:13]).replace("second\n\n```", "second\n```")
    assert documents[2].metadata == {"path": "sub/b.md", "first_line": 6, "last_line": 13}
    assert documents[2].source == f"{tmp_path / 'sub' / 'b.md'}:6-13"
    assert [d.id for d in read_documents(tmp_path / "sub" / "b.md")] == ["b.md:2-2", "b.md:6-13"]


@given(st.lists(st.sampled_from(["", "# head", "a b c", "one", "x " * 9, "```", "  "]), max_size=30), st.integers(1, 8))
def test_passages_hold_every_word_once_and_in_order(lines, words):
    passages = list(split_passages(lines, words, markdown=False))
    assert " ".join(p.text for p in passages).split() == " ".join(lines).split()
    assert all(len(p.text.split()) <= words for p in passages)
    places = [(p.first, p.last, p.part) for p in passages]
    assert len(set(places)) == len(places)
    assert places == sorted(places)
    for passage in passages:
        inside = " ".join(lines[passage.first - 1 : passage.last]).split()
        assert set(passage.text.split()) <= set(inside)
    for passage in split_passages(lines, words, markdown=True):
        assert 0 < len(passage.text.split()) <= words or not passage.text.strip()


BROKEN = {
    "jsonl": (
        b'{"text": "good"}\n{"text"\n[1]\n{"text": 3}\n{"text": " "}\n{"text": "\xff"}\n{"text": "fine"}\n',
        5,
        ":2",
    ),
    "csv": (b"id,text\na,good\nb,x,y\nc\nd,\ne,fine\n", 3, ":3"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_is_named_and_fatal_or_skipped(tmp_path, kind):
    content, broken, place = BROKEN[kind]
    path = tmp_path / f"c.{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"c\.{kind}{place} .*--on-error skip"):
        list(read_documents(path))
    corpus = read_documents(path, on_error="skip")
    assert [d.text for d in corpus] == ["good", "fine"]
    assert corpus.skipped == len(corpus.reports) == broken
    assert place in corpus.reports[0]
    assert "line 2 column" not in corpus.reports[0], "that is not a line of the file"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "no document"),
        ("a.jsonl", b"", "no document"),
        ("a.csv", b"id,body\n1,x\n", "'body'.*--field"),
        ("a.csv", b"", "--field"),
        ("a.parquet", b"PAR1 and then nothing", "truncated"),
        ("a.xyz", b"x", "known kind"),
    ],
)
def test_a_corpus_that_cannot_be_read_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_documents(tmp_path / name))


def test_a_corpus_must_exist_and_settings_make_sense(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no document"):
        list(read_documents(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="words=0"):
        read_documents(tmp_path, words=0)
    with pytest.raises(ValueError, match="'skip'"):
        read_documents(tmp_path, on_error="skp")
    (tmp_path / "b.JSONL").write_text('{"body": "x"}')
    assert [d.text for d in read_documents(tmp_path / "b.JSONL", field="body")] == ["x"]


def test_a_long_file_is_never_held_in_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(20_000)))
    corpus = read_documents(path)
    next(iter(corpus))
    assert corpus.position < 100
