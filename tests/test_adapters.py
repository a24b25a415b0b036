"""Models with PEFT adapters equal what PEFT computes, option by option; with a larger vocabulary too."""

import json
from pathlib import Path

import peft_adapters
import pico
import pytest
import torch
import yaml
from peft_adapters import loaded, logits, save_adapter, save_base, with_peft
from transformers import AutoTokenizer

import lepmerge

LINEAR = ["q_proj", "v_proj", "down_proj"]
OPTIONS = {
    "list": {"target_modules": LINEAR},
    "regex": {"target_modules": r".*\.1\.(self_attn\.q_proj|mlp\.down_proj)"},
    "all-linear": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {"v_proj": 11},
    },
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "layers": {"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "norm": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "o_proj"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "embeddings dora": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved tables": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved input": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved output": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "kept tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 300]},
    "tokens of both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3], "lm_head": [7, 8]},
    },
}
PEFT_MERGES_WRONG = {("embeddings", True), ("embeddings dora", True), ("head", True), ("tokens of both", True)}
"""Cases in which PEFT's merge_and_unload is wrong: it adds the update of one module to a tied table, so both the input
and the output embeddings change."""


def merged(tmp_path: Path, base: Path, *adapters: Path, **entry) -> Path:
    """Return the output of a recipe without steps that starts from the base with its adapters."""
    model = {"path": str(base), "adapter": [str(adapter) for adapter in adapters], **entry}
    tmp_path.mkdir(exist_ok=True)
    recipe = {"models": {"donor": model}, "start": "donor", "output": {"path": "out"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return pico.run_file(tmp_path / "recipe.yaml", device="cpu")


def assert_one_rounding(got: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that values equal the exact ones rounded once. Half precision is computed in float32."""
    digits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[got.dtype]
    unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - digits)
    slack = exact.abs().amax() * (2.0**-50 if got.dtype == torch.float32 else 2.0**-22)
    assert bool(((got.double() - exact).abs() <= unit / 2 + slack).all())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_computes_what_peft_does(tmp_path: Path, english, option: str, tied: bool) -> None:
    base = save_base(tmp_path / "base", english, tied=tied)
    adapter = save_adapter(tmp_path / "adapter", base, **OPTIONS[option])
    out = merged(tmp_path, base, adapter)
    reference = with_peft(base, adapter)
    assert torch.allclose(logits(loaded(out)), logits(reference), atol=2e-5)
    if (option, tied) not in PEFT_MERGES_WRONG:
        with peft_adapters.quiet():
            exact = reference.merge_and_unload().state_dict()
        for name, tensor in lepmerge.open_model(f"{base}+{adapter}").tensors.items():
            assert_one_rounding(tensor.rows(), exact[name].reshape(-1, exact[name].shape[-1]))


TARGETS = {
    "qwen2": ["q_proj", "k_proj", "down_proj"],
    "gemma": ["q_proj", "k_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", TARGETS)
def test_every_architecture_computes_what_peft_does(tmp_path: Path, english, kind: str, dora: bool) -> None:
    base = save_base(tmp_path / "base", english, kind, tied=kind in ("gemma", "gpt2"), dtype=torch.bfloat16)
    options = {"target_modules": TARGETS[kind], "use_dora": dora, "fan_in_fan_out": kind == "gpt2"}
    adapter = save_adapter(tmp_path / "adapter", base, **options)
    with peft_adapters.quiet():
        exact = with_peft(base, adapter).merge_and_unload().state_dict()
    names = {}
    for name, tensor in lepmerge.open_model(f"{base}+{adapter}").tensors.items():
        in_memory = {"embed_out.weight": "lm_head.weight"}.get(name, name)
        wanted = exact[in_memory if in_memory in exact else name]  # transformers 4 keeps the stored name
        assert_one_rounding(tensor.rows(), wanted.reshape(-1, wanted.shape[-1]))
        names[name] = tensor.dtype
    assert set(names.values()) == {torch.bfloat16}


def test_scale_and_several_adapters(tmp_path: Path, english) -> None:
    base = save_base(tmp_path / "base", english)
    first = save_adapter(tmp_path / "first", base, target_modules=["q_proj", "o_proj"], use_dora=True)
    second = save_adapter(tmp_path / "second", base, seed=2, target_modules=["q_proj", "v_proj"])
    out = merged(tmp_path, base, first, second, scale=0.57)
    assert torch.allclose(logits(loaded(out)), logits(with_peft(base, first, second, scale=0.57)), atol=2e-5)
    report = json.loads((out / "lepmerge_report.json").read_text())["inputs"]["donor"]
    assert [adapter["scale"] for adapter in report["adapters"]] == [0.57, 0.57]
    assert "base + 0.57 × first + 0.57 × second (3 files, " in (out / "README.md").read_text()
    assert sorted(report["files"]) == [
        "first/adapter_model.safetensors",
        "model.safetensors",
        "second/adapter_model.safetensors",
    ]
    plain = merged(tmp_path / "each", base, first, second, scale=[0.0, 1.0])
    only_second = merged(tmp_path / "alone", base, second)
    name = "model.layers.0.self_attn.v_proj.weight"
    a, b = (lepmerge.open_model(folder).tensors[name].rows() for folder in (plain, only_second))
    assert torch.equal(a, b)


def test_an_adapter_of_a_larger_vocabulary_needs_no_resized_base(tmp_path: Path, english, russian) -> None:
    base = save_base(tmp_path / "base", english)
    options = {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]}
    num_rows = russian.get_vocab_size()
    adapter = save_adapter(tmp_path / "adapter", base, tokenizer=russian, num_rows=num_rows, **options)
    with pytest.raises(RuntimeError, match="size mismatch"):
        with_peft(base, adapter)
    out = merged(tmp_path, base, adapter)
    reference = with_peft(base, adapter, num_rows=num_rows)
    ids = AutoTokenizer.from_pretrained(adapter).encode(pico.RUSSIAN[0])
    assert max(ids) >= lepmerge.open_model(base).num_rows
    assert AutoTokenizer.from_pretrained(out).encode(pico.RUSSIAN[0]) == ids
    assert torch.allclose(logits(loaded(out), ids), logits(reference, ids), atol=2e-5)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == num_rows
    generated = loaded(out).generate(torch.tensor([ids[:4]]), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > 4


@pytest.mark.parametrize("options", [{}, {"trainable_token_indices": [400, 401, 402]}], ids=["frozen", "tokens"])
def test_tied_tables_that_grew_stay_tied(tmp_path: Path, english, options: dict) -> None:
    base = save_base(tmp_path / "base", english, tied=True)
    more = pico.edited(english)
    more.add_special_tokens(["<|a|>", "<|b|>", "<|c|>"])
    adapter = save_adapter(
        tmp_path / "adapter", base, tokenizer=more, num_rows=403, target_modules=["q_proj"], **options
    )
    out = merged(tmp_path, base, adapter)
    assert lepmerge.open_model(out).tied and lepmerge.open_model(out).num_rows == 403
    reference = with_peft(base, adapter, num_rows=403)
    assert torch.allclose(logits(loaded(out), range(370, 403)), logits(reference, range(370, 403)), atol=2e-5)
    assert AutoTokenizer.from_pretrained(out).encode("<|b|>") == [more.token_to_id("<|b|>")]


def test_the_result_takes_the_chat_template_of_the_adapter(tmp_path: Path, english) -> None:
    base = save_base(tmp_path / "base", english)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    pico.save_tokenizer(english, adapter)
    (adapter / "chat_template.jinja").write_text(pico.CHAT_TEMPLATE)
    out = merged(tmp_path, base, adapter)
    assert AutoTokenizer.from_pretrained(out).chat_template == pico.CHAT_TEMPLATE
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (out / "adapter_config.json").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_compare_and_generate_take_a_model_with_an_adapter(tmp_path: Path, english, russian, tied: bool) -> None:
    """`base+adapter`, whose vocabulary is larger, is measured and answers as the merged model."""
    base = save_base(tmp_path / "base", english, tied=tied)
    (base / "chat_template.jinja").write_text(pico.CHAT_TEMPLATE)
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True} if tied else {
        "modules_to_save": ["embed_tokens", "lm_head"]
    }  # fmt: skip
    rows = russian.get_vocab_size()
    adapter = save_adapter(
        tmp_path / "ru", base, tokenizer=russian, num_rows=rows, target_modules=["q_proj", "up_proj"], **options
    )
    merged = pico.run_recipe(tmp_path / "merged", {"instruct": f"{base}+{adapter}"}, [])
    (tmp_path / "ru.txt").write_text("\n\n".join(pico.RUSSIAN * 4))
    compared = pico.command(
        "compare", f"merged={merged}", f"{base}+{adapter}", "--text", f"ru={tmp_path / 'ru.txt'}", "--copies", 0,
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert compared.exit_code == 0, compared.stderr
    found = json.loads(compared.stdout)["models"]
    bits = [found[name]["texts"]["ru"]["bits_per_byte"] for name in ("ru", "merged")]
    assert bits[0] == bits[1] and found["ru"]["rows"] == found["merged"]["rows"] == rows
    assert found["ru"]["adapters"] == [str(adapter)] and found["ru"]["chat_template"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Как дела?"}) + "\n")
    answers = []
    for number, model in enumerate((merged, f"{base}+{adapter}")):
        done = pico.command(
            "generate", model, prompts, "-o", tmp_path / f"answers{number}", "--max-new-tokens", 5, "--device", "cpu"
        )
        assert done.exit_code == 0, done.stderr
        answers.append(json.loads((tmp_path / f"answers{number}/report.json").read_text())["examples"])
    assert answers[0]["cut at the limit"]["answer"]
    assert answers[0] == answers[1]
