"""`offload: optimizer`: masters and moments on the host, updated block by block, with exactly the same result."""

from pathlib import Path

import pico
import pytest
import torch
import training

from lepmerge.training.loop import Track


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_result_is_the_same_bytes(tmp_path: Path, english, monkeypatch, precision: str) -> None:
    path = training.write_setting(tmp_path, english, precision=precision, max_tokens=1500)
    found = {}
    for offload in ("null", "optimizer"):
        session = training.session_of(path, f"offload={offload}")
        learner = session.learner(1e-2)
        table = learner.input
        is_shared = table.master_RD.data_ptr() == table.table_VD.data_ptr()
        assert is_shared == (precision == "fp32" and offload == "null")
        (tmp_path / offload).mkdir()
        track = Track(tmp_path / offload, "train")
        session.run(learner, track, until=5)
        found[offload] = {name: table.table_VD for name, table in learner.tables.items()}, track.checkpoint.read_bytes()
        # blocks of 7 rows; the last block is smaller
        monkeypatch.setattr("lepmerge.training.optimizer.BLOCK_BYTES", 7 * 4 * table.table_VD.shape[1])
    assert found["null"][1] == found["optimizer"][1]
    for name, table in found["null"][0].items():
        assert torch.equal(table, found["optimizer"][0][name])


def test_it_may_change_between_start_and_resumption(tmp_path: Path, english) -> None:
    """It decides where numbers are kept, not what is learned, so it is no part of the fingerprint."""
    path = training.write_setting(tmp_path, english)
    with_it, without = (training.setting_of(path, f"offload={value}") for value in ("optimizer", "null"))
    assert with_it.fingerprint == without.fingerprint
    wrong = pico.command("train", path, "--set", "offload=body")
    assert wrong.exit_code == 2 and "offload" in wrong.stderr and "optimizer" in wrong.stderr
