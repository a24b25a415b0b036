"""recipes/donor: the tables of a LoRA donor are propagated, and its update of the body, divided by s, is added."""

from pathlib import Path

import pytest
import torch
from peft_adapters import save_adapter, with_peft

import lepmerge

DONOR = Path(__file__).parent.parent / "recipes/donor"
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize(("recipe", "s"), [("conversion-1.75", 1.75), ("swap-2.0", 2.0)])
def test_the_composition_of_the_authors(tmp_path: Path, setting, russian, recipe: str, s: float) -> None:
    base, instruct = setting["base"], setting["instruct"]
    num_rows = russian.get_vocab_size()
    donor = save_adapter(
        tmp_path / "donor", base, tokenizer=russian, num_rows=num_rows, target_modules=["q_proj", "down_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )  # fmt: skip
    overrides = [
        f"variables.{key}={value}" for key, value in {"base": base, "instruct": instruct, "donor": donor}.items()
    ]
    loaded = lepmerge.load_recipe(DONOR / f"{recipe}.yaml", [*overrides, f"output.path={tmp_path / 'out'}"])
    out = lepmerge.run_plan(lepmerge.make_plan(loaded), device="cpu")
    result, old, tuned = (lepmerge.open_model(folder) for folder in (out, base, instruct))
    merged = with_peft(base, donor, num_rows=num_rows).merge_and_unload().state_dict()
    for name, tensor in result.tensors.items():
        if name not in EMBEDDINGS:
            before = tuned.tensors[name].rows().double()
            update = merged[name].reshape(before.shape) - old.tensors[name].rows().double()
            assert torch.allclose(tensor.rows().double(), before + update / s, rtol=2**-8, atol=1e-6)
    assert result.vocabulary.id_of_added(result.vocabulary.added["<|end|>"]) is not None
    if recipe.startswith("swap"):
        saved = merged[EMBEDDINGS[0]]
        assert torch.allclose(result.tensors[EMBEDDINGS[0]].rows(3, num_rows).double(), saved[3:], rtol=2**-8)
    assert (DONOR / "README.md").read_text().count(f"{recipe}.yaml") >= 2
