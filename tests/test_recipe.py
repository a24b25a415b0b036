"""A recipe's faults are one line with file, line, key and the nearest valid key; values can be set from outside."""

from pathlib import Path

import pico
import pytest

import lepmerge
from lepmerge.errors import RecipeError
from lepmerge.merge.recipe import Recipe

GOOD = """\
models:
  base: some/base
  instruct: {path: hub/instruct, revision: main}
  adapted: some/adapted
steps:
  - op: propagate_embeddings
    base: base
    adapted: adapted
    method: {input: swap, output: delta}
  - op: arithmetic
    tensors: body
    expression: instruct + 0.3 * (instruct - base)
output:
  path: out
  shard_size: 1.5GB
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text)
    return lepmerge.load_recipe(tmp_path / "recipe.yaml", overrides)


def test_good_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.models["instruct"].revision == "main" and recipe.models["base"].path == "some/base"
    assert recipe.start == "instruct" and recipe.output.shard_size == 1_500_000_000
    assert recipe.steps[0].method.output == "delta" and not recipe.steps[0].keep_shared_rows


def test_written_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    again = load(tmp_path, recipe.to_yaml())
    assert again == recipe


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("models:", "modles:", 1, ["modles", "unknown key", "did you mean models?"]),
        ("revision:", "revison:", 3, ["models.instruct.revison", "did you mean revision?"]),
        ("  - op: prop", "  - opp: prop", 6, ["steps.0", "needs the key `op`"]),
        ("op: propagate_embeddings", "op: propagate_embedings", 6, ["did you mean propagate_embeddings?"]),
        ("    base: base", "    bass: base", 7, ["steps.0.bass", "did you mean base?"]),
        ("    adapted: adapted\n", "", 6, ["steps.0.adapted", "this key is missing"]),
        ("    adapted: adapted", "    adapted: adaptd", 8, ["unknown model 'adaptd'", "did you mean adapted?"]),
        ("output: delta", "output: detla", 9, ["steps.0.method.output", "did you mean delta?"]),
        ("output:\n  path: out\n  shard_size: 1.5GB", "output: out", 13, ["output", "expected keys with values"]),
        (
            "method: {input: swap, output: delta}",
            "method: convertion",
            9,
            ["steps.0.method:", "did you mean conversion?"],
        ),
        ("tensors: body", "tensors: 5", 11, ["steps.1.tensors"]),
        ("  path: out", "  pth: out", 14, ["output.pth", "did you mean path?"]),
        ("1.5GB", "1.5 elephants", 15, ["output.shard_size", "5GB"]),
        ("shard_size: 1.5GB", "dtype: float12", 15, ["output.dtype", "bfloat16"]),
        ("shard_size: 1.5GB", "path: other", 15, ["'path' occurs twice"]),
        ("output:\n", "start: nobody\noutput:\n", 13, ["start", "unknown model 'nobody'"]),
        ("  base: some/base", "  current: some/base", 2, ["current"]),
        ("  base: some/base", "  my-base: some/base", 2, ["'my-base' cannot be the name of a model"]),
        ("steps:", "steps: [", 6, ["not YAML"]),
        ("output:\n", "? [output]\n:\n", 13, ["a key should be a word"]),
        ("  path: out", '  path: "out\\ud800"', 14, ["half of a character"]),
        ("  path: out", '  "pa\\udc00th": out', 14, ["half of a character"]),
    ],
    ids=lambda value: value[:24].strip() if isinstance(value, str) else None,
)
def test_faults(tmp_path: Path, old: str, new: str, line: int, parts: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    where = message.partition(": ")[0]
    assert where.startswith(f"{tmp_path / 'recipe.yaml'}:"), message
    assert where == f"{tmp_path / 'recipe.yaml'}:{line}", message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("text", ["", "- a\n", "models\n", "\tmodels: 1\n", "models: {}\noutput: {path: x}\n"])
def test_not_a_recipe(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="recipe.yaml"):
        load(tmp_path, text)


def test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    recipe = load(
        tmp_path, GOOD, "models.base=mine", "steps.0.method=conversion", "output.dtype=float16", "output.path=here",
        "steps.0.keep_shared_rows=true", "models.adapted.revision=v2",
    )  # fmt: skip
    assert recipe.models["base"].path == str(tmp_path / "mine")
    assert recipe.models["adapted"].revision == "v2" and recipe.models["adapted"].path == "some/adapted"
    assert recipe.steps[0].method == "conversion" and recipe.steps[0].keep_shared_rows
    assert recipe.output.dtype == "float16" and recipe.output.path == str(tmp_path / "here")


def test_a_path_that_is_set_is_not_taken_from_the_recipes_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "work" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"--set models.base=other: .*current folder.* did you mean work/other\?"):
        load(tmp_path / "work", GOOD, "models.base=other")
    recipe = load(tmp_path / "work", GOOD, "models.base=hub/other")
    assert recipe.models["base"].path == "hub/other"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("models.base", "expected KEY=VALUE"),
        ("=x", "expected KEY=VALUE"),
        ("steps.5.method=swap", "no '5'"),
        ("steps.0.metod=swap", "did you mean method?"),
        ("output.dtyp=float16", "did you mean dtype?"),
        ("output.path=[x", "the value is not YAML"),
        ("output.path=" + 9999 * "[", "the value is not YAML"),
        ('output.path="\\ud800"', "half of a character"),
        ("output={path: a, path: b}", "'path' occurs twice"),
    ],
)
def test_set_of_what_is_not_there(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, GOOD, override)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_paths_are_relative_to_the_recipe(tmp_path: Path, setting, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name, folder in setting.items():
        (work / name).symlink_to(folder)
    recipe = pico.write_recipe(work / "recipe.yaml", **{name: Path(name) for name in setting})
    monkeypatch.chdir(tmp_path)
    assert pico.run_file("work/recipe.yaml", device="cpu") == work / "out"
    assert pico.plan_file(recipe).target == work / "out"
