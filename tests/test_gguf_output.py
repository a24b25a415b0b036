"""GGUF output through the command line: the result's vocabulary and tables on the copied body of an instruct file."""

import json
from pathlib import Path

import gguf_models
import pico
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tokenizers import Tokenizer

from lepmerge import open_model
from lepmerge.models.gguf_file import STRING, UINT32, GgufFile, field_of
from lepmerge.models.gguf_tensor import GgufTensor

ADDED = 40
KINDS = ("byte_level", "sentencepiece")


@pytest.fixture(scope="module", params=KINDS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """instruct and its GGUF file, a vocabulary that extends it by Cyrillic tokens; read-only for tests."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = getattr(pico, request.param)(pico.ENGLISH, 400)
    instruct = pico.save_model(folder / "instruct", tokenizer, width=64, chat=True, dtype=torch.float32)
    (folder / "corpus.txt").write_text("\n\n".join(pico.RUSSIAN * 20))
    arguments = (instruct, folder / "corpus.txt", "--add", ADDED, "--script", "Cyrillic", "-o", folder / "vocabulary")
    assert pico.command("tokenizer", "extend", *arguments).exit_code == 0
    body = gguf_models.save_gguf(instruct, folder / "instruct.gguf", type=GGMLQuantizationType.Q4_0)
    return {"instruct": instruct, "vocabulary": folder / "vocabulary", "body": body}


def write_recipe(folder: Path, models: dict[str, Path], *, start: str = "instruct", **output: str | int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    recipe = {
        "models": {"instruct": str(models[start])},
        "steps": [{"op": "swap_vocabulary", "tokenizer": str(models["vocabulary"])}],
        "output": {"path": "out/adapted.gguf", "body": str(models["body"]), **output},
    }
    path.write_text(json.dumps(recipe))
    return path


def run(recipe: Path, *options: str) -> Path:
    result = pico.command("run", recipe, "--device", "cpu", *options)
    assert result.exit_code == 0, result.stderr
    return recipe.parent / "out" / "adapted.gguf"


def test_plan_run_and_what_is_next_to_the_file(tmp_path: Path, models) -> None:
    recipe = write_recipe(tmp_path, models)
    planned = pico.command("plan", recipe)
    assert planned.exit_code == 0 and "adapted.gguf" in planned.stdout and not (tmp_path / "out").exists()
    out = run(recipe)
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"adapted.gguf", "adapted.Modelfile", "adapted.README.md", "adapted.lepmerge_report.json",
                     "adapted.gguf.lepmerge_run.json"}  # fmt: skip
    assert "FROM ./adapted.gguf" in (out.parent / "adapted.Modelfile").read_text()
    again = pico.command("run", recipe, "--device", "cpu")
    assert again.exit_code == 0 and "complete already" in again.stderr
    pico.assert_one_line_error(pico.command("run", recipe, "--set", "output.tables=f16"), 1, "--overwrite")
    before = out.read_bytes()
    run(recipe, "--set", "output.tables=f16", "--overwrite")
    assert out.read_bytes() != before


@pytest.mark.parametrize("tables", ["f32", "f16", "q8_0", None])
def test_the_body_keeps_its_bytes_and_the_rest_is_the_results(tmp_path: Path, models, tables: str | None) -> None:
    out = run(write_recipe(tmp_path, models, **({"tables": tables} if tables else {})))
    file, body = GgufFile(out), GgufFile(models["body"])
    assert list(file.entries) == list(body.entries)
    new, old = out.read_bytes(), models["body"].read_bytes()
    tables_of_file = {"token_embd.weight", "output.weight"}
    for name, entry in body.entries.items():
        start = file.entries[name].start
        if name not in tables_of_file:
            assert new[start : start + entry.num_bytes] == old[entry.start : entry.start + entry.num_bytes]
    result = open_model(pico.run_recipe(
        tmp_path / "plain", {"instruct": models["instruct"]},
        [{"op": "swap_vocabulary", "tokenizer": str(models["vocabulary"])}],
    ))  # fmt: skip
    for role, name in (("input_embeddings", "token_embd.weight"), ("output_embeddings", "output.weight")):
        expected, got = result.table(role).rows(), GgufTensor.of(name, file).rows().float()
        error = float((got - expected).norm() / expected.norm())
        assert error <= {"f32": 0, "f16": 1e-3, "q8_0": 1e-2, None: 0.15}[tables], error
    tokens = file.value("tokenizer.ggml.tokens")
    assert tokens == [token for token, _ in sorted(result.vocabulary.all_ids.items(), key=lambda item: item[1])]
    unchanged = body.fields.keys() - {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
                                      "tokenizer.ggml.scores", "llama.vocab_size"}  # fmt: skip
    assert all(file.fields[key].data == body.fields[key].data for key in unchanged)
    assert file.value("llama.vocab_size") == len(tokens)


def test_special_ids_follow_their_tokens(tmp_path: Path, models) -> None:
    spec = json.loads((models["vocabulary"] / "tokenizer.json").read_text())
    file = GgufFile(run(write_recipe(tmp_path, models)))
    ids = {entry["content"]: entry["id"] for entry in spec["added_tokens"]}
    config = json.loads((models["instruct"] / "config.json").read_text())
    body = GgufFile(models["body"])
    for key in ("bos", "eos"):
        token = body.value("tokenizer.ggml.tokens")[config[f"{key}_token_id"]]
        assert file.value(f"tokenizer.ggml.{key}_token_id") == ids[token]
    types = file.value("tokenizer.ggml.token_type")
    assert all(types[id] == 3 for id in ids.values())


def test_a_gguf_file_is_a_model(tmp_path: Path, models) -> None:
    """The same recipe from the GGUF file alone: f32 tables equal those from the folder up to the file's rounding."""
    body = gguf_models.save_gguf(models["instruct"], tmp_path / "instruct.gguf", type=GGMLQuantizationType.F32)
    from_folder = run(write_recipe(tmp_path / "a", {**models, "body": body}, tables="f32"))
    from_file = run(write_recipe(tmp_path / "b", {**models, "body": body, "instruct": body}, tables="f32"))
    assert from_folder.read_bytes() == from_file.read_bytes()
    inspected = pico.command("inspect", body)
    assert inspected.exit_code == 0 and "F32" in inspected.stdout
    compared = pico.command("diff", models["instruct"], body)
    assert compared.exit_code == 0, compared.stderr
    pico.assert_one_line_error(
        pico.command("run", write_recipe(tmp_path / "c", {**models, "body": body, "instruct": body}),
                     "--set", "output={path: out}"), 2, "output.body", "lepmerge convert")  # fmt: skip


@pytest.mark.parametrize("method", ["conversion", "delta"])
def test_a_gguf_file_propagates_as_its_folder_does(tmp_path: Path, models, method: str) -> None:
    """Propagation and arithmetic on the tables read their instruct rows from the GGUF file."""
    body = gguf_models.save_gguf(models["instruct"], tmp_path / "instruct.gguf", type=GGMLQuantizationType.F32)
    tokenizer = Tokenizer.from_file(str(models["instruct"] / "tokenizer.json"))
    new = Tokenizer.from_file(str(models["vocabulary"] / "tokenizer.json"))
    base = pico.save_model(tmp_path / "base", tokenizer, width=64, seed=3, dtype=torch.float32)
    adapted = pico.save_adapted(tmp_path / "adapted", base, new)
    steps = [
        {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": method},
        {"op": "arithmetic", "tensors": "embeddings", "expression": "current + 0.5 * (instruct - base)"},
    ]
    written = []
    for number, instruct in enumerate((models["instruct"], body)):
        recipe = {
            "models": {"base": str(base), "instruct": str(instruct), "adapted": str(adapted)},
            "steps": steps,
            "output": {"path": f"out/{number}.gguf", "body": str(body), "tables": "f32"},
        }
        path = tmp_path / f"{number}.yaml"
        path.write_text(json.dumps(recipe))
        result = pico.command("run", path, "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        written.append((tmp_path / "out" / f"{number}.gguf").read_bytes())
    assert written[0] == written[1] != body.read_bytes()


def test_rows_without_a_token_are_unused_tokens(tmp_path: Path, models) -> None:
    """The instruct model's padded rows are accepted, and `pad_to_multiple_of` pads the result."""
    tokenizer = Tokenizer.from_file(str(models["instruct"] / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    padded = pico.save_model(
        tmp_path / "padded", tokenizer, width=64, chat=True, num_rows=size + 21, dtype=torch.float32
    )
    body = gguf_models.save_gguf(padded, tmp_path / "padded.gguf")
    out = run(write_recipe(tmp_path, {**models, "instruct": padded, "body": body}, pad_to_multiple_of=128))
    file = GgufFile(out)
    tokens, types = file.value("tokenizer.ggml.tokens"), file.value("tokenizer.ggml.token_type")
    num_tokens = size + ADDED
    assert len(tokens) == len(types) == file.value("llama.vocab_size") == file.entries["output.weight"].shape[0]
    assert len(tokens) % 128 == 0 and len(set(tokens)) == len(tokens)
    assert [id for id, type in enumerate(types) if type == 5] == list(range(num_tokens, len(tokens)))
    assert tokens[num_tokens] == f"[PAD{num_tokens}]"


def test_split_files_are_joined(tmp_path: Path, models) -> None:
    whole = run(write_recipe(tmp_path / "whole", models))
    parts = gguf_models.split(models["body"], tmp_path)
    joined = run(write_recipe(tmp_path / "split", {**models, "body": parts[0]}))
    assert joined.read_bytes() == whole.read_bytes()
    parts[1].unlink()
    result = pico.command("plan", write_recipe(tmp_path / "broken", {**models, "body": parts[0]}))
    pico.assert_one_line_error(result, 1, parts[1].name)


def test_wrong_bodies_are_refused_by_the_plan(tmp_path: Path, models) -> None:
    other = pico.save_model(
        tmp_path / "other", pico.byte_level([*pico.ENGLISH, *pico.RUSSIAN], 430), width=64, dtype=torch.float32
    )
    tokenizer_of = {**models, "body": gguf_models.save_gguf(other, tmp_path / "vocabulary.gguf")}
    trained = pico.save_model(
        tmp_path / "trained", pico.byte_level(pico.ENGLISH, 400), width=64, seed=5, chat=True, dtype=torch.float32
    )
    is_bytes = GgufFile(models["body"]).value("tokenizer.ggml.model") == "gpt2"
    cases = [(tokenizer_of, "not made from" if is_bytes else "is sentencepiece")]
    if is_bytes:
        rows_of = {**models, "body": gguf_models.save_gguf(trained, tmp_path / "rows.gguf")}
        cases.append((rows_of, "rows of token_embd.weight"))
    fields = GgufFile(models["body"]).fields
    changes = {
        "its architecture is qwen2": {"general.architecture": field_of(STRING, "qwen2")},
        "block_count is 3, but 2": {"llama.block_count": field_of(UINT32, 3)},
        "embedding_length is 32, but 64": {"llama.embedding_length": field_of(UINT32, 32)},
    }
    for part, change in changes.items():
        changed = gguf_models.rewrite(models["body"], tmp_path / f"{len(cases)}.gguf", {**fields, **change})
        cases.append(({**models, "body": changed}, part))
    cases.append(({**models, "body": tmp_path / "missing.gguf"}, "no file"))
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(models["body"].read_bytes()[:-100])
    cases.append(({**models, "body": truncated}, "truncated"))
    for number, (case, part) in enumerate(cases):
        recipe = write_recipe(tmp_path / str(number), case)
        pico.assert_one_line_error(pico.command("plan", recipe), 1, part)
        assert [path.name for path in recipe.parent.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ({"path": "out"}, "end in .gguf"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"tables": "q3"}, "q8_0"),
    ],
)
def test_wrong_outputs_are_faults_of_the_recipe(tmp_path: Path, models, output: dict[str, str], part: str) -> None:
    pico.assert_one_line_error(pico.command("plan", write_recipe(tmp_path, models, **output)), 2, part)


def test_a_step_that_changes_the_body_is_refused(tmp_path: Path, models) -> None:
    recipe = write_recipe(tmp_path, models)
    described = json.loads(recipe.read_text())
    described["steps"].append({"op": "arithmetic", "tensors": "body", "expression": "2 * instruct"})
    recipe.write_text(json.dumps(described))
    pico.assert_one_line_error(pico.command("plan", recipe), 2, "output.body", "is copied from the file")


def test_another_pre_tokenizer_is_refused(tmp_path: Path, models) -> None:
    """llama.cpp knows a pre-tokenizer by name only, so a vocabulary that splits otherwise would get other ids."""
    spec = json.loads((models["vocabulary"] / "tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "tokenizer.json").write_text(json.dumps(spec))
    result = pico.command("plan", write_recipe(tmp_path, {**models, "vocabulary": tmp_path / "vocabulary"}))
    assert result.exit_code == 1 and "pre-tokenizer" in result.stderr


def test_an_unknown_kind_of_vocabulary_is_refused(tmp_path: Path, models) -> None:
    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("t5")
    writer.add_token_list(["a"])
    writer.add_token_types([1])
    writer.add_tensor("token_embd.weight", torch.zeros(1, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pico.assert_one_line_error(pico.command("inspect", path), 1, "'t5'")
    pico.assert_one_line_error(pico.command("plan", write_recipe(tmp_path, {**models, "body": path})), 1, "'t5'")


def test_other_commands_name_the_way_to_a_folder(tmp_path: Path, models) -> None:
    (tmp_path / "text.txt").write_text("Some text.")
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps({"model": str(models["body"]), "data": "text.txt", "output": "out"}))
    for arguments in (
        ("train", config, "--dry-run"),
        ("compare", models["body"], "--text", tmp_path / "text.txt"),
        ("tokenizer", "extend", models["body"], tmp_path / "text.txt", "--add", "1", "-o", tmp_path / "out"),
    ):
        pico.assert_one_line_error(pico.command(*arguments), 1, "lepmerge convert")
