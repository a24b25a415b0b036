"""Models that scale, cap or bias their logits and embeddings train as transformers computes them, or are refused early.

The models are random and their logits are large, so that a missing cap or scale changes the loss.
"""

import json
from pathlib import Path

import pico
import pytest
import torch
import torch.nn.functional as F
import training
import transformers
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from lepmerge.errors import CheckpointError
from lepmerge.training.body import check_architecture, load_body
from lepmerge.training.loader import load_network
from lepmerge.training.loss import linear_cross_entropy

SMALL = {**pico.SMALL, "max_position_embeddings": 128, "pad_token_id": 2}
NO_HEAD_DIM = {key: value for key, value in SMALL.items() if key != "head_dim"}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
LLAMA4_VISION = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
IS_FOUR = transformers.__version__.startswith("4.")
PLAIN = {
    "gemma2": ("Gemma2Config", {**SMALL, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", SMALL),
    "cohere": ("CohereConfig", NO_HEAD_DIM),
    "granite": ("GraniteConfig", {**NO_HEAD_DIM, "logits_scaling": 6.0, "embedding_multiplier": 12.0}),
    "minicpm3": ("MiniCPM3Config", {**NO_HEAD_DIM, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
                                    "qk_rope_head_dim": 8, "v_head_dim": 8}),
    "falcon-h1": ("FalconH1Config", {**SMALL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
                                     "mamba_d_state": 8, "mamba_n_groups": 1, "lm_head_multiplier": 0.3,
                                     "embedding_multiplier": 5.0}),
    "phi": ("PhiConfig", NO_HEAD_DIM),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 4}),
    "opt": ("OPTConfig", {**NO_HEAD_DIM, "ffn_dim": 32, "word_embed_proj_dim": 8}),
    "mamba": ("MambaConfig", MAMBA),
}  # fmt: skip
WRAPPERS = {
    "llava": ("LlavaConfig", {**SMALL, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}),
    "mistral3": ("Mistral3Config", {**SMALL, "model_type": "mistral"},
                 {**VISION, "model_type": "pixtral", "head_dim": 8}),
    "paligemma": ("PaliGemmaConfig", {**SMALL, "model_type": "gemma2", "query_pre_attn_scalar": 8},
                  {**VISION, "model_type": "siglip_vision_model", "projection_dim": 16}),
    "llama4": ("Llama4Config", {**SMALL, "intermediate_size_mlp": 32, "num_local_experts": 2}, LLAMA4_VISION),
    "qwen2.5-vl": ("Qwen2_5_VLConfig", {**NO_HEAD_DIM, "rope_scaling" if IS_FOUR else "rope_parameters": {
        "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}),
}  # fmt: skip
WITHOUT_DOCUMENTS = ("mamba", "opt", "falcon-h1", *(["gptj"] if IS_FOUR else []))
"""In these architectures the documents of a block attend to one another."""


def saved(folder: Path, name: str, tokenizer, *, seed: int = 0, chat: bool = False) -> Path:
    """Save a random model of an architecture, with large logits, and its tokenizer."""
    fast = pico.save_tokenizer(tokenizer, folder, chat=chat)
    common = {"vocab_size": len(fast), "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    torch.manual_seed(seed)
    if name in WRAPPERS:
        config_class, text, vision = WRAPPERS[name]
        images = {"image_token_index": 5, "image_token_id": 5, "video_token_id": 6}
        config = getattr(transformers, config_class)(text_config={**text, **common}, vision_config=vision, **images)
        model = AutoModelForImageTextToText.from_config(config)
    else:
        config_class, values = PLAIN[name]
        model = AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**values, **common))
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.mul_(40)
        if head.bias is not None:
            head.bias.normal_()
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, name: str):
    auto = AutoModelForImageTextToText if name in WRAPPERS else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("name", [*PLAIN, *WRAPPERS])
def test_loss_and_gradients_are_those_of_transformers(tmp_path: Path, english, name: str) -> None:
    if name in PLAIN and not hasattr(transformers, PLAIN[name][0]):
        pytest.skip(f"transformers {transformers.__version__} has no {PLAIN[name][0]}")
    folder = saved(tmp_path, name, english)
    isolated = name not in WITHOUT_DOCUMENTS
    rows = english.get_vocab_size()
    if IS_FOUR and name == "paligemma":
        with pytest.raises(CheckpointError, match="PaliGemmaForConditionalGeneration of .* attend to later tokens"):
            load_body(folder, dtype=torch.float32, device=training.CPU, isolated=isolated, num_rows=rows)
        return
    body = load_body(folder, dtype=torch.float32, device=training.CPU, isolated=isolated, num_rows=rows)
    model = reference(folder, name)
    model.requires_grad_(False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    ids = torch.randint(8, rows, (2, 12), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=ids, use_cache=False).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    expected.backward()
    embedded = body.embed(embedding.weight.detach(), ids).requires_grad_()
    hidden = body(embedded)[:, :-1].flatten(0, 1)
    table = head.weight.detach()
    grad = torch.zeros_like(table)
    total, grad_hidden = linear_cross_entropy(
        hidden.detach(), table, ids[:, 1:].flatten(), scale=1.0, transform=body.transform, grad_RD=grad
    )
    hidden.backward(grad_hidden)
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(grad, head.weight.grad, atol=1e-4 * float(head.weight.grad.abs().max()))
    grad_input = torch.zeros_like(embedding.weight).index_add_(
        0, ids.flatten(), embedded.grad.flatten(0, 1) * body.scale
    )
    assert torch.allclose(grad_input, embedding.weight.grad, atol=1e-4 * float(embedding.weight.grad.abs().max()))


@pytest.mark.parametrize("small_logits", [False, True])
def test_the_cap_of_gemma2_is_known_whatever_the_size_of_its_logits(tmp_path: Path, english, small_logits) -> None:
    folder = saved(tmp_path, "gemma2", english)
    if small_logits:
        model = reference(folder, "gemma2")
        model.get_output_embeddings().weight.data.mul_(1e-4)
        model.save_pretrained(folder)
    body = load_body(folder, dtype=torch.float32, device=training.CPU, isolated=True, num_rows=400)
    assert body.transform.cap == 30.0 and body.transform.scale == 1.0


def settings_of(folder: Path, model: str, **options) -> Path:
    (folder / "text.txt").write_text("\n\n".join(pico.ENGLISH * 8))
    config = {
        "model": model, "data": "text.txt", "block_size": 48, "batch_size": 4, "max_tokens": 1500, "warmup_steps": 1,
        "precision": "fp32", "learning_rate": 1e-2, "output": "adapted", **options,
    }  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return folder / "train.yaml"


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_train_propagate_reload_generate(tmp_path: Path, english, russian, name: str) -> None:
    base = saved(tmp_path / "base", name, english)
    instruct = saved(tmp_path / "instruct", name, english, seed=1, chat=True)
    pico.save_tokenizer(russian, tmp_path / "vocabulary")
    path = settings_of(tmp_path, "base", tokenizer="vocabulary")
    result = pico.command("train", path, "--device", "cpu", "-q")
    assert result.exit_code == 0, result.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "adapted" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    models = {"base": base, "instruct": instruct, "adapted": tmp_path / "adapted"}
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", **models)
    result = pico.command("run", recipe, "--device", "cpu", "-q")
    assert result.exit_code == 0, result.stderr
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("Модель", return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=2)
    assert written.shape[1] == ids.shape[1] + 5


OTHER_WRAPPERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("llava", "qwen2.5-vl")]


@pytest.mark.parametrize("name", ["mistral3", *OTHER_WRAPPERS])
def test_multimodal_models_by_the_command_line(tmp_path: Path, english, russian, name: str) -> None:
    """train, run with the trained tables, and compare with the original: the text model is what counts."""
    base = saved(tmp_path / "base", name, english)
    pico.save_tokenizer(russian, tmp_path / "vocabulary")
    path = settings_of(tmp_path, "base", tokenizer="vocabulary", max_tokens=300)
    result = pico.command("train", path, "--device", "cpu", "-q", "--full", tmp_path / "whole")
    assert result.exit_code == 0, result.stderr
    options = ("--copies", 0, "--device", "cpu", "--json")
    compared = pico.command("compare", base, tmp_path / "whole", "--text", tmp_path / "text.txt", *options)
    assert compared.exit_code == 0, compared.stderr
    old, new = json.loads(compared.stdout)["models"].values()
    assert new["rows"] == russian.get_vocab_size() > old["rows"] == english.get_vocab_size()
    vision = [load_file(next(folder.glob("*.safetensors"))) for folder in (base, tmp_path / "whole")]
    names = [key for key in vision[0] if "vision" in key or "visual" in key]
    assert names and all(torch.equal(vision[0][key], vision[1][key]) for key in names)
    assert new["texts"]["text"]["bits_per_byte"] != old["texts"]["text"]["bits_per_byte"]


def test_mamba_trains_without_separate_documents(tmp_path: Path, english) -> None:
    saved(tmp_path / "base", "mamba", english)
    path = settings_of(tmp_path, "base")
    for options in (("--dry-run",), ()):
        result = pico.command("train", path, "--device", "cpu", "-q", *options)
        pico.assert_one_line_error(result, 1, "MambaForCausalLM", "packing: concatenate")
    assert not list(tmp_path.rglob("tokens*"))
    result = pico.command("train", path, "--set", "packing=concatenate", "--device", "cpu", "-q")
    assert result.exit_code == 0, result.stderr


def test_a_bias_per_token_keeps_the_vocabulary(tmp_path: Path, english, russian) -> None:
    folder = saved(tmp_path, "phi", english)
    check_architecture(folder, isolated=True, num_rows=english.get_vocab_size())
    with pytest.raises(CheckpointError, match=r"bias per token \(387\).* 600 rows .*own vocabulary"):
        check_architecture(folder, isolated=True, num_rows=600)
    with pytest.raises(CheckpointError, match="bias per token"):
        load_body(folder, dtype=torch.float32, device=training.CPU, isolated=True, num_rows=600)


def test_a_second_table_is_refused_before_any_work(tmp_path: Path, english) -> None:
    """Gemma 3n also looks up every token in a table for all layers, which training would not extend."""
    fast = pico.save_tokenizer(english, tmp_path / "base")
    config = transformers.Gemma3nTextConfig(
        **SMALL, vocab_size=len(fast), vocab_size_per_layer_input=len(fast), hidden_size_per_layer_input=8,
        num_kv_shared_layers=0, laurel_rank=4, layer_types=["full_attention"] * 2, activation_sparsity_pattern=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    path = settings_of(tmp_path, "base")
    for options in (("--dry-run",), ()):
        result = pico.command("train", path, "--device", "cpu", "-q", *options)
        pico.assert_one_line_error(result, 1, "Gemma3nForCausalLM", "more with its tokens")
    assert not list(tmp_path.rglob("tokens*"))


def test_head_that_is_not_linear_is_refused(tmp_path: Path, english, monkeypatch) -> None:
    """Anything after the head other than bias, scale and cap is refused, for example squared logits."""
    folder = saved(tmp_path, "granite", english)
    forward = transformers.GraniteForCausalLM.forward

    def squared(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        found.logits = found.logits * found.logits.abs()
        return found

    monkeypatch.setattr(transformers.GraniteForCausalLM, "forward", squared)
    with pytest.raises(CheckpointError, match="GraniteForCausalLM does more with its hidden states"):
        check_architecture(folder, isolated=True, num_rows=400)


def test_a_model_whose_tokens_attend_to_later_ones_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model: in BertLMHeadModel of .* tokens attend to later tokens"):
        load_network(tmp_path, name="model", dtype=torch.float32, device=training.CPU)
