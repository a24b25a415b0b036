"""The corpus readers: every format gives the same texts, in the same order, and faults name file and line."""

import gzip
import json
from pathlib import Path

import pytest

from lepmerge.corpus import find_files, texts
from lepmerge.errors import CorpusError

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


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst"])
def test_formats(tmp_path: Path, kind: str) -> None:
    told = []
    path = written(tmp_path, kind)
    assert list(texts([path], progress=lambda what, count: told.append(count))) == TEXTS
    assert sum(told) == path.stat().st_size


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
        ("a.txt", b"ok\nabc\0def", "a.txt:2: a NUL byte"),
        ("a.txt", "привет".encode("cp1251"), "a.txt:1: not UTF-8 (byte 0xEF)"),
        ("a.jsonl", b'{"text": "x"}\n{', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"txt": "x"}', "no text under 'text', there is txt"),
        ("a.jsonl", b'{"text": 5}', "no text under 'text'"),
        ("a.txt.gz", b"not gzip", "a.txt.gz cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 10000)[:-20], "a.txt.gz is truncated"),
        ("a.parquet", b"not parquet", "a.parquet"),
        ("a.bin", b"x", "a.bin is not a text corpus"),
        ("a.txt", b"", "the corpus is empty"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_faults(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError) as caught:
        list(texts([tmp_path / name]))
    assert part in str(caught.value) and "\n" not in str(caught.value)


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
