"""lepmerge takes a checkpoint as tied exactly if transformers does, and its output says the same."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lepmerge
from lepmerge.errors import CheckpointError
from lepmerge.models.inspection import inspect

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CLASSES = {"llama": "LlamaConfig", "gemma3_text": "Gemma3TextConfig", "qwen2": "Qwen2Config"}


def saved(folder: Path, tokenizer, kind: str, *, says: bool | None, head: str) -> Path:
    """Save a random model whose config says this of ties, with no head, an equal one or a different one."""
    fast = pico.save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = getattr(transformers, CLASSES[kind])(**SMALL, vocab_size=len(fast), tie_word_embeddings=False)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if head == "none":
        del tensors[HEAD]
    elif head == "equal":
        tensors[HEAD] = tensors[TABLE].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config if says is None else config | {"tie_word_embeddings": says}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 37).view(2, 16)).logits


CASES = {  # what is stored and said → tied in transformers, where a head is missing and not tied: random
    ("llama", True, "none"): True,
    ("llama", True, "equal"): True,
    ("llama", True, "different"): False,
    ("llama", False, "equal"): False,
    ("llama", False, "different"): False,
    ("llama", None, "equal"): False,
    ("llama", None, "different"): False,
    ("gemma3_text", None, "none"): True,
    ("gemma3_text", None, "equal"): True,
    ("gemma3_text", None, "different"): False,
    ("gemma3_text", False, "different"): False,
    ("qwen2", True, "different"): False,
}


@pytest.mark.parametrize(("case", "tied"), CASES.items(), ids=lambda value: str(value))
def test_a_recipe_without_steps_computes_what_the_input_computes(tmp_path: Path, english, case, tied: bool) -> None:
    kind, says, head = case
    folder = saved(tmp_path / "model", english, kind, says=says, head=head)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    is_v5 = int(transformers.__version__.partition(".")[0]) >= 5  # 4 ties silently where a head differs
    if is_v5:
        assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied
    assert lepmerge.open_model(folder).tied is tied
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [])
    if is_v5:
        assert torch.equal(logits(out), logits(folder))
    assert (HEAD in load_file(out / "model.safetensors")) is not tied
    config, before = (json.loads((path / "config.json").read_text()) for path in (out, folder))
    contradicted = head == "different" and says is not False and (says or kind == "gemma3_text")
    assert config == (before | {"tie_word_embeddings": False} if contradicted else before)
    notes = json.loads((out / "lepmerge_report.json").read_text())["notes"]
    assert bool(notes) is (contradicted or (head == "equal" and tied))


@pytest.mark.parametrize("says", [None, False])
def test_a_missing_head_that_nothing_ties_is_refused(tmp_path: Path, english, says: bool | None) -> None:
    folder = saved(tmp_path / "model", english, "llama", says=says, head="none")
    with pytest.raises(CheckpointError, match=r"no output table .* tie_word_embeddings: false: .*incomplete"):
        lepmerge.open_model(folder)


def test_propagation_keeps_a_trained_head_as_a_table_of_its_own(tmp_path: Path, english, russian) -> None:
    """As adapter merges leave them: base and adapted are tied; the instruct model says so too, but has another head."""
    models = {}
    models["base"] = pico.save_model(tmp_path / "base", english, tied=True)
    models["instruct"] = pico.save_instruct(tmp_path / "instruct", models["base"], english, tied=True)
    models["adapted"] = pico.save_adapted(tmp_path / "adapted", models["base"], russian)
    path = models["instruct"] / "model.safetensors"
    tensors = load_file(path)
    head = tensors[TABLE] + 0.5
    save_file({**tensors, HEAD: head}, path, metadata={"format": "pt"})
    step = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "delta"}
    out = pico.run_recipe(tmp_path / "run", models, [step])
    got, adapted = load_file(out / "model.safetensors"), load_file(models["adapted"] / "embeddings.safetensors")[TABLE]
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    (note,) = json.loads((out / "lepmerge_report.json").read_text())["notes"]
    assert "says tie_word_embeddings: true, but the stored lm_head.weight differs" in note
    shared = english.token_to_id("e"), russian.token_to_id("e")
    base = load_file(models["base"] / "model.safetensors")[TABLE]
    for name, of_instruct in ((TABLE, tensors[TABLE]), (HEAD, head)):
        wanted = adapted[shared[1]].float() + (of_instruct[shared[0]].float() - base[shared[0]].float())
        assert torch.equal(got[name][shared[1]], wanted.to(torch.bfloat16)), name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(loaded.get_output_embeddings().weight, got[HEAD])


def test_training_keeps_a_tie_that_only_the_class_says(tmp_path: Path, english) -> None:
    from lepmerge.training.config import load_train_config
    from lepmerge.training.setting import prepare

    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH))
    for head, roles in (("equal", ["input_embeddings"]), ("different", ["input_embeddings", "output_embeddings"])):
        saved(tmp_path / head, english, "gemma3_text", says=None, head=head)
        (tmp_path / "train.yaml").write_text(f"{{model: ./{head}, data: text.txt, output: trained}}")
        setting = prepare(load_train_config(tmp_path / "train.yaml"))
        assert list(setting.rows) == roles
        assert setting.start.config.get("tie_word_embeddings") is (None if head == "equal" else False)


WRAPPERS = {
    "llava": ("LlavaConfig", "llama", False),
    "mistral3": ("Mistral3Config", "mistral", True),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "qwen2_5_vl_text", False),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_class_of_a_silent_wrapper_decides(tmp_path: Path, setting, name: str) -> None:
    """The text model is moved into a wrapper, whose config says nothing; its head is equal to the table."""
    folder = Path(shutil.copytree(setting["base"], tmp_path / name))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    renamed = {key.replace("model.", "model.language_model."): tensor for key, tensor in tensors.items()}
    save_file({**renamed, HEAD: tensors[TABLE].clone()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    _, text_type, tied = WRAPPERS[name]
    text = {key: config[key] for key in (*SMALL, "vocab_size") if key in config} | {"model_type": text_type}
    (folder / "config.json").write_text(json.dumps({"model_type": name, "text_config": text}))
    model = lepmerge.open_model(folder)
    built = transformers.AutoConfig.from_pretrained(folder)
    if int(transformers.__version__.partition(".")[0]) >= 5:
        assert built.tie_word_embeddings is tied and model.tied is tied
    assert model.tables["input_embeddings"] == "model.language_model.embed_tokens.weight"
    assert WRAPPERS[name][0] in inspect(model)["tied_because"]
