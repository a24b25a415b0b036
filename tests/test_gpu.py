"""What runs on a GPU gives what the CPU gives. These tests skip themselves where no GPU is."""

import importlib.util
from pathlib import Path

import pico
import pytest
import torch
import training
from safetensors.torch import load_file

from lepmerge.training.group import Group
from lepmerge.training.loop import StopSignal, Track
from lepmerge.training.session import Session, open_session

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda")


def session_on_gpu(path: Path, *overrides: str) -> Session:
    setting = training.setting_of(path, *overrides)
    return open_session(setting, path.parent / "gpu", Group(GPU), StopSignal(), lambda event: None, held_out={})


@pytest.mark.parametrize("method", ["conversion", "delta", "overlap"])
def test_a_recipe_gives_what_the_cpu_gives(tmp_path: Path, setting, method: str) -> None:
    models = ", ".join(f"{name}: {setting[name]}" for name in ("base", "instruct", "adapted"))
    recipe = tmp_path / "recipe.yaml"
    step = f"{{op: propagate_embeddings, base: base, adapted: adapted, method: {method}}}"
    recipe.write_text(f"models: {{{models}}}\nsteps: [{step}]\noutput: {{path: out, dtype: float32}}\n")
    tables = {}
    for device in ("cpu", "cuda"):
        target = tmp_path / device
        result = pico.command("run", recipe, "--device", device, "--set", f"output.path={target}")
        assert result.exit_code == 0, result.stderr
        tables[device] = load_file(target / "model.safetensors")
    for name, tensor in tables["cpu"].items():
        assert torch.allclose(tables["cuda"][name], tensor, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("bf16", 1e-2), ("nf4", 2e-2), ("int8", 2e-2)])
def test_losses_are_those_of_the_cpu(tmp_path: Path, english, precision: str, limit: float) -> None:
    if precision in ("nf4", "int8") and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs lepmerge[quant]")
    path = training.write_setting(tmp_path, english, max_tokens=2000, evaluate=None)
    _, expected = training.stepped(training.session_of(path), steps=4)
    _, losses = training.stepped(session_on_gpu(path, f"precision={precision}"), steps=4)
    assert losses == pytest.approx(expected, rel=limit) and losses[-1] < losses[0]


def test_offload_gives_the_same_bytes(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, max_tokens=1500, precision="bf16", evaluate=None)
    found = []
    for offload in ("null", "optimizer"):
        session = session_on_gpu(path, f"offload={offload}")
        learner = session.learner(1e-2)
        assert learner.input.master_RD.device.type == ("cuda" if offload == "null" else "cpu")
        (tmp_path / offload).mkdir()
        track = Track(tmp_path / offload, "train")
        session.run(learner, track, until=4)
        found.append(track.checkpoint.read_bytes())
    assert found[0] == found[1]
