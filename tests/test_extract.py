"""lepmerge extract: base + adapter gives the tuned model back, in lepmerge and in PEFT."""

import json
from pathlib import Path

import pico
import pytest
import torch
from peft_adapters import loaded, logits, save_adapter, save_base, with_peft
from pico import assert_one_line_error, command
from safetensors.torch import load_file, save_file
from test_adapters import merged

import lepmerge
from lepmerge.extraction.extract import Wanted, extract
from lepmerge.extraction.low_rank import of_energy, of_rank
from lepmerge.models.model import Model


def assert_rounding(got: Model, wanted: Model) -> None:
    """Assert that tensors are equal up to rounding: of bfloat16, or of factors stored in float32."""
    assert got.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        a, b = got.tensors[name].rows().double(), tensor.rows().double()
        near = 2.0**-8 * b.abs() if tensor.dtype == torch.bfloat16 else 0.0
        assert float(((a - b).abs() - near).max()) <= 2.0**-22 * float(b.abs().max()), name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_a_merged_lora_comes_back_at_its_rank(tmp_path: Path, english, kind: str, tied: bool) -> None:
    base = save_base(tmp_path / "base", english, kind, tied=tied)
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "phi3": ["qkv_proj"]}[kind]
    options = {"target_modules": targets, "fan_in_fan_out": kind == "gpt2"}
    if kind == "llama":
        options |= {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": tied}
    tuned = merged(tmp_path, base, save_adapter(tmp_path / "lora", base, r=8, **options))
    result = command("extract", base, tuned, "-o", tmp_path / "out-lora", "--rank", 8, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert str(tmp_path / "out-lora") in result.stdout
    assert_rounding(lepmerge.open_model(f"{base}+{tmp_path / 'out-lora'}"), lepmerge.open_model(tuned))
    assert torch.allclose(logits(with_peft(base, tmp_path / "out-lora")), logits(loaded(tuned)), atol=1e-5)
    config = json.loads((tmp_path / "out-lora" / "adapter_config.json").read_text())
    assert config["r"] == 8 and not (tmp_path / "out-lora" / "tokenizer.json").exists()


def test_at_full_rank_another_vocabulary_too(tmp_path: Path, setting) -> None:
    base, tuned = setting["base"], setting["instruct"]
    out = tmp_path / "adapter"
    assert command("extract", base, tuned, "-o", out, "--energy", 1, "--device", "cpu").exit_code == 0
    whole, again = lepmerge.open_model(tuned), lepmerge.open_model(f"{base}+{out}")
    assert_rounding(again, whole)
    assert again.vocabulary.all_ids == whole.vocabulary.all_ids
    ids = [*range(20), whole.num_rows - 1]
    adapted = with_peft(base, out, num_rows=whole.num_rows)
    assert torch.allclose(logits(adapted, ids), logits(loaded(tuned), ids), atol=2e-3)
    reloaded = merged(tmp_path / "again", base, out)
    assert (reloaded / "chat_template.jinja").read_text() == pico.CHAT_TEMPLATE


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (300, 200)])
def test_truncation_is_the_best_and_energy_the_least_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, min(shape), dtype=torch.float64))[0] for size in shape)
    values = 0.8 ** torch.arange(min(shape), dtype=torch.float64)
    difference = (left * values) @ right.T
    b, a = of_rank(difference.float(), 12)
    assert b.shape == (shape[0], 12) and a.shape == (12, shape[1])
    best = float(values[12:].norm())
    assert float((difference - b.double() @ a.double()).norm()) <= best * (1 + 1e-4)
    for energy in (0.5, 0.95, 0.999998):  # no rank is within rounding of these
        wanted = int((values.square().cumsum(0) < energy * values.square().sum()).sum()) + 1
        assert of_energy(difference.float(), energy)[1].shape[0] == wanted


def test_a_killed_run_resumes_and_repeats_byte_for_byte(tmp_path: Path, english) -> None:
    base = save_base(tmp_path / "base", english)
    tuned = merged(tmp_path, base, save_adapter(tmp_path / "lora", base, target_modules="all-linear"))
    first, second = lepmerge.open_model(base), lepmerge.open_model(tuned)
    decomposed: list[str] = []

    def tell(what: str, num_bytes: int) -> None:
        if what.startswith("decomposing"):
            if len(decomposed) == 5:
                raise KeyboardInterrupt
            decomposed.append(what)

    with pytest.raises(KeyboardInterrupt):
        extract(first, second, tmp_path / "out-2", wanted=Wanted(rank=4), progress=tell)
    assert not (tmp_path / "out-2").exists()
    before = set(decomposed)
    decomposed[:] = []
    extract(first, second, tmp_path / "out-2", wanted=Wanted(rank=4), progress=lambda what, n: decomposed.append(what))
    assert before and not before & set(decomposed)
    extract(first, second, tmp_path / "out-3", wanted=Wanted(rank=4))
    assert pico.contents(tmp_path / "out-2") == pico.contents(tmp_path / "out-3")
    decomposed[:] = []
    extract(first, second, tmp_path / "out-2", wanted=Wanted(rank=4), progress=lambda what, n: decomposed.append(what))
    assert not decomposed


def test_faults_are_one_line(tmp_path: Path, english, setting) -> None:
    base = save_base(tmp_path / "base", english)
    out = tmp_path / "adapter"
    tied = save_base(tmp_path / "tied", english, tied=True)
    deep = save_base(tmp_path / "deep", english, "qwen2")
    wide = pico.save_model(tmp_path / "wide", english, width=32)
    equal = pico.save_model(tmp_path / "equal", english)
    for other, parts in {
        tied: ["ties its embeddings", "does not"],
        deep: ["has tensor model.layers.0.self_attn.", "different architectures"],
        wide: ["is [16] in", "and [32] in", "different architectures"],
    }.items():
        assert_one_line_error(command("extract", base, other, "-o", out), 1, *parts)
    assert_one_line_error(command("extract", equal, setting["base"], "-o", out), 1, "same matrices", "embeddings-only")
    assert_one_line_error(command("extract", base, deep, "-o", base / "x"), 1, "different architectures")
    assert command("extract", base, deep, "-o", out, "--rank", 2, "--energy", 0.5).exit_code == 2
    nan = load_file(base / "model.safetensors")
    nan["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    broken = save_base(tmp_path / "nan", english)
    save_file(nan, broken / "model.safetensors", metadata={"format": "pt"})
    assert_one_line_error(command("extract", base, broken, "-o", out), 1, "q_proj.weight", "not finite")
    assert not out.exists()
