"""GGUF headers, rows and vocabularies: equal to the gguf package's own, and damaged files are one clear line."""

import random
import struct
import sys
from pathlib import Path

import gguf_models
import numpy as np
import pico
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from lepmerge.errors import CheckpointError, LepmergeError
from lepmerge.models.gguf_file import STRING, GgufFile, build_gguf_header, field_of, split_paths
from lepmerge.models.gguf_tensor import GgufTensor, quantized, table_type
from lepmerge.tensors import Workspace

TYPES = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, english) -> Path:
    return pico.save_model(tmp_path_factory.mktemp("model"), english, width=64, dtype=torch.float32)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_headers_and_rows_equal_the_packages(tmp_path: Path, folder: Path, type: GGMLQuantizationType) -> None:
    path = gguf_models.save_gguf(folder, tmp_path / "model.gguf", type=type)
    file, peer = GgufFile(path), GGUFReader(path)
    values = {key: field.contents() for key, field in peer.fields.items() if not key.startswith("GGUF.")}
    assert values == {key: _plain(field.value) for key, field in file.fields.items()}
    assert [tensor.name for tensor in peer.tensors] == list(file.entries)
    for tensor in peer.tensors:
        ours = GgufTensor.of(tensor.name, file)
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        assert torch.equal(ours.rows().float(), expected.reshape(ours.num_rows, ours.row_width))
    table = GgufTensor.of("token_embd.weight", file)
    chosen = torch.tensor([7, 3, 3, 300])
    assert torch.equal(table.read(chosen, Workspace()), table.rows()[chosen])
    stored = peer.tensors[list(file.entries).index("token_embd.weight")].data.tobytes()
    if type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0):  # others round again
        assert quantized(table.rows(), type) == stored


def test_a_header_is_written_as_it_was_read(tmp_path: Path, folder: Path) -> None:
    path = gguf_models.save_gguf(folder, tmp_path / "model.gguf")
    file = GgufFile(path)
    tensors = {name: (entry.type, entry.shape) for name, entry in file.entries.items()}
    header, offsets = build_gguf_header(file.version, file.fields, tensors)
    assert path.read_bytes().startswith(header)
    assert offsets == {name: entry.start for name, entry in file.entries.items()}
    tokens = [*file.value("tokenizer.ggml.tokens"), "нов"]
    fields = {**file.fields, "tokenizer.ggml.tokens": field_of(8, tokens), "general.alignment": field_of(4, 64)}
    header, offsets = build_gguf_header(file.version, fields, tensors)
    assert len(header) % 64 == 0 and all(start % 64 == 0 for start in offsets.values())
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(header + bytes(path.stat().st_size))
    assert GgufFile(changed).value("tokenizer.ggml.tokens") == tokens
    assert GGUFReader(changed).fields["tokenizer.ggml.tokens"].contents() == tokens


def _edited(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"GGML" + data[4:], "not a GGUF file"),
        (lambda data: _edited(data, 4, struct.pack(">I", 3)), "big-endian"),
        (lambda data: _edited(data, 4, struct.pack("<I", 1)), "version 1"),
        (lambda data: _edited(data, 4, struct.pack("<I", 9)), "version 9"),
        (lambda data: data.replace(b"token_embd.weight", b"../../outside.wgt"), "'../../outside.wgt' is not"),
        (lambda data: data.replace(b"token_embd.weight", b"token_embd.weigh\n"), "not a plain name"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:100], "ends too early"),
        (lambda data: _edited(data, 8, struct.pack("<Q", 1 << 60)), "download it again"),
        (lambda data: _edited(data, 16, struct.pack("<Q", 1 << 60)), "download it again"),
        (lambda data: _edited(data, 24, struct.pack("<Q", 1 << 60)), "ends too early"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, folder: Path, damage, part: str) -> None:
    path = gguf_models.save_gguf(folder, tmp_path / "model.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=part) as raised:
        GgufFile(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def _mutations(tmp_path: Path, folder: Path, count: int) -> None:
    """Read this many mutated headers, of a file with a short vocabulary and three tensors."""
    whole = gguf_models.save_gguf(folder, tmp_path / "whole.gguf")
    fields = GgufFile(whole).fields
    short = {
        key: field_of(STRING, field.value[:20]) for key, field in fields.items() if key.endswith(("tokens", "merges"))
    }
    names = ["token_embd.weight", "blk.0.attn_norm.weight", "output_norm.weight"]
    path = gguf_models.rewrite(whole, tmp_path / "model.gguf", {**fields, **short}, names)
    good = path.read_bytes()
    header = GgufFile(path).data_start
    choose = random.Random(0)
    for _ in range(count):
        data = bytearray(good)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(header) if choose.random() < 0.5 else choose.randrange(200)
            width = choose.choice((1, 4, 8))
            data[at : at + width] = choose.choice((bytes(width), b"\xff" * width, choose.randbytes(width)))
        path.write_bytes(data[: choose.choice((len(data), len(data), choose.randrange(len(data))))])
        try:
            file = GgufFile(path)
            for name in file.entries:
                GgufTensor.of(name, file).rows(0, 1)
        except LepmergeError as error:
            assert "\n" not in str(error)


def test_mutated_headers_end_in_clean_errors(tmp_path: Path, folder: Path) -> None:
    _mutations(tmp_path, folder, 300)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_headers(tmp_path: Path, folder: Path) -> None:
    _mutations(tmp_path, folder, 100_000)


def test_split_files_are_found(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").touch()
    both = [tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"]
    assert split_paths(both[0]) == both
    both[1].unlink()
    with pytest.raises(CheckpointError, match="lacks m-00002-of-00002.gguf"):
        split_paths(both[0])
    assert split_paths(tmp_path / "plain.gguf") == [tmp_path / "plain.gguf"]


def test_a_quantized_table_needs_whole_blocks() -> None:
    assert table_type("q8_0", 64) == GGMLQuantizationType.Q8_0
    with pytest.raises(CheckpointError, match="use f16 or bf16"):
        table_type("q8_0", 40)


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_the_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    pico.assert_one_line_error(pico.command("inspect", file), 1, "need a package: pip install 'lepmerge[gguf]'")
