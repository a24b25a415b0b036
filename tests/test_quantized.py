"""Quantized bodies are copied untouched. A step that would have to compute on them is refused with the remedy."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

LAYER = "model.layers.0.mlp.up_proj."
BODIES = {
    "gptq": {"qweight": (torch.int32, (2, 32)), "qzeros": (torch.int32, (1, 4)), "scales": (torch.float16, (1, 32)),
             "g_idx": (torch.int32, (16,))},
    "awq": {"qweight": (torch.int32, (16, 4)), "qzeros": (torch.int32, (1, 4)), "scales": (torch.float16, (1, 32))},
    "fp8": {"weight": (torch.float8_e4m3fn, (32, 16)), "weight_scale_inv": (torch.float32, (1, 1))},
    "bitsandbytes": {"weight": (torch.uint8, (256, 1)), "weight.absmax": (torch.float32, (8,)),
                     "weight.quant_map": (torch.float32, (16,)),
                     "weight.quant_state.bitsandbytes__nf4": (torch.uint8, (90,))},
    "compressed-tensors": {"weight_packed": (torch.int32, (32, 2)), "weight_scale": (torch.bfloat16, (32, 1)),
                           "weight_shape": (torch.int64, (2,))},
}  # fmt: skip


@pytest.fixture(params=BODIES)
def folder(request, tmp_path: Path, setting) -> Path:
    """The instruct model with one projection as this method stores it."""
    folder = Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{LAYER}weight"]
    generator = torch.Generator().manual_seed(0)
    for name, (dtype, shape) in BODIES[request.param].items():
        size = torch.Size(shape).numel() * dtype.itemsize
        data = torch.randint(0, 60, (size,), generator=generator, dtype=torch.uint8)
        tensors[LAYER + name] = data.view(dtype).view(shape)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": request.param}}))
    return folder


def run(tmp_path: Path, folder: Path, step: str, *options: str):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models: {{instruct: {folder}}}\nsteps:\n  - {step}\noutput: {{path: out}}\n")
    return pico.command("run", recipe, "--device", "cpu", *options)


def test_a_new_vocabulary_carries_the_bytes_of_the_body(tmp_path: Path, folder: Path, russian) -> None:
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    result = run(tmp_path, folder, "{op: swap_vocabulary, tokenizer: ./tokenizer}")
    assert result.exit_code == 0, result.stderr
    got, before = (load_file(path / "model.safetensors") for path in (tmp_path / "out", folder))
    assert got.keys() == before.keys()
    for name, tensor in before.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert got[name].dtype == tensor.dtype and torch.equal(
                got[name].view(torch.uint8), tensor.view(torch.uint8)
            )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == json.loads((folder / "config.json").read_text())["quantization_config"]


def test_what_must_compute_says_what_it_needs(tmp_path: Path, folder: Path) -> None:
    integers = [name for name, tensor in load_file(folder / "model.safetensors").items() if LAYER in name
                if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32)]  # fmt: skip
    result = run(tmp_path, folder, "{op: arithmetic, tensors: body, expression: 2 * instruct}")
    pico.assert_one_line_error(result, 1, "tensor model.layers.0.mlp.up_proj.", "dequantize the model first")
    assert integers and any(name in result.stderr for name in integers)
    cast = run(
        tmp_path, folder, "{op: arithmetic, tensors: '*norm*', expression: instruct}", "--set", "output.dtype=float16"
    )
    pico.assert_one_line_error(cast, 2, "output.dtype", "quantized", "remove output.dtype")
    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH))
    (tmp_path / "train.yaml").write_text(f"model: {folder}\ndata: text.txt\noutput: trained\n")
    trained = pico.command("train", tmp_path / "train.yaml")
    pico.assert_one_line_error(trained, 1, str(folder), "is quantized: train on the original weights")
    assert not (tmp_path / "out").exists() and not (tmp_path / "trained").exists()


def test_compare_runs_an_fp8_model_on_a_cpu(tmp_path: Path, setting) -> None:
    """transformers 5 dequantizes it there: the same bits as the bfloat16 model with the same values."""
    folders = [Path(shutil.copytree(setting["instruct"], tmp_path / name)) for name in ("fp8", "plain")]
    fp8, plain = ({}, {})
    for name, tensor in load_file(folders[0] / "model.safetensors").items():
        fp8[name] = plain[name] = tensor
        if name.endswith("_proj.weight"):
            fp8[name] = tensor.float().to(torch.float8_e4m3fn)
            fp8[f"{name}_scale_inv"] = torch.full((1, 1), 2.0)
            plain[name] = (2 * fp8[name].float()).to(torch.bfloat16)
    for folder, tensors in zip(folders, (fp8, plain), strict=True):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folders[0] / "config.json").read_text())
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (folders[0] / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH * 5))
    options = ("--text", tmp_path / "text.txt", "--copies", 0, "--device", "cpu", "--dtype", "bfloat16", "--json")
    result = pico.command("compare", *folders, *options)
    if version("transformers").startswith("4."):
        pico.assert_one_line_error(result, 1, f"fp8: transformers cannot load {folders[0]}")
        return
    assert result.exit_code == 0, result.stderr
    bits = {
        name: model["texts"]["text"]["bits_per_byte"] for name, model in json.loads(result.stdout)["models"].items()
    }
    assert bits["fp8"] == pytest.approx(bits["plain"], rel=1e-3)


@pytest.mark.parametrize("folder", ["bitsandbytes"], indirect=True)
def test_damaged_quantized_weights_are_one_line_of_compare(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers logs a table with tracebacks first."""
    pytest.importorskip("bitsandbytes")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH * 5))
    capfd.readouterr()
    result = pico.command("compare", folder, "--text", tmp_path / "text.txt", "--copies", 0, "--device", "cpu", "-q")
    pico.assert_one_line_error(result, 1, f"instruct: transformers cannot load {folder}: ")
    assert "Traceback" not in capfd.readouterr().err


def test_a_quantized_output_table_is_named(tmp_path: Path, setting) -> None:
    folder = Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    rows = len(tensors.pop("lm_head.weight"))
    save_file({**tensors, "lm_head.weight_packed": torch.zeros(rows, 2, dtype=torch.int32)}, path)
    result = run(tmp_path, folder, "{op: arithmetic, tensors: '*norm*', expression: instruct}")
    pico.assert_one_line_error(
        result, 1, "the output table is quantized (lm_head.weight_packed)", "quantize the body only"
    )
