"""What went wrong with other merging tools must not happen here: one clear line, nothing written or lost."""

import errno
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

import lepmerge


@pytest.fixture
def models(tmp_path: Path, setting: dict[str, Path]) -> dict[str, Path]:
    """Copies of base, instruct (three shards) and adapted, for a test to damage."""
    copies = {name: Path(shutil.copytree(folder, tmp_path / "in" / name)) for name, folder in setting.items()}
    pico.split(copies["instruct"])
    return copies


def written(tmp_path: Path, models: dict[str, Path], **changes: str) -> Path:
    (tmp_path / "work").mkdir(exist_ok=True)
    recipe = pico.write_recipe(tmp_path / "work" / "recipe.yaml", **models)
    for old, new in changes.items():
        assert old in recipe.read_text()
        recipe.write_text(recipe.read_text().replace(old, new))
    return recipe


def refused(recipe: Path, *parts, options=(), exit_code: int = 1) -> None:
    """Assert that `run` and `plan` refuse the recipe with one line, and that nothing was written or changed."""
    folder = recipe.parent.parent
    before = pico.tree(folder)
    pico.assert_one_line_error(pico.command("run", recipe, "--device", "cpu", *options), exit_code, *parts)
    if not options:
        pico.assert_one_line_error(pico.command("plan", recipe), exit_code, *parts)
    assert pico.tree(folder) == before


def test_misspelt_key(tmp_path: Path, models) -> None:
    recipe = written(tmp_path, models, method="metod")
    refused(recipe, "recipe.yaml:9: steps.0.metod: unknown key; did you mean method?", exit_code=2)


@pytest.mark.parametrize("kept", [0, 7, 60, -1], ids=["empty", "no header", "half a header", "last byte"])
@pytest.mark.parametrize("model", ["base", "instruct", "adapted"])
def test_truncated_shard(tmp_path: Path, models, model: str, kept: int) -> None:
    path = max(models[model].glob("*.safetensors"))
    size = path.stat().st_size
    os.truncate(path, kept % size)
    refused(written(tmp_path, models), path, *([f"expected {size} bytes, found {size - 1}"] if kept == -1 else []))


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_index_that_names_a_file_elsewhere(tmp_path: Path, models, name: str) -> None:
    path = models["instruct"] / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    refused(written(tmp_path, models), path, repr(name), "refused")


def test_tensor_missing_in_one_model(tmp_path: Path, models) -> None:
    path = models["base"] / "model.safetensors"
    tensors = load_file(path)
    name, *_ = missing = [f"model.layers.{number}.mlp.up_proj.weight" for number in (0, 1)]
    for missing_name in missing:
        del tensors[missing_name]
    save_file(tensors, path, metadata={"format": "pt"})
    pico.bring_code(models["base"])
    recipe = written(tmp_path, models)
    step = "  - {op: arithmetic, tensors: body, expression: instruct + 0.5 * (instruct - base)}\noutput:"
    recipe.write_text(recipe.read_text().replace("output:", step))
    refused(recipe, "steps.1 (arithmetic)", "base", models["base"], name)


def test_tensor_of_another_shape_in_one_model(tmp_path: Path, models) -> None:
    path = models["base"] / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    recipe = written(tmp_path, models)
    step = "  - {op: arithmetic, tensors: body, expression: base}\noutput:"
    recipe.write_text(recipe.read_text().replace("output:", step))
    refused(recipe, name, "base", "[31, 16]", "[32, 16]")


def test_index_that_places_a_tensor_in_a_file_without_it(tmp_path: Path, models) -> None:
    path = models["instruct"] / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    refused(written(tmp_path, models), "model-00001-of-00003.safetensors", "model.extra.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["overlap", "conversion"])
def test_not_finite_rows_of_a_fit(tmp_path: Path, models, value: float, method: str) -> None:
    path = models["base"] / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][70, 3] = value
    save_file(tensors, path, metadata={"format": "pt"})
    recipe = written(tmp_path, models, conversion=method)
    result = pico.command("run", recipe, "--device", "cpu")
    where = f"base ({models['base']}): tensor lm_head.weight has NaN or infinite values in 1 of the rows"
    pico.assert_one_line_error(result, 1, "output embeddings of base → instruct: ", where, "new token 70")
    assert not (recipe.parent / "out").exists()


def test_not_finite_values_in_copied_and_computed_tensors_are_counted(tmp_path: Path, models) -> None:
    path = models["instruct"] / "model-00002-of-00003.safetensors"
    tensors = load_file(path)
    name = sorted(name for name in tensors if name.endswith("proj.weight"))[0]
    tensors[name][:2, 1] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    adapted = models["adapted"] / "embeddings.safetensors"
    tables = load_file(adapted)
    tables["lm_head.weight"][300, :3] = float("-inf")
    save_file(tables, adapted, metadata={"format": "pt"})
    for options, expected in ((), {"lm_head.weight": 3}), (("--check",), {"lm_head.weight": 3, name: 2}):
        recipe = written(tmp_path, models, conversion="swap")
        result = pico.command("run", recipe, "--device", "cpu", "--overwrite", "--json", *options)
        assert json.loads(result.stdout)["not_finite"] == expected, result.stderr


def test_killed_run_leaves_no_partial_model(tmp_path: Path, models, monkeypatch) -> None:
    """A crash at any file leaves nothing at the target (real kills are in tests/test_resume.py)."""
    from lepmerge.merge import execute

    recipe = written(tmp_path, models)
    for name in ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "config.json", "README.md"):

        def write_file(self, name_, write, original=execute.Staging.write_file, name=name):
            if name_ == name:
                raise KeyboardInterrupt
            original(self, name_, write)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(execute.Staging, "write_file", write_file)
            pico.run_file(recipe, device="cpu")
        assert not (recipe.parent / "out").exists()
    pico.run_file(recipe, device="cpu")
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["out", "recipe.yaml"]


def test_another_shard_count_into_the_same_folder(tmp_path: Path, models) -> None:
    recipe = written(tmp_path, models)
    folder = pico.run_file(recipe, device="cpu")
    before = pico.contents(folder)
    again = ["run", recipe, "--device", "cpu", "--set", "output.shard_size=10KB"]
    pico.assert_one_line_error(pico.command(*again), 1, "not empty", "--overwrite")
    assert pico.contents(folder) == before
    assert pico.command(*again, "--overwrite").exit_code == 0
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {path.name for path in folder.glob("*.safetensors")} == set(weight_map.values())
    assert len(set(weight_map.values())) > 3


@pytest.mark.parametrize("target", ["same", "inside", "around", "symlink"])
def test_output_that_is_an_input(tmp_path: Path, models, target: str) -> None:
    recipe = written(tmp_path, models)
    path = {
        "same": models["base"],
        "inside": models["base"] / "out",
        "around": models["base"].parent,
        "symlink": tmp_path / "link",
    }[target]
    (tmp_path / "link").symlink_to(models["base"])
    options = ["--set", f"output.path={path}", "--overwrite"]
    refused(recipe, f"is, contains or is inside the input {models['base'].parent}", options=options)


def test_full_disk_known_before_the_start(tmp_path: Path, models, monkeypatch) -> None:
    recipe = written(tmp_path, models)
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(recipe, "1,000 bytes free", "free some space", options=["-q"])


def test_full_disk_in_mid_run(tmp_path: Path, models) -> None:
    """The kernel refuses to let a file grow beyond a limit. Finished files are kept, and the next run resumes."""
    recipe = written(tmp_path, models)
    before = pico.tree(tmp_path / "in")
    largest = max(path.stat().st_size for path in models["instruct"].glob("*.safetensors"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1000, limits[1]))
    try:
        result = pico.command("run", recipe, "--device", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    pico.assert_one_line_error(result, 1, "is full", "free some space", ".out.lepmerge")
    assert not (recipe.parent / "out").exists() and pico.tree(tmp_path / "in") == before
    assert pico.command("run", recipe, "--device", "cpu").exit_code == 0
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["out", "recipe.yaml"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left(tmp_path: Path, models, monkeypatch, code: int) -> None:
    def full(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    recipe = written(tmp_path, models)
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", full)
        result = pico.command("run", recipe, "--device", "cpu")
    pico.assert_one_line_error(result, 1, "is full")
    assert not (recipe.parent / "out").exists()
    assert pico.command("run", recipe, "--device", "cpu").exit_code == 0


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights(tmp_path: Path, models) -> None:
    for path in models["instruct"].glob("model*"):
        path.unlink()
    (models["instruct"] / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refused(written(tmp_path, models), models["instruct"], "pickled", "save_pretrained")
    assert not (tmp_path / "exploded").exists()


def test_remote_code_is_never_run(tmp_path: Path, models) -> None:
    """A model that brings code is read without it, and the code is neither run nor needed."""
    for name in ("config.json", "tokenizer_config.json"):
        path = models["instruct"] / name
        config = json.loads(path.read_text())
        names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.Tok", None]}
        path.write_text(json.dumps({**config, "auto_map": names}))
    (models["instruct"] / "code.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    pico.run_file(written(tmp_path, models), device="cpu")
    assert not (tmp_path / "exploded").exists()
    sources = (path.read_text() for path in Path(lepmerge.__file__).parent.rglob("*.py"))
    assert not any("trust_remote_code=True" in source for source in sources)


def test_local_relative_path_never_asks_the_network(tmp_path: Path, models, monkeypatch) -> None:
    import socket

    def refuse(*arguments, **keywords):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    recipe = written(tmp_path, {name: Path("..") / "in" / name for name in models})
    assert (pico.run_file(recipe, device="cpu") / "config.json").exists()


@pytest.mark.parametrize("method", ["swap", "overlap", "conversion", "delta"])
def test_generation_config_and_chat_template_are_the_instruct_models(tmp_path: Path, models, method: str) -> None:
    generation = json.loads((models["instruct"] / "generation_config.json").read_text())
    (models["instruct"] / "generation_config.json").write_text(json.dumps({**generation, "temperature": 0.37}))
    folder = pico.run_file(written(tmp_path, models, conversion=method), device="cpu")
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.37
    templates = [
        (path / "chat_template.jinja").read_text()
        if (path / "chat_template.jinja").exists()
        else json.loads((path / "tokenizer_config.json").read_text())["chat_template"]
        for path in (models["instruct"], folder)
    ]
    assert templates[0] == templates[1] and "<|assistant|>" in templates[0]


@pytest.mark.parametrize(("multiple", "rows"), [(None, 640), (128, 640), (256, 768)])
def test_padded_rows_are_kept_or_padded_as_the_recipe_says(tmp_path: Path, setting, russian, multiple, rows) -> None:
    adapted = pico.save_adapted(tmp_path / "in" / "adapted", setting["base"], russian, num_rows=640)
    recipe = written(tmp_path, {**setting, "adapted": adapted})
    options = ["--set", f"output.pad_to_multiple_of={multiple}"] if multiple else []
    result = pico.command("run", recipe, "--device", "cpu", "--json", *options)
    report = json.loads(result.stdout)
    shape = load_file(recipe.parent / "out" / "model.safetensors")["lm_head.weight"].shape
    assert shape[0] == rows == json.loads((recipe.parent / "out" / "config.json").read_text())["vocab_size"]
    assert report["vocabulary"]["rows"] == rows
    counts = [table["rows"] for table in report["tables"] if table["operation"] == "propagate_embeddings"]
    assert len(counts) == 2 and counts[0] == counts[1]
    assert counts[0]["without_source"] == 640 - russian.get_vocab_size()


def test_an_error_of_the_disk_is_one_line_and_the_next_run_completes(tmp_path: Path, models, monkeypatch) -> None:
    recipe = written(tmp_path, models)
    with monkeypatch.context() as patch:

        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "fsync", fail)
        pico.assert_one_line_error(pico.command("run", recipe, "--device", "cpu"), 1, "Input/output error", "again")
    assert pico.command("run", recipe, "--device", "cpu", "-q").exit_code == 0


def test_four_runs_give_the_same_bytes(tmp_path: Path, setting) -> None:
    outputs = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        recipe = pico.write_recipe(tmp_path / str(number) / "recipe.yaml", **setting)
        outputs.append(pico.contents(pico.run_file(recipe, device="cpu")))
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]


def test_one_and_two_threads_agree_within_one_rounding(tmp_path: Path, setting) -> None:
    tables = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            (tmp_path / str(number)).mkdir()
            recipe = pico.write_recipe(tmp_path / str(number) / "recipe.yaml", **setting)
            tables.append(load_file(pico.run_file(recipe, device="cpu") / "model.safetensors"))
    finally:
        torch.set_num_threads(threads)
    for name, first in tables[0].items():
        second = tables[1][name].double()
        unit = torch.ldexp(torch.ones_like(second), torch.frexp(second).exponent - 8)
        assert bool(((first.double() - second).abs() <= unit).all()), name


def test_input_retrained_in_place_starts_the_staging_over(tmp_path: Path, models, monkeypatch) -> None:
    from lepmerge.merge import execute

    recipe = written(tmp_path, models)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(*arguments, **keywords):
            raise KeyboardInterrupt

        patch.setattr(execute, "_write_small_files", interrupted)
        pico.run_file(recipe, device="cpu")
    path = models["adapted"] / "embeddings.safetensors"
    tables = {name: table * 2 for name, table in load_file(path).items()}
    save_file(tables, path, metadata={"format": "pt"})
    resumed = pico.contents(pico.run_file(recipe, device="cpu"))
    fresh = pico.contents(pico.run_file(recipe, [f"output.path={tmp_path / 'fresh'}"], device="cpu"))
    assert {name: data for name, data in resumed.items() if name.endswith("safetensors")} == {
        name: data for name, data in fresh.items() if name.endswith("safetensors")
    }
