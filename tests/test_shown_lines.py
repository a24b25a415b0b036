"""What `plan`, `diff` and `train --dry-run` print, line by line, against their JSON; and errors of a comparison."""

import json
import re
import shutil
from math import sqrt
from pathlib import Path

import pico
import pytest
import torch
import training
from safetensors.torch import load_file, save_file

from lepmerge.comparison.compare import Settings, compare
from lepmerge.comparison.loading import load_model
from lepmerge.comparison.texts import measure_texts, read_text
from lepmerge.progress import human_bytes


def printed(*command: object) -> tuple[dict, list[str]]:
    """Return the JSON of a command, and the lines that it prints without --json."""
    found, shown = pico.command(*command, "--json"), pico.command(*command)
    assert found.exit_code == shown.exit_code == 0, found.stderr
    return json.loads(found.stdout), shown.stdout.splitlines()


def test_the_lines_of_a_plan(tmp_path: Path, english, setting: dict[str, Path]) -> None:
    shards = pico.split(Path(shutil.copytree(setting["instruct"], tmp_path / "instruct")))
    tied = pico.save_model(tmp_path / "tied", english, tied=True)
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", **{**setting, "instruct": shards, "tied": tied})
    found, lines = printed("plan", recipe)
    models = [
        f"model     {name}: {model['folder']} ({model['rows']} rows{', tied' if model['tied'] else ''})"
        for name, model in found["models"].items()
    ]
    assert [line for line in lines if line.startswith("model ")] == models
    assert [line.endswith(", tied)") for line in models] == [False, False, False, True]
    first = [f"first     {r['kind']} of {r['of']}, from {human_bytes(r['bytes'])}" for r in found["reductions"]]
    assert [line for line in lines if line.startswith("first ")] == first and len(first) == 2
    assert all(r["bytes"] != found["bytes"]["read"] for r in found["reductions"])
    files = [[f["file"], f["action"], human_bytes(f["bytes"]), ", ".join(f["computed"])] for f in found["files"]]
    shown = [re.split(" {2,}", line.strip()) for line in lines if line.startswith("model-0000")]
    assert shown == [[cell for cell in row if cell] for row in files] and len({row[2] for row in shown}) > 1
    (total,) = (line for line in lines if line.startswith("reads "))
    sizes = {key: human_bytes(value) for key, value in found["bytes"].items()}
    free = re.search(r"\(([\d.]+ \wB) free\)", total)
    assert free is not None and total == (
        f"reads {sizes['read']} for {sizes['computed']} computed, copies {sizes['copied']}, writes {sizes['written']} "
        f"({free[1]} free), memory at most about {sizes['memory']}"
    )
    number, unit = free[1].split()
    assert float(number) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[unit] == pytest.approx(found["free_disk"], rel=0.1)


def test_the_lines_of_a_diff(tmp_path: Path, english) -> None:
    """The shape of A comes first. A change from zero is infinite."""
    a, b = (pico.save_model(tmp_path / name, english) for name in "ab")
    zeros, norm = "model.layers.0.input_layernorm.weight", "model.norm.weight"
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    first[zeros] = torch.zeros_like(first[zeros])
    second[norm] = torch.zeros(3, dtype=torch.bfloat16)
    for folder, tensors in ((a, first), (b, second)):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lines = pico.command("diff", a, b).stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("model.")}
    assert rows == {zeros: ["changed", "[16]", "[16]", "inf"], norm: ["shape", "[16]", "[3]"]}
    assert lines[-1] == f"{len(first) - 2} further tensors are equal"


def test_the_lines_of_an_estimate(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    options = ("--device", "cpu", "--set", "offload=optimizer")
    found, lines = printed("train", path, "--dry-run", *options)
    shown = {line.split()[0]: line for line in lines if line.strip()}
    assert shown["compute"] == (
        f"compute   {found['flop']:.2e} FLOP, {found['flop_per_token'] / 1e9:.3g} GFLOP per token"
    )
    assert found["flop"] == pytest.approx(found["flop_per_token"] * found["tokens"], rel=1e-3)
    parts = ", ".join(
        f"{part} {human_bytes(size)}" for part, size in found["memory"].items() if size and part != "total"
    )
    assert shown["memory"].startswith("memory ") and f"{human_bytes(found['memory']['total'])}: {parts}" in "\n".join(
        lines
    )
    assert shown["host"] == f"host      about {human_bytes(found['host_memory'])} for masters and optimizer"
    assert found["host_memory"] != found["memory"]["total"]


def test_the_error_of_a_difference_in_bits_and_the_counts_of_a_text(tmp_path: Path, setting: dict[str, Path]) -> None:
    """The standard error of a ratio of sums over the pieces, with n - 1."""
    path = tmp_path / "ru.txt"
    path.write_text("\n\n".join(pico.RUSSIAN * 9))
    models = [load_model(setting["instruct"], name="old"), load_model(setting["base"], name="new")]
    results = compare(models, {"ru": [str(path)]}, settings=Settings(max_bytes=1500, copies=0, speed=False))
    piece_bytes = results["settings"]["piece_bytes"]
    text = read_text("ru", [str(path)], column="text", max_bytes=1500, piece_bytes=piece_bytes)
    old, new = (measure_texts(model, [text])["ru"].bits for model in models)
    lengths = [len(piece.encode()) for piece in text.pieces]
    deltas = [float(b.sum() - a.sum()) for a, b in zip(old, new, strict=True)]
    ratio, count = sum(deltas) / sum(lengths), len(lengths)
    rest = [delta - ratio * length for delta, length in zip(deltas, lengths, strict=True)]
    error = sqrt(count / (count - 1) * sum(each**2 for each in rest)) / sum(lengths)
    found = results["models"]["new"]["texts"]["ru"]
    assert 1 < count < 99 and found["bits_per_byte_difference"] == pytest.approx(ratio)
    assert found["bits_per_byte_difference_error"] == pytest.approx(error)
    whole = "".join(text.pieces)
    counts = {
        "bytes": len(whole.encode()),
        "characters": len(whole),
        "words": len(" ".join(text.paragraphs).split()),
        "pieces": count,
    }
    assert results["texts"]["ru"] == {"files": [str(path)], **counts}
