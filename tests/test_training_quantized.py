"""Trainings with a frozen body in nf4 or int8: near bfloat16, frozen rows keep their bits, resuming is exact."""

import importlib.util
from pathlib import Path

import pytest
import torch
import training

from lepmerge.training.loop import Track
from lepmerge.training.session import Session

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs lepmerge[quant]")


def run(session: Session, folder: Path, until: int) -> tuple[bytes, bytes]:
    """Train up to step `until`, from the checkpoint in the folder; return its bytes and those of the metrics."""
    folder.mkdir(exist_ok=True)
    track = Track(folder, "train")
    session.run(session.learner(1e-2), track, until=until)
    return track.checkpoint.read_bytes(), track.metrics.read_bytes()


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_quantized_body(tmp_path: Path, english, precision: str) -> None:
    path = training.write_setting(tmp_path, english, train={"rows": "new"}, max_tokens=2000, evaluate=None)
    whole = training.session_of(path, "precision=bf16")
    session = training.session_of(path, f"precision={precision}")
    kinds = {type(module).__name__ for module in session.body.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[precision] in kinds and "Linear" not in kinds
    _, expected = training.stepped(whole, steps=4)
    learner, losses = training.stepped(session, steps=4)
    assert losses == pytest.approx(expected, rel=0.02) and losses != expected and losses[-1] < losses[0]
    for role, table in learner.tables.items():
        start, rows = whole.learner(1e-2).tables[role], session.setting.rows[role]
        assert 0 < rows.start and table.table_VD.dtype == torch.bfloat16 and table.master_RD.dtype == torch.float32
        assert torch.equal(table.table_VD[: rows.start], start.table_VD[: rows.start])
        assert not torch.equal(table.table_VD[rows.start :], start.table_VD[rows.start :])


def test_resuming_with_a_quantized_body_gives_the_same_bytes(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, max_tokens=2000, precision={"body": "nf4"})
    undisturbed = run(training.session_of(path), tmp_path / "whole", 6)
    run(training.session_of(path), tmp_path / "parts", 3)
    assert run(training.session_of(path), tmp_path / "parts", 6) == undisturbed


def test_lora_on_a_quantized_body(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, max_tokens=2000, precision="nf4", lora={"rank": 2})
    session = training.session_of(path)
    learner, losses = training.stepped(session, steps=4)
    assert losses[-1] < losses[0] and session.body.adapter is not None
    assert all(bool(p.any()) for key, p in session.body.adapter.parameters.items() if ".lora_B." in key)
