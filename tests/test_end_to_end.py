"""A recipe on pico models, from YAML to a model that transformers loads and chats with."""

from pathlib import Path

import pico
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lepmerge


def test_output_loads_without_warning_and_chats(tmp_path: Path, setting: dict[str, Path]) -> None:
    recipe = lepmerge.load_recipe(pico.write_recipe(tmp_path / "recipe.yaml", **setting))
    folder = lepmerge.run_plan(lepmerge.make_plan(recipe), device="cpu")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Привет!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert tokenizer.decode(inputs["input_ids"][0]) == "<|user|>Привет!<|end|><|assistant|>"
    reply = model.generate(**inputs, do_sample=False)
    assert reply.shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|end|>")]
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]


def test_same_recipe_gives_the_same_bytes(tmp_path: Path, setting: dict[str, Path]) -> None:
    folders = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        recipe = lepmerge.load_recipe(pico.write_recipe(tmp_path / name / "recipe.yaml", **setting))
        folders.append(lepmerge.run_plan(lepmerge.make_plan(recipe), device="cpu"))
    files = sorted(path.name for path in folders[0].iterdir())
    assert files == sorted(path.name for path in folders[1].iterdir())
    different = [name for name in files if (folders[0] / name).read_bytes() != (folders[1] / name).read_bytes()]
    assert set(different) <= {"lepmerge_run.json"}


def test_lazy_rows_of_a_stored_tensor(setting: dict[str, Path]) -> None:
    model = lepmerge.open_model(setting["base"])
    rows = model.tensors["model.embed_tokens.weight"].rows(3, 7)
    whole = AutoModelForCausalLM.from_pretrained(setting["base"], dtype=torch.bfloat16).get_input_embeddings().weight
    assert torch.equal(rows, whole[3:7])
