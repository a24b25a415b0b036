"""Several processes started by accelerate train to the same result as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import training
from safetensors.torch import load_file

from lepmerge.training.config import load_train_config
from lepmerge.training.run import train


def launched(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "lepmerge", "train", str(path), "--device", "cpu", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("options", [{}, pytest.param({"lora": {"rank": 2}}, marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does(tmp_path: Path, english, options) -> None:
    path = training.write_setting(tmp_path, english, **options)
    done = launched(path)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = train(load_train_config(path, [f"output={tmp_path / 'alone'}"]))
    metrics = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "out", alone)
    ]
    assert len(metrics[0]) == len(metrics[1]) > 5
    for ours, theirs in zip(*metrics, strict=True):
        assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
        for key in ("loss", "grad_norm", "tokens"):
            assert ours.get(key, 0) == pytest.approx(theirs.get(key, 0), rel=1e-4)
        for name, bits in ours.get("bits_per_byte", {}).items():
            assert bits == pytest.approx(theirs["bits_per_byte"][name], rel=1e-5)
    name = "adapter_model.safetensors" if options else "embeddings.safetensors"
    weights = [load_file(folder / name) for folder in (tmp_path / "out", alone)]
    assert len(weights[0]) == (2 + 8 if options else 2)
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 2e-3
