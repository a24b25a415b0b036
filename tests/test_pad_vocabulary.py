"""output.pad_to_multiple_of: rows beyond the tokens get the mean row; no token loses its row."""

import json
from pathlib import Path

import pico
import pytest
import reference
import torch


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("padded_before", "multiple"), [(None, 64), (None, 1), (512, 1), (512, 64), (512, 1024)])
def test_rows(tmp_path: Path, english, tied: bool, padded_before, multiple: int) -> None:
    num_tokens = english.get_vocab_size()
    rows = -(-num_tokens // multiple) * multiple
    model = pico.save_model(tmp_path / "model", english, tied=tied, num_rows=padded_before)
    folder = pico.run_recipe(tmp_path / "run", {"instruct": model}, [], pad_to_multiple_of=multiple)
    before, after = reference.weights(model), reference.weights(folder)
    for name in [reference.INPUT] if tied else [reference.INPUT, reference.OUTPUT]:
        kept = min(len(before[name]), rows)
        assert len(after[name]) == rows
        assert reference.same_bits(after[name][:kept], before[name][:kept])
        mean = before[name][:num_tokens].double().mean(0)
        assert torch.allclose(after[name][kept:].double(), mean.expand(rows - kept, -1), rtol=2**-7, atol=1e-6)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == rows
