"""The corpus readers: every format gives the same texts, in the same order, and faults name file and line."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pico
import pytest

from lepmerge.corpus import find_files, texts
from lepmerge.errors import CorpusError
from lepmerge.text_files import Counts

TEXTS = ["Первый абзац,\nв две строки.", "Второй: ёлка 🎄", "third"]


def written(folder: Path, kind: str, values: list[str] = TEXTS, column: str = "text") -> Path:
    path = folder / f"corpus{kind}"
    if kind.startswith(".txt"):
        data = "\n\n".join(values).encode()
    else:
        data = "\n".join(json.dumps({column: value}, ensure_ascii=False) for value in values).encode()
    if kind == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.table({column: values}), path)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress(data))
    elif kind.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(data))
    else:
        path.write_bytes(data)
    return path


ROWS = [
    {"doc": {"text": "Первый абзац,\r\nв две строки."}},
    {"doc": {"text": None}},
    {"doc": None},
    {"doc": {"text": ""}},
    {"doc": {"text": " \n"}},
    {"doc": {"text": "один\0ноль"}},
    {"doc": {"text": "Второй: ёлка 🎄"}},
]


def rows_as(folder: Path, kind: str) -> Path:
    """Write ROWS as .jsonl, where an absent field is not written, or as .parquet."""
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.table({"doc": [row["doc"] for row in ROWS]}), path)
    else:
        plain = [{"doc": {k: v for k, v in (row["doc"] or {}).items() if v is not None}} for row in ROWS]
        path.write_text("".join(json.dumps(row) + "\n" for row in plain))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_rows_without_text_are_skipped_and_counted_alike_in_every_format(tmp_path: Path, kind: str) -> None:
    counts = Counts()
    found = list(texts([rows_as(tmp_path, kind)], column="doc.text", counts=counts))
    assert found == [ROWS[0]["doc"]["text"], ROWS[-1]["doc"]["text"]]
    assert counts == Counts(2, 2, Counter({"null": 2, "empty": 2, "with NUL characters": 1}))
    assert counts.skipped_summary() == "skipped 5 of 7 texts: 2 empty, 2 null, 1 with NUL characters"


def test_a_column_of_lists_and_a_missing_nested_column_are_named_in_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [["x"], ["y"]], "doc": [{"ru": "x"}, {"ru": "y"}]}), path)
    for column, part in (
        ("text", "a.parquet:1: 'text' holds a list"),
        ("doc", "a.parquet:1: 'doc' holds an object, not a text: name a field of it, such as --column doc.ru"),
        ("doc.de", "a.parquet: no column 'doc.de', there is text, doc: name one with --column"),
        ("text.x", "a.parquet: no column 'text.x'"),
    ):
        with pytest.raises(CorpusError) as caught:
            list(texts([path], column=column))
        assert part in str(caught.value)


def test_unpaired_surrogates_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "\\ud83c\\udf84"}\n')
    counts = Counts()
    assert list(texts([tmp_path / "a.jsonl"], counts=counts)) == ["🎄"]
    assert counts.skipped == {"with unpaired surrogates": 1}


@pytest.mark.parametrize("data", ["\n\n".join(TEXTS).replace("\n", "\r\n"), "\ufeff" + "\n\n".join(TEXTS)])
def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.txt").write_bytes(data.encode())
    counts = Counts()
    assert list(texts([tmp_path / "a.txt"], counts=counts)) == TEXTS
    assert (counts.documents, counts.texts) == (1, 3)


def test_the_same_rows_give_the_same_tokenizer_and_the_same_report_of_the_corpus(tmp_path: Path, english) -> None:
    pico.save_model(tmp_path / "base", english)
    outputs = []
    for kind in (".jsonl", ".parquet"):
        folder = tmp_path / kind[1:]
        folder.mkdir()
        sources = [rows_as(folder, kind)]
        options = ["--column", "doc.text", "--add", "3", "-o", folder / "new"]
        result = pico.command("tokenizer", "extend", tmp_path / "base", *sources, *options)
        assert result.exit_code == 0, result.stderr
        line = "corpus: 2 documents, 2 texts; skipped: 2 empty, 2 null, 1 with NUL characters"
        assert result.stdout.splitlines()[0] == line
        outputs.append(pico.contents(folder / "new"))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst"])
def test_formats(tmp_path: Path, kind: str) -> None:
    reported = []
    path = written(tmp_path, kind)
    assert list(texts([path], progress=lambda what, count: reported.append(count))) == TEXTS
    assert sum(reported) == path.stat().st_size


def test_folders_globs_and_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.jsonl", "a.txt", "b/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}' if name.endswith("jsonl") else name)
    assert list(texts([tmp_path])) == ["a.txt", "b/1.jsonl", "b/2.txt"]
    assert [path.name for path in find_files([f"{tmp_path}/**/*.txt", tmp_path / "a.txt"])] == ["a.txt", "2.txt"]


def test_limit_counts_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, ".txt")
    sizes = [len(text.encode()) for text in TEXTS]
    assert list(texts([path], limit=sizes[0] + sizes[1])) == TEXTS[:2]
    assert list(texts([path], limit=sizes[0] + sizes[1] - 1)) == TEXTS[:1]


def test_endless_paragraph_is_cut_at_lines(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("слово и слово\n" * 200_000)
    found = list(texts([tmp_path / "long.txt"]))
    assert len(found) > 2 and max(map(len, found)) < 1.1 * (1 << 20)
    assert "\n".join(found).count("слово") == 400_000


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.txt", "привет".encode("utf-16"), "a.txt:1: UTF-16 text, not UTF-8: convert it with iconv -f UTF-16 -t"),
        (
            "a.txt",
            "два слова и ещё два\n".encode("utf-16-le"),
            "a.txt:1: UTF-16LE text, not UTF-8: convert it with iconv -f UTF",
        ),
        ("a.jsonl.gz", gzip.compress("{    }\n".encode("utf-16-be")), "a.jsonl.gz:1: UTF-16BE text, not UTF-8"),
        ("a.txt", "привет".encode("cp1251"), "a.txt:1: not UTF-8 (byte 0xEF): convert it, such as with iconv -f WIND"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xd0\xbf\xd1"}', "a.jsonl:2: not UTF-8 (byte 0xD1)"),
        (
            "a.txt",
            b"\0\n\n  \n\n\0",
            "the corpus is empty: no text in it (skipped 2 of 2 texts: 2 with NUL characters)",
        ),
        (
            "a.jsonl",
            b'{"text": "x"}\n{',
            "a.jsonl:2: not JSON on this line alone: convert the file to one object per line with jq -c .",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y" * 2}', "a.jsonl:2: not JSON"),
        (
            "a.jsonl",
            b'[{"text": "x"}]',
            "a.jsonl:1: a JSON array, not one object per line: convert it with jq -c '.[]'",
        ),
        ("a.jsonl", b'[\n {"text": "x"}\n]', "a.jsonl:1: a JSON array, not one object per line"),
        (
            "a.json",
            b'[{"text": "x"}]',
            "a.json is not a text corpus: expected .txt, .jsonl, .parquet, also with .gz or",
        ),
        ("a.jsonl", b'"x"', "a.jsonl:1: 'x' is not an object such as {\"text\": …}"),
        ("a.jsonl", b'{"txt": "x"}', "a.jsonl:1: no column 'text', there is txt: name one with --column"),
        ("a.jsonl", b'{"text": 5}', "a.jsonl:1: 'text' holds 5, not a text: name another field with --column"),
        ("a.jsonl", b'{"text": ["x"]}', "a.jsonl:1: 'text' holds a list, not a text: join its parts"),
        (
            "a.jsonl",
            b'{"text": {"ru": "x"}}',
            "a.jsonl:1: 'text' holds an object, not a text: name a field of it, such as --column text.ru",
        ),
        ("a.txt.gz", b"not gzip", "a.txt.gz cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 10000)[:-20], "a.txt.gz is truncated"),
        ("a.parquet", b"not parquet", "a.parquet"),
        ("a.bin", b"x", "a.bin is not a text corpus"),
        ("a.csv", b"text\nx", "; convert it with pandas.read_csv(…).to_parquet(…)"),
        (
            "a.jsonl",
            b'{"text": "x"}\r{"text": "y"}\r',
            "a.jsonl:1: lines that end with a carriage return only: convert them with tr '\\r' '\\n'",
        ),
        ("a.txt", b"", "the corpus is empty"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_faults(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError) as caught:
        list(texts([tmp_path / name]))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("nowhere.txt")
    (tmp_path / "b.txt").write_text("text")
    for source in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(CorpusError, match=r"a.txt is a link to nowhere.txt, which does not exist"):
            find_files([source])


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train_de.jsonl").touch()
    with pytest.raises(CorpusError, match=r"train_d.jsonl: no such file.*did you mean train_de.jsonl\?"):
        list(texts([tmp_path / "train_d.jsonl"]))


@pytest.mark.parametrize("source", ["nowhere", "no*.txt", "."])
def test_nothing_there(tmp_path: Path, monkeypatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError):
        find_files([source])


def test_data_set_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the local cache, as huggingface_hub lays it out; files of the split only."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "datasets--someone--texts"
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"):
        path = repo / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert list(texts(["someone/texts"], split="train")) == ["data/train-00000-of-00001.jsonl"]
    assert len(list(texts(["someone/texts"]))) == 2
    with pytest.raises(CorpusError, match="of split 'dev'"):
        list(texts(["someone/texts"], split="dev"))
    with pytest.raises(CorpusError, match="someone/other: no such file or folder"):
        list(texts(["someone/other"]))
