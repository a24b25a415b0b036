"""lepmerge reads the files of the safetensors library row by row, and the library reads lepmerge's. Damage is named."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import same_bits
from safetensors.torch import load_file, save_file

from lepmerge.errors import CheckpointError
from lepmerge.models.safetensors_io import SafetensorsFile, StoredTensor, build_header, to_bytes
from lepmerge.output.staging import write_all
from lepmerge.tensors import Workspace

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # fmt: skip
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tables = st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(list(DTYPES)), shapes), max_size=5)


def random_tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    count = int(torch.Size(shape).numel()) * DTYPES[dtype].itemsize
    data = torch.randint(0, 2 if dtype == "BOOL" else 256, (count,), dtype=torch.uint8)
    return data.view(DTYPES[dtype]).view(shape)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_read_what_the_library_writes(tmp_path_factory, table) -> None:
    path = tmp_path_factory.mktemp("io") / "x.safetensors"
    tensors = {name: random_tensor(*entry) for name, entry in table.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.entries) == set(tensors) and file.metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        assert same_bits(StoredTensor.of(name, file).whole(), tensor)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_the_library_reads_what_is_written(tmp_path_factory, table) -> None:
    path = tmp_path_factory.mktemp("io") / "x.safetensors"
    tensors = {name: random_tensor(*entry) for name, entry in table.items()}
    header = build_header({name: (dtype, shape) for name, (dtype, shape) in table.items()}, {"format": "pt"})
    with path.open("wb") as file:
        write_all(file.fileno(), header.encoded)
        for name in header.entries:
            write_all(file.fileno(), to_bytes(tensors[name]))
    assert path.stat().st_size == header.file_size
    found = load_file(path)
    assert set(found) == set(tensors) and all(same_bits(found[name], tensors[name]) for name in tensors)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, 29), max_size=40), start=st.integers(0, 30), stop=st.integers(0, 30))
def test_chosen_rows_in_any_order(tmp_path_factory, rows: list[int], start: int, stop: int) -> None:
    path = tmp_path_factory.mktemp("io") / "x.safetensors"
    table = torch.randn(30, 7).to(torch.bfloat16)
    save_file({"a": torch.zeros(3), "table": table}, path)
    stored = StoredTensor.of("table", SafetensorsFile(path))
    chosen = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(stored.read(chosen, Workspace()), table[chosen])
    assert torch.equal(stored.read(range(start, max(start, stop)), Workspace()), table[start : max(start, stop)])


def write(path: Path, header: object, data: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "part"),
    [
        (b"not json", b"", "header"),
        ([], b"", "header"),
        ({"a": 5}, b"", "a"),
        ({"a": entry(0, 8)}, b"1234567", "truncated"),
        ({"a": entry(0, 8)}, b"123456789", "expected"),
        ({"a": entry(0, 9)}, b"123456789", "a"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12, "b"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, b"x" * 20, "b"),
        ({"a": entry(0, 8, dtype="F33")}, b"x" * 8, "F33"),
        ({"a": entry(0, 8, shape=(-1, -2))}, b"x" * 8, "a"),
        ({"a": entry(8, 0)}, b"x" * 8, "a"),
        ({"a": {"dtype": "F32"}}, b"x" * 8, "a"),
    ],
    ids=str,
)
def test_damaged_files(tmp_path: Path, header, data: bytes, part: str) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value) and part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [10**6, 2**63, 0])
def test_header_length_that_lies(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry(0, 8)}, b"x" * 8, length=length)
    with pytest.raises(CheckpointError, match="x.safetensors"):
        SafetensorsFile(path)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_one_changed_byte_of_the_header_never_crashes(tmp_path_factory, place: int, value: int) -> None:
    path = tmp_path_factory.mktemp("io") / "x.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, path)
    data = bytearray(path.read_bytes())
    data[place % (len(data) - 40)] = value
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        for name in file.entries:
            StoredTensor.of(name, file).whole()


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(100, 100)}, path)
    stored = StoredTensor.of("a", SafetensorsFile(path))
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="became shorter"):
        stored.whole()
