"""Arithmetic over models: linear, vocabulary-aware, on the tensors that the selectors name and no others."""

import math
from pathlib import Path

import pico
import pytest
import reference
import torch
from safetensors.torch import load_file

from lepmerge.errors import CheckpointError, LepmergeError, RecipeError

UP = "model.layers.1.mlp.up_proj.weight"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def models(tmp_path_factory, setting, english) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("arithmetic")
    return {**setting, "other": pico.save_model(folder / "other", english, seed=9)}


def applied(tmp_path: Path, models, expression: str, tensors="body", **output) -> dict[str, torch.Tensor]:
    step = {"op": "arithmetic", "tensors": tensors, "expression": expression}
    return reference.weights(pico.run_recipe(tmp_path, models, [step], **output))


def test_task_arithmetic_on_the_body(tmp_path: Path, models) -> None:
    got = applied(tmp_path, models, "instruct + 0.3 * (other - base)")
    base, instruct, other = (reference.weights(models[name]) for name in ("base", "instruct", "other"))
    for name, tensor in got.items():
        if name in TABLES:
            assert reference.same_bits(tensor, instruct[name])
        else:
            wanted = instruct[name].double() + 0.3 * (other[name].double() - base[name].double())
            reference.assert_matches(
                tensor.view(-1, tensor.shape[-1]), reference.Expected(wanted.view(-1, tensor.shape[-1]), {})
            )


@pytest.mark.parametrize(
    "expression", ["instruct", "instruct + 0 * base", "2 * current - instruct", "max(instruct, current)"]
)
def test_identities(tmp_path: Path, models, expression: str) -> None:
    instruct = reference.weights(models["instruct"])
    got = applied(tmp_path, models, expression, "*")
    assert all(torch.equal(got[name], instruct[name]) for name in instruct)


def test_names_mean_the_models_as_loaded_and_current_the_state_before_the_step(tmp_path: Path, models) -> None:
    steps = [
        {"op": "arithmetic", "tensors": UP, "expression": "2 * current"},
        {"op": "arithmetic", "tensors": UP, "expression": "current + instruct"},
    ]
    got = reference.weights(pico.run_recipe(tmp_path, models, steps, dtype="float32"))
    assert torch.equal(got[UP], 3 * reference.weights(models["instruct"])[UP].float())


@pytest.mark.parametrize(
    ("expression", "function"),
    [
        ("abs(base)", torch.abs),
        ("sign(base)", torch.sign),
        ("sqrt(abs(base))", lambda x: x.abs().sqrt()),
        ("base / norm(base)", lambda x: x / x.norm()),
        ("base / row_norm(base)", lambda x: x / x.norm(dim=1, keepdim=True)),
        ("min(base, 0.01)", lambda x: x.clamp(max=0.01)),
        ("-base / 4 - -1", lambda x: -x / 4 + 1),
        ("0.25", lambda x: torch.full_like(x, 0.25)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_functions(tmp_path: Path, models, expression: str, function) -> None:
    got = applied(tmp_path, models, expression, UP, dtype="float32")[UP]
    wanted = function(reference.weights(models["base"])[UP].double())
    assert torch.allclose(got.double(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_bytes", [64, 1000, 10**6])
def test_norm_does_not_depend_on_the_blocks(tmp_path: Path, models, monkeypatch, num_bytes: int) -> None:
    monkeypatch.setattr("lepmerge.tensors.BLOCK_BYTES", num_bytes)
    got = applied(tmp_path, models, "norm(base - other)", UP, dtype="float32")[UP]
    base, other = (reference.weights(models[name])[UP].double() for name in ("base", "other"))
    assert float(got[3, 4]) == pytest.approx(float((base - other).norm()), rel=1e-6)


def test_operands_of_another_vocabulary_are_converted(tmp_path: Path, models) -> None:
    """An operand with the adapted vocabulary is converted to the old one. Rows without a source stay `current`'s."""
    got = applied(tmp_path, models, "adapted", "input_embeddings")["model.embed_tokens.weight"]
    old, new = reference.tokens_in(models["instruct"]), reference.tokens_in(models["adapted"])
    current = reference.weights(models["instruct"])["model.embed_tokens.weight"]
    table = reference.weights(models["adapted"])["model.embed_tokens.weight"]
    rows = reference.conversion(new, old, len(current))
    wanted = reference.applied(rows, table)
    stays = {id for content, id in old.added.items() if content not in new.added}
    stays |= {id for id, row in enumerate(rows) if not row.ids}
    assert stays
    copies = {id: current[id] for id in stays}
    copies |= {id: table[row.ids[0]] for id, row in enumerate(rows) if len(row.ids) == 1 and id not in stays}
    for id in stays:
        wanted[id] = current[id].double()
    reference.assert_matches(got, reference.Expected(wanted, copies))


def test_delta_by_arithmetic_equals_delta_by_propagation(tmp_path: Path, models) -> None:
    """Both compute A + T (E_i - E_b). Added tokens are not compared."""
    propagate = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "delta"}
    delta = reference.weights(pico.run_recipe(tmp_path / "a", models, [propagate]))
    steps = [
        {**propagate, "method": "swap"},
        {"op": "arithmetic", "tensors": "embeddings", "expression": "current + (instruct - base)"},
    ]
    both = reference.weights(pico.run_recipe(tmp_path / "b", models, steps))
    ordinary = sorted(reference.tokens_in(models["adapted"]).strings)
    for name in TABLES:
        assert torch.equal(delta[name][ordinary], both[name][ordinary])


@pytest.mark.parametrize(
    ("tensors", "changed"),
    [
        ("embeddings", TABLES),
        ("input_embeddings", TABLES[:1]),
        ("output_embeddings", TABLES[1:]),
        (["*.up_proj.weight", "lm_head.weight"], ("model.layers.0.mlp.up_proj.weight", UP, "lm_head.weight")),
    ],
    ids=str,
)
def test_selectors(tmp_path: Path, models, tensors, changed) -> None:
    instruct = reference.weights(models["instruct"])
    got = applied(tmp_path, models, "0.5 * current", tensors)
    assert {name for name in got if not torch.equal(got[name], instruct[name])} == set(changed)


@pytest.mark.parametrize(
    ("expression", "tensors", "error", "part"),
    [
        ("instrukt", "body", RecipeError, "did you mean instruct?"),
        ("instruct", "model.layer.*", RecipeError, "selects nothing"),
        ("adapted", "body", CheckpointError, "adapted"),
        ("instruct +", "body", RecipeError, "position 11"),
    ],
)
def test_faults(tmp_path: Path, models, expression: str, tensors: str, error: type[LepmergeError], part: str) -> None:
    with pytest.raises(error) as caught:
        applied(tmp_path, models, expression, tensors)
    assert part in str(caught.value) and str(caught.value).startswith("steps.0 (arithmetic): ")
    assert not (tmp_path / "out").exists()


def test_output_embeddings_of_a_tied_model(tmp_path: Path, english) -> None:
    models = {"instruct": pico.save_model(tmp_path / "tied", english, tied=True)}
    with pytest.raises(RecipeError, match="tied"):
        applied(tmp_path, models, "0.5 * current", "output_embeddings")
    got = applied(tmp_path, models, "0.5 * current", "input_embeddings")
    table = load_file(models["instruct"] / "model.safetensors")[TABLES[0]]
    assert TABLES[1] not in got and torch.equal(got[TABLES[0]], table / 2)


def test_division_by_zero_is_counted(tmp_path: Path, models) -> None:
    import json

    applied(tmp_path, models, "base / 0", UP)
    report = json.loads((tmp_path / "out" / "lepmerge_report.json").read_text())
    shape = reference.weights(models["base"])[UP].shape
    assert report["not_finite"] == {UP: math.prod(shape)}
