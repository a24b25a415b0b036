"""Folders whose files contradict each other: read as transformers reads them, or refused before any work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lepmerge.vocabulary.chat_templates import templates_in
from lepmerge.vocabulary.vocabulary import Vocabulary

Change = Callable[[Path], object]
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path: Path, setting: dict[str, Path]) -> Path:
    return Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))


@pytest.fixture
def swap(tmp_path: Path, russian) -> Path:
    """A recipe that gives the folder another vocabulary."""
    pico.save_tokenizer(russian, tmp_path / "new")
    step = {"op": "swap_vocabulary", "tokenizer": "./new"}
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump({"models": {"instruct": "./instruct"}, "steps": [step], "output": {"path": "out"}}))
    return path


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**content, **values}.items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_spec(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))


def template(value: Any) -> Change:
    """Return a change that puts the chat template into tokenizer_config.json."""

    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        edit(folder / "tokenizer_config.json", chat_template=value)

    return change


def prefix(folder: Path) -> None:
    """A post-processor that puts a token before texts that no row has."""
    pieces = [{"SpecialToken": {"id": "<no>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<no>": {"id": "<no>", "ids": [999], "tokens": ["<no>"]}}
    part = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}
    change_spec(folder, lambda spec: spec.update(post_processor=part))


REFUSED: dict[str, tuple[Change, str]] = {
    "tie as text": (
        lambda f: edit(f / "config.json", tie_word_embeddings="true"),
        "should be true or false, not 'true'",
    ),
    "size as text": (lambda f: edit(f / "config.json", vocab_size="390"), "vocab_size should be a whole number"),
    "id as number": (lambda f: edit(f / "config.json", bos_token_id=1.0), "bos_token_id should be a whole number"),
    "id as text": (
        lambda f: edit(f / "generation_config.json", eos_token_id=[1, "2"]),
        "generation_config.json: eos_token_id should be a whole number, not [1, '2']",
    ),
    "pairs": (
        lambda f: edit(f / "generation_config.json", forced_decoder_ids=[[1, 5], [2]]),
        "generation_config.json: forced_decoder_ids should be a list of pairs, not [[1, 5], [2]]",
    ),
    "last layers": (
        lambda f: edit(f / "config.json", num_hidden_layers=4),
        "num_hidden_layers 4, but the last stored layer is number 1",
    ),
    "model and adapter": (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path="base"),
        "holds a whole model and adapter_config.json",
    ),
    "template of other types": (template(5), "chat_template should be a text or a list of objects"),
    "template without a name": (template([{"template": "x"}, "y"]), "chat_template should be a text or a list"),
    "template in cp1251": (
        lambda f: (f / "chat_template.jinja").write_bytes("{# привет #}".encode("cp1251")),
        "chat_template.jinja is not UTF-8 text",
    ),
    "empty vocabulary": (
        lambda f: change_spec(f, lambda spec: spec["model"].update(vocab={}, merges=[])),
        "model.vocab is empty",
    ),
    "token before texts": (prefix, "puts '<no>' (id 999) around texts, but the tokenizer or the model has no such"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused_before_any_work(tmp_path: Path, folder: Path, swap: Path, name: str) -> None:
    change, part = REFUSED[name]
    change(folder)
    before = pico.tree(tmp_path)
    planned, run = pico.command("plan", swap), pico.command("run", swap, "--device", "cpu")
    pico.assert_one_line_error(planned, 1, part, "instruct")
    assert run.stderr == planned.stderr and pico.tree(tmp_path) == before


@pytest.mark.parametrize("name", ["tie as text", "model and adapter", "template in cp1251", "token before texts"])
def test_so_it_is_by_a_training_and_a_comparison(tmp_path: Path, folder: Path, name: str) -> None:
    change, part = REFUSED[name]
    change(folder)
    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH * 9))
    config = {"model": "./instruct", "data": "text.txt", "output": "trained", "block_size": 64}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    pico.assert_one_line_error(pico.command("train", tmp_path / "train.yaml", "--dry-run"), 1, part)
    pico.assert_one_line_error(pico.command("compare", folder, "--text", tmp_path / "text.txt"), 1, part)


def test_a_link_to_nothing_is_named(folder: Path, swap: Path) -> None:
    """The cache of an interrupted download holds such links."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nowhere")
    message = f"model.safetensors is a link to {folder / 'nowhere'}, which does not exist; download the model again"
    pico.assert_one_line_error(pico.command("plan", swap), 1, message)
    assert not (folder.parent / "out").exists()


def test_a_head_of_another_name_is_the_output_table(folder: Path, swap: Path) -> None:
    """InternLM2: model.tok_embeddings and output, by code that transformers does not have."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.tok_embeddings.weight"] = tensors.pop(TABLE)
        tensors["output.weight"] = tensors.pop(HEAD)

    change_tensors(folder, rename)
    edit(folder / "config.json", model_type="internlm2", architectures=["InternLM2ForCausalLM"])
    result = pico.command("run", swap, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    old, new = load_file(folder / "model.safetensors"), load_file(folder.parent / "out" / "model.safetensors")
    ids = Vocabulary.in_folder(folder).ids_in(Vocabulary.in_folder(folder.parent / "out"))
    assert len(ids) > 300
    for name in ("model.tok_embeddings.weight", "output.weight"):
        assert all(torch.equal(new[name][new_id], old[name][id]) for id, new_id in ids.items())


def test_a_body_that_is_not_finite_is_named_by_the_training(tmp_path: Path, folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH * 9))
    config = {"model": "./instruct", "data": "text.txt", "output": "trained", "block_size": 64}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    result = pico.command("train", tmp_path / "train.yaml", "--device", "cpu", "-q")
    pico.assert_one_line_error(result, 1, "its logits are not finite: its weights hold NaN")
    assert not (tmp_path / "trained").exists() and not (tmp_path / ".trained.lepmerge").exists()


def test_several_templates_without_a_default(tmp_path: Path, folder: Path) -> None:
    template([{"name": "rag", "template": pico.CHAT_TEMPLATE}])(folder)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Who?"}\n')
    result = pico.command("generate", folder, tmp_path / "prompts.jsonl", "-o", tmp_path / "new")
    pico.assert_one_line_error(result, 1, "prompts.jsonl:1", "no default", "rag")


def test_named_templates_as_an_object(folder: Path) -> None:
    template({"default": "a", "rag": "b"})(folder)
    assert templates_in(folder) == {"default": "a", "rag": "b"} == AutoTokenizer.from_pretrained(folder).chat_template


def test_two_files_that_name_another_end_token(folder: Path, swap: Path) -> None:
    edit(folder / "special_tokens_map.json", eos_token="</s>")
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    loaded = AutoTokenizer.from_pretrained(folder).eos_token
    assert Vocabulary.in_folder(folder).names["eos_token"] == loaded
    assert pico.command("run", swap, "--device", "cpu").exit_code == 0
    assert AutoTokenizer.from_pretrained(folder.parent / "out").eos_token == loaded


def test_an_id_that_the_library_does_not_give(folder: Path, swap: Path) -> None:
    """The chat's last token has id 410 in the file, but the library counts, so its row is the one after the others."""
    end = max(json.loads((folder / "tokenizer.json").read_text())["added_tokens"], key=lambda entry: entry["id"])
    change_spec(folder, lambda spec: spec["added_tokens"][-1].update(id=end["id"] + 21))
    edit(folder / "tokenizer_config.json", added_tokens_decoder=None)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(end["content"]) == end["id"]
    result = pico.command("run", swap, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert f"gives {end['content']!r} the id {end['id'] + 21}, but the tokenizers library" in result.stderr
    out = folder.parent / "out"
    new_id = AutoTokenizer.from_pretrained(out).convert_tokens_to_ids(end["content"])
    old, new = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert torch.equal(new[TABLE][new_id], old[TABLE][end["id"]]) and new[HEAD].isfinite().all()
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == new_id


def test_merges_that_are_dropped_at_random(folder: Path, swap: Path) -> None:
    change_spec(folder, lambda spec: spec["model"].update(dropout=0.9))
    outputs = []
    for name in ("first", "second"):
        result = pico.command("run", swap, "--device", "cpu", "--set", f"output.path={folder.parent / name}")
        assert result.exit_code == 0 and "drops merges at random (model.dropout)" in result.stderr, result.stderr
        outputs.append((folder.parent / name / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_what_belongs_to_the_old_vocabulary_is_converted_or_left_out(folder: Path, swap: Path) -> None:
    old = json.loads((folder / "tokenizer.json").read_text())
    token, id = next(item for item in old["model"]["vocab"].items() if item[1] == 300)
    edit(folder / "preprocessor_config.json", image_token_id=id, size=300, audio_token_id=38_000)
    for name in ("spm.model", "vocab.bpe", "bpe.codes", "sentencepiece.bpe.model"):
        (folder / name).write_text("old")
    result = pico.command("run", swap, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    out = folder.parent / "out"
    new_id = Vocabulary.in_folder(folder).ids_in(Vocabulary.in_folder(out))[id]
    assert new_id != id, token
    config = json.loads((out / "preprocessor_config.json").read_text())
    assert config == {"image_token_id": new_id, "size": 300, "audio_token_id": -1}
    assert "preprocessor_config.json: audio_token_id 38000: the output has no such token" in result.stderr
    assert not {"spm.model", "vocab.bpe", "bpe.codes", "sentencepiece.bpe.model"} & set(os.listdir(out))


def test_a_protobuf_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """protobuf before 5.26 lacks what sentencepiece's module asks for."""
    (tmp_path / "google" / "protobuf").mkdir(parents=True)
    (tmp_path / "google" / "protobuf" / "__init__.py").write_text("__version__ = '4.25.0'")
    (tmp_path / "protobuf-4.25.0.dist-info").mkdir()
    (tmp_path / "protobuf-4.25.0.dist-info" / "METADATA").write_text("Name: protobuf\nVersion: 4.25.0\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"\n\x0e")
    program = "import pathlib, lepmerge.vocabulary.autotokenizer as a; a.load_tokenizer(pathlib.Path('model'))"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True
    )
    line = result.stderr.decode().splitlines()[-1]
    assert "tokenizer.model cannot be converted to tokenizer.json with sentencepiece " in line
    assert " and protobuf 4.25.0, which do not fit each other: pip install -U sentencepiece protobuf" in line
