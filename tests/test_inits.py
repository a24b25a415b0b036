"""The inits of swap_vocabulary, each against its formula in float64."""

import json
import unicodedata
from pathlib import Path

import pico
import pytest
import reference
import torch

import lepmerge


@pytest.fixture(scope="module")
def swapped(tmp_path_factory, english, russian):
    """Return a function: init → (result, old folder, tokenizer folder)."""
    folder = tmp_path_factory.mktemp("inits")
    model = pico.save_model(folder / "model", english, dtype=torch.float32)
    pico.save_tokenizer(russian, folder / "tokenizer")

    def run(init) -> tuple[dict[str, torch.Tensor], Path, Path]:
        name = "-".join(init.values()) if isinstance(init, dict) else init
        step = {"op": "swap_vocabulary", "tokenizer": str(folder / "tokenizer"), "init": init}
        if not (folder / name / "out").exists():
            pico.run_recipe(folder / name, {"instruct": model}, [step])
        return reference.weights(folder / name / "out"), model, folder / "tokenizer"

    return run


def rows(model: Path, tokenizer: Path):
    old, new = reference.tokens_in(model), reference.tokens_in(tokenizer)
    return old, new, reference.conversion(old, new, new.size)


def test_weighted_mean(swapped) -> None:
    got, model, tokenizer = swapped("weighted_mean")
    old, new, T = rows(model, tokenizer)
    for role in (reference.INPUT, reference.OUTPUT):
        table = reference.weights(model)[role].double()
        for id, row in enumerate(T):
            if row.kind == "decomposed":
                weights = torch.tensor([len(old.bytes[i]) for i in row.ids], dtype=torch.float64)
                wanted = (table[row.ids] * weights[:, None]).sum(0) / weights.sum()
                assert torch.allclose(got[role][id].double(), wanted, atol=1e-6)
            elif row.kind == "exact":
                assert reference.same_bits(got[role][id], reference.weights(model)[role][row.ids[0]])


def script_of(data: bytes) -> str:
    letter = next((c for c in data.decode(errors="ignore") if c.isalpha()), None)
    return "" if letter is None else unicodedata.name(letter).split()[0]


def test_norm_calibrated(swapped) -> None:
    got, model, tokenizer = swapped("norm_calibrated")
    old, new, T = rows(model, tokenizer)
    table = reference.weights(model)[reference.INPUT].double()
    norms: dict[str, list[float]] = {}
    for id, data in old.bytes.items():
        norms.setdefault(script_of(data), []).append(float(table[id].norm()))
    all_rows = float(table.norm(dim=1).mean())
    seen = set()
    for id, row in enumerate(T):
        if row.kind == "decomposed":
            of_script = norms.get(script_of(new.bytes[id]), [])
            use_script = script_of(new.bytes[id]) != "" and len(of_script) >= 32
            wanted = sum(of_script) / len(of_script) if use_script else all_rows
            seen.add(use_script)
            mean = table[row.ids].mean(0)
            assert torch.allclose(got[reference.INPUT][id].double(), mean * wanted / mean.norm(), atol=1e-6)
        elif row.kind == "exact":
            assert reference.same_bits(got[reference.INPUT][id], reference.weights(model)[reference.INPUT][row.ids[0]])
    assert False in seen  # Cyrillic has too few old rows here


def test_per_table(swapped) -> None:
    both, _, _ = swapped({"input": "norm_calibrated", "output": "weighted_mean"})
    assert torch.equal(both[reference.INPUT], swapped("norm_calibrated")[0][reference.INPUT])
    assert torch.equal(both[reference.OUTPUT], swapped("weighted_mean")[0][reference.OUTPUT])


def test_the_report_names_the_init(tmp_path: Path, setting, english) -> None:
    step = {"op": "swap_vocabulary", "tokenizer": "adapted", "init": {"input": "mean", "output": "norm_calibrated"}}
    models = {name: setting[name] for name in ("instruct", "adapted")}
    folder = pico.run_recipe(tmp_path, models, [step])
    tables = json.loads((folder / "lepmerge_report.json").read_text())["tables"]
    assert [table["method"] for table in tables] == ["mean", "norm_calibrated"]


def test_unknown_init(tmp_path: Path, setting) -> None:
    step = {"op": "swap_vocabulary", "tokenizer": "adapted", "init": {"input": "mean", "output": "magic"}}
    with pytest.raises(lepmerge.LepmergeError, match="steps.0.init"):
        pico.run_recipe(tmp_path, {"instruct": setting["instruct"], "adapted": setting["adapted"]}, [step])
