"""lepmerge convert: a GGUF file becomes a model folder, and the command shows progress as the others do."""

from pathlib import Path

import gguf_models
import pico
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

from lepmerge.merge.convert import convert_gguf
from lepmerge.models.gguf_file import GgufFile


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder and its GGUF file; read-only for tests."""
    folder = tmp_path_factory.mktemp("made")
    model = pico.save_model(folder / "model", pico.byte_level(pico.ENGLISH, 330), width=64, dtype=torch.float32)
    file = gguf_models.save_gguf(model, folder / "pico.gguf", type=GGMLQuantizationType.F32)
    return {"model": model, "file": file}


def test_the_folder_holds_the_weights_of_the_file_and_nothing_but_its_name_is_printed(tmp_path: Path, made) -> None:
    result = pico.command("convert", made["file"], tmp_path / "out", "--dtype", "float32")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path / 'out'}\n", "")
    expected, found = (load_file(folder / "model.safetensors") for folder in (made["model"], tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    (tmp_path / "new").touch()
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode & 0o777}, modes


def test_progress_counts_the_bytes_of_all_tensors(tmp_path: Path, made) -> None:
    events: list[tuple[str, int]] = []
    convert_gguf(
        made["file"], tmp_path / "out", progress=lambda what, num_done, total=None: events.append((what, num_done))
    )
    *read, last = events
    entries = GgufFile(made["file"]).entries.values()
    assert [num_bytes for _, num_bytes in read] == [entry.num_bytes for entry in entries]
    assert {what for what, _ in read} == {"reading pico.gguf"} and last == ("writing out", 0)


def test_the_bar_of_transformers_is_back_afterwards(tmp_path: Path, made, capsys: pytest.CaptureFixture[str]) -> None:
    """Only lepmerge's own call of transformers is silent."""
    from transformers import AutoModelForCausalLM

    convert_gguf(made["file"], tmp_path / "out")
    assert capsys.readouterr().err == ""
    AutoModelForCausalLM.from_pretrained(made["file"].parent, gguf_file=made["file"].name)
    assert "de-quantizing" in capsys.readouterr().err
