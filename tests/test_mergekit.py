"""Configurations of mergekit as people publish them: read, planned, some run; what lepmerge lacks is named by line."""

from pathlib import Path

import pico
import pytest
import reference
import torch
import yaml

RECIPES = sorted((Path(__file__).parent / "mergekit_recipes").glob("*.yaml"))
LAYER = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, english) -> Path:
    """Models base, a, b and c of one architecture, which the configurations name by relative paths."""
    folder = tmp_path_factory.mktemp("mergekit")
    base = pico.save_model(folder / "base", english, chat=True)
    for seed, name in enumerate("abc", 1):
        pico.save_instruct(folder / name, base, english, seed=seed)
    return folder


def command(folder: Path, monkeypatch, text: str, *arguments):
    (folder / "config.yaml").write_text(text)
    monkeypatch.chdir(folder)
    return pico.command(*arguments)


def run(folder: Path, monkeypatch, text: str) -> dict[str, torch.Tensor]:
    arguments = ("run", "config.yaml", "--output", "out", "--overwrite", "--device", "cpu")
    done = command(folder, monkeypatch, text, *arguments)
    assert done.exit_code == 0, done.stderr
    return reference.weights(folder / "out")


def test_there_are_25_configurations() -> None:
    assert len(RECIPES) == 25


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_form_is_planned_and_imported(folder: Path, monkeypatch, path: Path) -> None:
    text = path.read_text()
    planned = command(folder, monkeypatch, text, "plan", "config.yaml", "--output", "planned")
    assert planned.exit_code == 0, planned.stderr
    imported = command(folder, monkeypatch, text, "import", "config.yaml", "-o", "planned")
    (folder / "recipe.yaml").write_text(imported.stdout)
    again = command(folder, monkeypatch, text, "plan", "recipe.yaml")
    first, second = ([line for line in done.stdout.splitlines() if " free)" not in line] for done in (planned, again))
    assert first == second and len(first) > 2


def test_slerp_with_a_gradient_and_filters_starts_at_the_base_model(folder: Path, monkeypatch) -> None:
    text = """
slices:
  - sources:
      - {model: b, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2]}
merge_method: slerp
base_model: a
parameters:
  t: [{filter: up_proj, value: [0, 1]}, {value: 0}]
dtype: bfloat16
"""
    got, a, b = run(folder, monkeypatch, text), reference.weights(folder / "a"), reference.weights(folder / "b")
    assert {name for name in got if not reference.same_bits(got[name], a[name])} == {LAYER.format(1)}
    assert reference.same_bits(got[LAYER.format(1)], b[LAYER.format(1)])


def test_numbers_of_a_slice_are_spread_over_its_layers(folder: Path, monkeypatch) -> None:
    """As in mergekit: tensors before the layers have the first slice's numbers, those after them the last slice's."""
    text = """
slices:
  - {sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}], parameters: {t: 0}}
  - {sources: [{model: a, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}], parameters: {t: [0, 1]}}
merge_method: slerp
base_model: a
"""
    got, a, c = run(folder, monkeypatch, text), reference.weights(folder / "a"), reference.weights(folder / "c")
    differ = {name for name in got if not reference.same_bits(got[name], a[name])}
    assert differ == {name for name in got if ".layers.1." in name}
    assert all(reference.same_bits(got[name], c[name]) for name in differ)
    imported = command(folder, monkeypatch, text, "import", "config.yaml")
    first, second, stack = yaml.safe_load(imported.stdout)["steps"]
    assert (first["layers"], first["tensors"]) == ([0, 1], ["before_layers", "layers"])
    assert (second["layers"], second["tensors"]) == ([1, 2], ["layers", "after_layers"])
    assert stack["slices"] == [{"layers": [0, 1]}, {"layers": [1, 2]}]


def test_a_list_in_a_slice_that_ends_early_ends_there(folder: Path, monkeypatch) -> None:
    sources = "{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}"
    text = f"slices: [{sources}]\nmerge_method: slerp\nbase_model: a\nparameters: {{t: [0, 1]}}\n"
    got, b = run(folder, monkeypatch, text), reference.weights(folder / "b")
    assert {name for name in got if reference.same_bits(got[name], b[name])} == {n for n in got if ".layers.0." in n}
    assert not any(".layers.1." in name for name in got)


def test_stacked_layers_are_numbered_anew(folder: Path, monkeypatch) -> None:
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 2]}]
  - sources: [{model: a, layer_range: [0, 2], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
merge_method: passthrough
dtype: bfloat16
"""
    got, a, b = run(folder, monkeypatch, text), reference.weights(folder / "a"), reference.weights(folder / "b")
    for new, (source, old) in enumerate([(a, 0), (a, 1), (b, 1), (a, 0), (a, 1)]):
        assert reference.same_bits(got[LAYER.format(new)], source[LAYER.format(old)])
    assert (
        not got["model.layers.3.self_attn.o_proj.weight"].any() and got["model.layers.0.self_attn.o_proj.weight"].any()
    )
    assert len(got) == len(a) + 3 * sum("layers.0." in name for name in a)
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder / "out")
    assert loaded.config.num_hidden_layers == 5 and len(loaded.model.layers) == 5


def test_a_stack_begins_as_its_first_model_and_ends_as_its_last(folder: Path, monkeypatch) -> None:
    text = "slices: [{sources: [{model: a, layer_range: [0, 1]}]}, {sources: [{model: b, layer_range: [1, 2]}]}]\n"
    got = run(folder, monkeypatch, text + "merge_method: passthrough\n")
    a, b = reference.weights(folder / "a"), reference.weights(folder / "b")
    for name, model in {"model.embed_tokens.weight": a, "model.norm.weight": b, "lm_head.weight": b}.items():
        assert reference.same_bits(got[name], model[name])


def test_layers_that_are_swapped_within_one_file_are_not_copied_as_they_are(folder: Path, monkeypatch) -> None:
    text = "slices: [{sources: [{model: a, layer_range: [1, 2]}]}, {sources: [{model: a, layer_range: [0, 1]}]}]\n"
    got, a = run(folder, monkeypatch, text + "merge_method: passthrough\n"), reference.weights(folder / "a")
    assert reference.same_bits(got[LAYER.format(0)], a[LAYER.format(1)])


def test_the_parameters_of_a_model_win_over_the_general_ones(folder: Path, monkeypatch) -> None:
    text = """
merge_method: task_arithmetic
base_model: base
models: [{model: base}, {model: a}, {model: b, parameters: {weight: 0.25}}]
parameters: {weight: 0.5, int8_mask: true, density: 0.3}
"""
    done = command(folder, monkeypatch, text, "import", "config.yaml")
    (step,) = yaml.safe_load(done.stdout)["steps"]
    assert step["models"] == {"a": {"weight": 0.5}, "b": {"weight": 0.25}} and step["base"] == "base"


def test_the_union_of_vocabularies_with_sources_of_tokens(folder: Path, monkeypatch) -> None:
    """`c2` has a token that the others lack; `force` takes its row of another one."""
    if not (folder / "c2").is_dir():
        tokenizer = pico.byte_level(pico.ENGLISH, 400)
        pico.save_instruct(folder / "c2", folder / "base", tokenizer, seed=4, extra=["<|tool|>"])
    text = """
merge_method: linear
models: [{model: a, parameters: {weight: 0.5}}, {model: c2, parameters: {weight: 0.5}}]
tokenizer: {source: union, tokens: {<|user|>: {source: c2, force: true}}}
"""
    got, a, c2 = run(folder, monkeypatch, text), reference.weights(folder / "a"), reference.weights(folder / "c2")
    ids = reference.tokens_in(folder / "c2").added
    assert len(got["lm_head.weight"]) == len(a["lm_head.weight"]) + 1
    for content in ("<|user|>", "<|tool|>"):
        assert reference.same_bits(got["lm_head.weight"][ids[content]], c2["lm_head.weight"][ids[content]])
    row = ids["<|assistant|>"]
    mean = (a["lm_head.weight"][row].float() + c2["lm_head.weight"][row].float()) / 2
    assert reference.same_bits(got["lm_head.weight"][row], mean.bfloat16())


@pytest.mark.parametrize(("given", "wanted"), [("a", "a"), ("own.jinja", "{folder}/own.jinja"), ("auto", None)])
def test_the_chat_template_of_a_model_or_a_file(folder: Path, monkeypatch, given: str, wanted: str | None) -> None:
    text = f"merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\nchat_template: {given}\n"
    done = command(folder, monkeypatch, text, "import", "config.yaml")
    expected = wanted and wanted.format(folder=folder)
    assert yaml.safe_load(done.stdout)["output"].get("chat_template") == expected


BEGIN = "merge_method: ties\nbase_model: base\nmodels:\n- model: a\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "merge_method: nearswap\nmodels: [{model: a}]\n",
            [":1: merge_method: lepmerge has no merge method 'nearswap'"],
        ),
        (
            "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer_source: union\n",
            [":3: tokenizer_source", "one vocabulary"],
        ),
        (
            BEGIN + "tokenizer:\n  source: union\n  tokens:\n    <s>: {source: {kind: zero}}\n",
            [":8: tokenizer.tokens.<s>.source", "one of the models: base, a"],
        ),
        (BEGIN + "tokenizer: {source: a, tokens: {<s>: {source: a}}}\n", [":5: tokenizer.tokens", "source: union"]),
        (BEGIN + "chat_template: chatml\n", [":5: chat_template", "no built-in", ".jinja file"]),
        (BEGIN + "modells: 1\n", [":5: modells", "did you mean models?"]),
        (BEGIN + "  parameters: {densty: 0.5}\n", [":4: models.0", "'densty'", "did you mean density?"]),
        (BEGIN + "dtype: int8\n", [":5: dtype", "bfloat16"]),
        ("merge_method: ties\nmodels: [{model: a}]\n", [":1: merge_method: ties needs base_model"]),
        (BEGIN + "slices: []\n", ["either `models` or `slices`"]),
        (
            "merge_method: slerp\nparameters: {t: [0, 1]}\nslices:\n"
            + 2 * "- sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n",
            [":3: slices", "the slices overlap"],
        ),
        (
            "merge_method: linear\nparameters: {weight: [0.5, 1]}\ntokenizer_source: union\nslices:\n"
            "- sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n"
            "- sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]\n",
            [":4: slices", "a union of vocabularies needs one merge"],
        ),
        (
            "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
            "- sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [1, 2]}]\n",
            [":4: slices.0", "the same layers"],
        ),
        (
            "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 9]}]\n",
            ["slices.0.layers", "[0, 9]", "2 layers"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_lepmerge_lacks_is_one_line(folder: Path, monkeypatch, text: str, parts: list[str]) -> None:
    done = command(folder, monkeypatch, text, "run", "config.yaml", "--output", "never")
    pico.assert_one_line_error(done, 2, *parts)


def test_a_configuration_needs_an_output_and_takes_no_overrides(folder: Path, monkeypatch) -> None:
    done = command(folder, monkeypatch, BEGIN, "run", "config.yaml")
    pico.assert_one_line_error(done, 2, "give --output FOLDER")
    done = command(folder, monkeypatch, BEGIN, "run", "config.yaml", "--output", "x", "--set", "start=a")
    pico.assert_one_line_error(done, 2, "lepmerge import")
