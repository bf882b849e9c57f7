"""The `ssmoe` command, as a user types it."""

import io
import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ssmoe_embed
from ssmoe_embed.embedding.streaming import VectorFormat, encode_stream

LINES = ["hello world", "", "the cat sat on the mat", "café", "It rains."]


@pytest.mark.parametrize("command", [[], ["search"], ["encode"], ["build"], ["info"]])
def test_help_says_what_every_command_does(ssmoe, command):
    status, out, _ = ssmoe(*command, "--help")
    assert status == 0
    assert "Usage: ssmoe" in out
    assert "Options" in out


def test_encode_reads_standard_input_and_writes_npy(ssmoe, built, loaded):
    ran = ssmoe("encode", "--model", built, "--batch-size", 2, stdin="\n".join(LINES).encode())
    assert ran.status == 0
    vectors = np.load(io.BytesIO(ran.data))
    np.testing.assert_allclose(vectors, loaded.encode(LINES), atol=1e-5)
    assert f"5 vectors of {vectors.shape[1]} dimensions" in ran.err


@pytest.mark.parametrize("kind", ["npy", "jsonl", "parquet"])
def test_encode_writes_every_format_by_its_ending(ssmoe, built, loaded, tmp_path, kind):
    (tmp_path / "in.txt").write_text("\n".join(LINES), encoding="utf-8")
    target = tmp_path / f"out.{kind}"
    status, _, _ = ssmoe("encode", tmp_path / "in.txt", "-o", target, "--model", built, "--method", "ev", "--normalize")
    assert status == 0
    if kind == "npy":
        vectors = np.load(target)
    elif kind == "jsonl":
        records = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert [record["text"] for record in records] == LINES
        vectors = np.array([record["embedding"] for record in records])
    else:
        table = pq.read_table(target)
        assert table["text"].to_pylist() == LINES
        vectors = np.array(table["embedding"].to_pylist())
    expected = ssmoe_embed.load(built, method="ev", progress=False).encode(LINES, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_encode_counts_a_file_before_it_loads_the_model(ssmoe, built, tmp_path):
    (tmp_path / "in.txt").write_bytes("\n".join([*LINES, "broken \xff"]).encode("latin-1"))
    ran = ssmoe("encode", tmp_path / "in.txt", "-o", tmp_path / "x.npy", "--model", "no/such-model")
    assert "in.txt:4 has bytes" in ran.err.replace("\n", "")
    ran = ssmoe("encode", tmp_path / "in.txt", "-o", tmp_path / "x.npy", "--model", built, "--on-error", "skip")
    assert ran.err.count("Skipped") == 2
    assert "4/4" in ran.err


@pytest.mark.parametrize(
    "case",
    [
        ("every line written so far is whole.", "--format", "jsonl"),
        ("nothing was written, since this output is made whole; --format jsonl",),
        ("nothing was written", "-o", "x.jsonl"),
    ],
)
def test_an_interrupted_encode_says_what_is_left(ssmoe, built, tmp_path, monkeypatch, case):
    said, *arguments = case
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssmoe_embed.embedding.streaming.CHUNK_BATCHES", 1)
    encode = ssmoe_embed.EmbeddingModel.encode

    def interrupted(self, texts, **options):
        if "third" in texts:
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    monkeypatch.setattr(ssmoe_embed.EmbeddingModel, "encode", interrupted)
    ran = ssmoe("encode", "--model", built, "--batch-size", 2, *arguments, stdin=b"first\nsecond\nthird")
    assert ran.status == 130
    assert said in ran.err.replace("\n", " ")
    assert len(ran.data.splitlines()) == (2 if "every line" in said else 0)
    assert list(tmp_path.iterdir()) == []


def test_encode_takes_a_field_of_json_lines(ssmoe, built, loaded, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"body": line}) for line in LINES), encoding="utf-8")
    ran = ssmoe("encode", tmp_path / "in.jsonl", "--field", "body", "--model", built)
    assert ran.status == 0
    np.testing.assert_allclose(np.load(io.BytesIO(ran.data)), loaded.encode(LINES), atol=1e-5)
    status, _, err = ssmoe("encode", tmp_path / "in.jsonl", "-o", tmp_path / "x.npy", "--model", built)
    assert status == 1
    assert "in.jsonl:1 has no text under 'text'" in "".join(err.split("\n"))
    assert "--field" in err
    assert not (tmp_path / "x.npy").exists()


def test_no_texts_give_an_empty_array(loaded):
    output = io.BytesIO()
    assert encode_stream(loaded, [], output, VectorFormat.NPY, progress=False) == 0
    assert np.load(io.BytesIO(output.getvalue())).shape == (0, loaded.get_embedding_dimension())


def test_a_stream_is_never_held_in_memory(loaded):
    """At most the texts of one chunk are taken before their vectors are written."""
    taken, written = 0, []

    def texts():
        nonlocal taken
        for number in range(100):
            taken += 1
            yield f"text {number}"

    class Output(io.BytesIO):
        def write(self, data):
            written.append(taken)
            return super().write(data)

    encode_stream(loaded, texts(), Output(), VectorFormat.JSONL, batch_size=1, progress=False)
    assert written[0] == 32
    assert taken == 100


def test_int8_is_refused_in_a_stream(loaded):
    with pytest.raises(ValueError, match="range of all vectors"):
        encode_stream(loaded, ["a"], io.BytesIO(), VectorFormat.NPY, precision="int8", progress=False)


def test_build_makes_a_small_repository_that_loads(ssmoe, olmoe, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(LINES), encoding="utf-8")
    arguments = (
        "build",
        olmoe,
        "-o",
        tmp_path / "made",
        "--top-c",
        "0.2",
        "--calibration-texts",
        tmp_path / "texts.txt",
    )
    status, _, err = ssmoe(*arguments, "--prompt", "prompteol", "--alpha", "0.7", "--license", "apache-2.0")
    assert status == 0
    assert "MB" in err
    model = ssmoe_embed.load(tmp_path / "made", progress=False)
    assert (model[0].settings.alpha, model[0].settings.prompt) == (0.7, "prompteol")
    assert model[0].routers.settings.top_c == 0.2
    status, _, err = ssmoe(*arguments)
    assert status == 1
    assert "--overwrite" in err


def test_a_warning_of_the_package_is_one_line_without_its_code(ssmoe, olmoe, tmp_path):
    ran = ssmoe(
        "build", olmoe, "-o", tmp_path / "m", "--top-c", 5000, "--calibration", "none", "--method", "ev", "--quiet"
    )
    assert ran.status == 0
    [told] = [line for line in ran.err.splitlines() if "top_c" in line]
    assert told.startswith("Warning: top_c=5000")
    assert ".py" not in ran.err


def test_a_warning_is_told_once_whatever_libraries_do_to_the_filters(ssmoe, tmp_path, monkeypatch):
    def build(*_, **__):
        for line in (1, 2):
            warnings.simplefilter("always")
            warnings.warn_explicit("top_c is large", UserWarning, ssmoe_embed.__file__, line)
        return tmp_path

    monkeypatch.setattr("ssmoe_embed.hub.models.build", build)
    for _ in range(2):
        assert ssmoe("build", "base", "-o", tmp_path).err.count("Warning: top_c is large") == 1


@pytest.mark.parametrize("kind", ["csv", "parquet", "ndjson"])
def test_encode_reads_the_texts_of_every_kind_that_index_reads(ssmoe, built, loaded, tmp_path, kind):
    path = tmp_path / f"in.{kind}"
    if kind == "csv":
        path.write_text(
            "id,text\n" + "".join(f'{number},"{line}"\n' for number, line in enumerate(LINES)), encoding="utf-8"
        )
    elif kind == "parquet":
        pq.write_table(pa.table({"text": LINES, "n": range(len(LINES))}), path)
    else:
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES), encoding="utf-8")
    ran = ssmoe("encode", path, "--model", built)
    assert ran.status == 0, ran.err
    np.testing.assert_allclose(np.load(io.BytesIO(ran.data)), loaded.encode(LINES), atol=1e-5)


def test_encode_knows_encodings_marks_and_line_ends(ssmoe, built, loaded, tmp_path):
    path, expected = tmp_path / "in.txt", loaded.encode(LINES)

    def encoded(content, *options, stdin=False):
        path.write_bytes(content)
        arguments = ("encode", *(() if stdin else (path,)), "--model", built, *options)
        ran = ssmoe(*arguments, stdin=content)
        return np.load(io.BytesIO(ran.data)) if ran.status == 0 else " ".join(ran.err.split())

    for content, *options in (
        ("\r".join(LINES).encode("utf-8-sig"),),
        ("\r\n".join(LINES).encode("utf-16"),),
        ("\n".join(LINES).encode("latin-1"), "--encoding", "latin-1"),
    ):
        for stdin in (False, True):
            np.testing.assert_allclose(encoded(content, *options, stdin=stdin), expected, atol=1e-5)
    broken = "\n".join(LINES).encode("latin-1")
    assert ":4 has bytes that are no characters of its encoding" in encoded(broken)
    left = encoded(broken, "--on-error", "skip")
    np.testing.assert_allclose(left, np.delete(expected, 3, axis=0), atol=1e-5)
    assert "NUL" in encoded("\n".join(LINES).encode("utf-16-le"), stdin=True)


def test_search_reads_what_index_reads_and_prints_titles_and_json(ssmoe, built, tmp_path):
    (tmp_path / "c.csv").write_text(
        "title,text,lang\nTitle the cat,the cat,en\nTitle a soup,a soup,fr\n", encoding="utf-8"
    )
    arguments = ("search", "cat", "--corpus", tmp_path / "c.csv", "--model", built)
    status, out, _ = ssmoe(*arguments)
    assert status == 0
    assert "Title the cat" in out
    assert "Title a soup" in out
    status, out, _ = ssmoe(*arguments, "--json", "-k", 1)
    assert status == 0
    [line] = out.splitlines()
    names = {"score", "similarity", "words", "weak", "id", "title", "text", "source", "metadata", "best_sentence"}
    assert set(json.loads(line)) == names
    for mode in ("--hybrid", "--vectors-only", "--words-only"):
        _, out, _ = ssmoe(*arguments, "--json", mode, "--filter", "lang=en", "--explain")
        [line] = out.splitlines()
        assert json.loads(line)["metadata"] == {"lang": "en"}


def test_info_shows_the_settings(ssmoe, built):
    status, out, _ = ssmoe("info", built)
    assert status == 0
    assert "alpha" in out
    assert "parameters" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "x", "--method", "smo"), "Did you mean 'smoe'"),
        (("search", "x", "--alpha", "2"), "outside [0, 1]"),
        (("search", "x", "--model", "no/such"), "no recipe of that name"),
        (("encode", "--format", "cvs"), "'parquet'"),
        (("encode", "/no/such/file.txt"), "There is no input file"),
    ],
)
def test_a_bad_input_gives_one_message_and_no_traceback(ssmoe, built, arguments, message):
    if "--model" not in arguments:
        arguments = (*arguments, "--model", built)
    status, out, err = ssmoe(*arguments)
    assert status == 1
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err
