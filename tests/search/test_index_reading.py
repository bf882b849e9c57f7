"""Corpora are read as they are, one document at a time, and broken lines are named."""

import csv
import json
import os
import re
import zipfile
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmoe_embed.search.reading.corpus import read_documents
from ssmoe_embed.search.reading.prose import split_passages
from ssmoe_embed.search.reading.records import ReadOptions
from ssmoe_embed.search.reading.tables import read_texts

RECORDS = [
    {"id": "a", "text": "one text", "title": "One", "year": 1999, "lang": "en"},
    {"text": "another, with a comma\nand a break", "year": 2001},
    {"id": 7, "text": "third", "source": "somewhere"},
]


def written(folder, kind):
    path = folder / f"corpus.{kind}"
    names = ["id", "text", "title", "year", "lang", "source"]
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
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
    assert second.id.startswith(f"{path}:")
    assert second.source.startswith(str(path))
    assert (third.id, third.source, dict(third.metadata)) == ("7", "somewhere", {})
    assert corpus.position == corpus.size
    assert list(corpus) == [first, second, third], "a corpus can be read again"


def test_every_line_of_a_text_file_is_a_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  two \nthree\rfour")
    assert [(d.id, d.text, d.source) for d in read_documents(path)] == [
        (f"{path}:{line}", text, f"{path}:{line}") for line, text in ((1, "one"), (3, "two"), (4, "three"), (5, "four"))
    ]


def test_a_folder_becomes_passages_with_path_lines_and_breadcrumbs(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/x.md", "sub/code.py"):
        (tmp_path / name).write_text("not this", encoding="utf-8")
    note = tmp_path / "sub" / "b.md"
    note.write_text(
        "# Top\nintro\n\n## Next ##\n\nfirst\nsecond\n\n```\n# no heading\n\nstill code\n```\n\nOther\n=====\nlast\n",
        encoding="utf-8",
    )
    (tmp_path / "a.txt").write_text("# plain\n\nwords here\n", encoding="utf-8")
    documents = list(read_documents(tmp_path))
    assert [(d.id, d.title) for d in documents] == [
        (f"{tmp_path / 'a.txt'}:1-3", "a"),
        (f"{note}:2-2", "b › Top"),
        (f"{note}:6-13", "b › Top › Next"),
        (f"{note}:17-17", "b › Other"),
    ]
    lines = note.read_text(encoding="utf-8").split("\n")
    assert documents[2].text == "\n".join(lines[5:13]).replace("second\n\n```", "second\n```")
    assert documents[2].metadata == {"path": str(note), "first_line": 6, "last_line": 13}
    assert documents[2].source == f"{note}:6-13"
    assert [(d.id, d.title) for d in read_documents(note)][:2] == [
        (f"{note}:2-2", "Top"),
        (f"{note}:6-13", "Top › Next"),
    ]


def test_several_files_and_folders_are_one_corpus_and_like_names_stay_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(f"text of {name}", encoding="utf-8")
        (tmp_path / name / "notes.md").write_text(f"# Setup\n\nmore of {name}", encoding="utf-8")
    sources = [
        tmp_path / "a" / "notes.txt",
        tmp_path / "b" / "notes.txt",
        tmp_path / "a",
        tmp_path / "b",
        tmp_path / "a",
    ]
    corpus = read_documents(*sources)
    documents = list(corpus)
    assert [d.text for d in documents] == ["text of a", "text of b", "more of a", "more of b"], "no file is read twice"
    assert len({d.id for d in documents}) == 4
    assert corpus.position == corpus.size == sum(path.stat().st_size for path in tmp_path.rglob("notes.*"))
    assert {d.id for d in read_documents(tmp_path / "a" / "notes.txt")} == {documents[0].id}


def test_what_cannot_be_read_in_a_folder_is_skipped_and_told_of(tmp_path):
    contents = {
        "good.md": b"fine",
        "empty.txt": b"",
        "blank.md": b"\n \n",
        "latin.txt": "caf\xe9".encode("latin-1"),
        "image.md": b"\x89PNG\0\0",
        "photo.png": b"\x89PNG\0\0",
        "code.py": b"print()",
        "other.csv": b"a,b\n1,2\n",
        "utf16.txt": "gr\xfc\xdfe".encode("utf-16"),
        "old.pdf": b"no pdf",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    corpus = read_documents(tmp_path)
    assert {d.text for d in corpus} == {"fine", "gr\xfc\xdfe"}
    reasons = {path.name: reason for path, reason in corpus.skipped_files}
    assert reasons.pop("other.csv").startswith("unreadable")
    assert reasons.pop("old.pdf").startswith("unreadable")
    assert reasons == {
        "empty.txt": "empty",
        "blank.md": "empty",
        "latin.txt": "not in utf-8",
        "image.md": "binary",
        "photo.png": "image",
        "code.py": "of another kind",
    }
    expected = "8 files skipped: 2 empty, 2 unreadable, 1 of another kind, 1 image, 1 binary, 1 not in utf-8"
    assert corpus.skipped_summary() == expected
    assert "caf\xe9" in {d.text for d in read_documents(tmp_path, encoding="latin-1")}


@pytest.mark.parametrize("kind", ["txt", "md", "jsonl", "csv"])
def test_text_of_any_encoding_is_read_right_or_named_by_its_line(tmp_path, kind):
    lines = {
        "txt": ["one", "na\xefve"],
        "md": ["# Head", "na\xefve"],
        "jsonl": ['{"text": "one"}', '{"text": "na\xefve"}'],
        "csv": ["text", "na\xefve"],
    }[kind]
    path = tmp_path / f"a.{kind}"

    def texts(end, written, **settings):
        path.write_bytes(end.join(lines).encode(written))
        return [(d.text, d.title) for d in read_documents(path, **settings)]

    expected = texts("\n", "utf-8")
    assert expected[-1][0] == "na\xefve"
    for end in ("\n", "\r\n", "\r"):
        for encoding in ("utf-8-sig", "utf-16", "utf-32"):
            assert texts(end, encoding) == expected, (end, encoding)
        assert texts(end, "latin-1", encoding="latin-1") == expected
        with pytest.raises(ValueError, match=rf"a\.{kind}:2 .*--encoding"):
            texts(end, "latin-1")
    assert texts("\n", "utf-16-le", encoding="utf-16-le") == expected
    with pytest.raises(ValueError, match=r"NUL characters.*utf-16-le"):
        texts("\n", "utf-16-le")
    with pytest.raises(ValueError, match="encoding='klingon' is not known"):
        read_documents(path, encoding="klingon")


def test_texts_come_out_of_a_pipe_as_out_of_a_file(tmp_path):
    content = "one\r\n\ntwo".encode("utf-8-sig")
    (tmp_path / "a.txt").write_bytes(content)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(content)
    with os.fdopen(reading, "rb") as pipe:
        assert list(read_texts(pipe, ReadOptions())) == ["one", "", "two"]
    assert list(read_texts(tmp_path / "a.txt", ReadOptions())) == ["one", "", "two"]


def test_front_matter_is_metadata_and_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "---\ntitle: A note\ntags: [x, y]\ndate: 2024-05-06\nid: 7\n---\nbefore\n\n# Head\nbody\n", encoding="utf-8"
    )
    first, second = read_documents(path)
    known = {"tags": ["x", "y"], "date": "2024-05-06", "path": str(path)}
    assert (first.title, first.text, first.metadata) == ("A note", "before", known | {"first_line": 7, "last_line": 7})
    assert (second.title, second.text, second.metadata["first_line"]) == ("A note › Head", "body", 10)
    path.write_text("---\ntitle: A note\n---\n# A note\nbody\n## More\nend\n", encoding="utf-8")
    assert [one.title for one in read_documents(path)] == ["A note", "A note › More"]
    for broken in ("---\na: [\n---\ntext\n", "---\ntext without end\n", "---\n- a list\n---\ntext\n"):
        path.write_text(broken, encoding="utf-8")
        assert "text" in " ".join(d.text for d in read_documents(path))


def test_pages_word_and_pdf_files_are_read(tmp_path):
    page = tmp_path / "page.html"
    page.write_bytes(
        "<html><head><meta charset=latin-1><title>Shop</title><script>var x</script></head>"
        "<body><p>Willkommen f\xfcr alle</p>"
        "<h2>Prices</h2><p>Two <b>apples</b> &amp; a pear.</p></body></html>".encode("latin-1")
    )
    assert [(d.title, d.text) for d in read_documents(page)] == [
        ("Shop", "Willkommen f\xfcr alle"),
        ("Shop › Prices", "Two **apples** & a pear."),
    ]
    word = tmp_path / "letter.docx"
    body = "<w:p><w:r><w:t>Hello you.</w:t></w:r></w:p>"
    names = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006/"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    with zipfile.ZipFile(word, "w") as archive:
        archive.writestr("word/document.xml", f'<w:document xmlns:w="{names}"><w:body>{body}</w:body></w:document>')
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}relationships">'
            f'<Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>',
        )
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{package}content-types"/>')
    assert [d.text for d in read_documents(word)] == ["Hello you."]
    pdf = tmp_path / "two.pdf"
    with plt_pdf(pdf) as pages:
        pages("First page")
        pages("Second page")
    assert [(d.text, d.metadata["page"], d.source) for d in read_documents(pdf)] == [
        ("First page", 1, f"{pdf}:p1:1-1"),
        ("Second page", 2, f"{pdf}:p2:1-1"),
    ]
    for path in (word, pdf):
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ValueError, match=f"{path.name} is no "):
            list(read_documents(path))


@contextmanager
def plt_pdf(path):
    """A PDF file whose pages show a text each."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(path) as pages:

        def page(text):
            figure = Figure()
            figure.text(0.1, 0.5, text)
            pages.savefig(figure)

        yield page


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.search.reading.records.find_spec", lambda name: None)
    for name, package in {
        "a.html": "markdownify",
        "a.docx": "mammoth",
        "a.pdf": "pypdf",
        "a.parquet": "pyarrow",
    }.items():
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"needs {package}: pip install"):
            list(read_documents(tmp_path / name))
    with pytest.raises(ValueError, match=r"4 files skipped: .*needs"):
        list(read_documents(tmp_path))


IDS = [
    ([1, 2], ["1", "2"]),
    (["a", 1.5, -2], ["a", "1.5", "-2"]),
    ([1, "x"], ["1", "x"]),
    ([1, "1"], ":2 has id='1', while other ids"),
    (["1", 1], ":2 has id=1, while other ids"),
    ([{"a": 1}], ":1 has id={'a': 1}, which is neither text nor a number"),
    ([[1]], "neither text nor a number"),
    ([True], "neither text nor a number"),
]


@pytest.mark.parametrize("name", ["id", "_id"])
@pytest.mark.parametrize(("given", "expected"), IDS)
def test_ids_are_texts_or_numbers_and_never_merge_silently(tmp_path, name, given, expected):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({name: one, "text": "x"}) for one in given), encoding="utf-8")
    if isinstance(expected, list):
        assert [(d.id, d.metadata) for d in read_documents(path)] == [(one, {}) for one in expected]
    else:
        with pytest.raises(ValueError, match=re.escape(expected)):
            list(read_documents(path))


def test_values_that_json_does_not_have_are_missing_or_broken(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "n": NaN, "m": 1, "metadata": {"k": 2}}\n{"text": "b", "n": Infinity}\n{"text": "c", "n": 1e999}',
        encoding="utf-8",
    )
    corpus = read_documents(path, on_error="skip")
    [document] = corpus
    assert document.metadata == {"m": 1, "k": 2}
    assert len(corpus.reports) == 2
    pq.write_table(pa.table({"text": ["x"], "n": [float("nan")]}), tmp_path / "a.parquet")
    [document] = read_documents(tmp_path / "a.parquet")
    assert document.metadata == {}


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
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="words=0"):
        read_documents(tmp_path, words=0)
    with pytest.raises(ValueError, match="'skip'"):
        read_documents(tmp_path, on_error="skp")
    (tmp_path / "b.JSONL").write_text('{"body": "x"}', encoding="utf-8")
    assert [d.text for d in read_documents(tmp_path / "b.JSONL", field="body")] == ["x"]


def test_a_long_file_is_never_held_in_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(20_000)), encoding="utf-8")
    corpus = read_documents(path)
    next(iter(corpus))
    assert corpus.position < 2**16
