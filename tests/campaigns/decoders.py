"""Models: every decoder class of the installed transformers is built tiny, and goes through lepmerge.

python tests/campaigns/decoders.py --record

A case is one model type. Its columns: open (the tables are found), arithmetic (a step that changes nothing gives equal
logits), swap (rows of shared tokens are kept), propagate (the result loads and computes), train (two steps run). Each
result is loaded by transformers; missing or unexpected weights are a difference.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from frame import Campaign, main

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_inner": 64, "n_positions": 64, "rotary_dim": 4, "d_model": 32, "num_layers": 2, "num_heads": 4,
    "ffn_dim": 64, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
    "encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "word_embed_proj_dim": 32,
    "embedding_size": 32, "d_ff": 64, "d_kv": 8, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_topk": 2, "moe_k": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "state_size": 4, "mamba_d_ssm": 64,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "n_groups": 1, "time_step_rank": 4, "ssm_state_size": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "lru_width": 32,
    "attention_hidden_size": 32, "hidden_size_per_layer_input": 8, "image_size": 8, "patch_size": 4, "depth": 1,
    "out_hidden_size": 32, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "sliding_window": 16,
    "num_global_layers": 1, "projection_dim": 16,
}  # fmt: skip
VARIANTS: tuple[dict[str, Any], ...] = (
    {}, {"num_key_value_heads": 4}, {"head_dim": None}, {"head_dim": None, "num_key_value_heads": 4},
    {"num_hidden_layers": 4}, {"hidden_size": 64, "head_dim": 16}, {"num_hidden_layers": 6, "head_dim": None},
    {"num_attention_heads": 8, "mamba_num_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 6},
)  # fmt: skip
"""Tried one after the other until the model computes. None leaves the config's default."""
MOST_PARAMETERS = 20_000_000
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0, "forced_eos_token_id": 1}
COLUMNS = ("open", "arithmetic", "swap", "propagate", "train")
Builder = Callable[[], Any]


@lru_cache
def model_types() -> list[str]:
    """Return the model types that AutoModelForCausalLM knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(config_class: Any, variant: dict[str, Any], num_rows: int) -> Any:
    """Return a config with small sizes, those of its language model and of other parts too."""
    known = config_class().to_dict()
    sizes = {key: value for key, value in (SIZES | variant).items() if key in known and value is not None}
    sizes |= {key: id for key, id in IDS.items() if key in known}
    if "vocab_size" in known:
        sizes["vocab_size"] = num_rows
    parts = {key: part for key, part in config_class.sub_configs.items() if isinstance(known.get(key), dict)}
    for key, part in parts.items():
        if hasattr(part, "model_type") and part.model_type:
            sizes[key] = tiny_config(part, variant, num_rows).to_dict()
    return config_class(**sizes)


def tiny_model(model_type: str, num_rows: int) -> Any:
    """Return a random model that computes. Raise the last error if no variant does."""
    import torch
    import transformers

    config_class = transformers.CONFIG_MAPPING[model_type]
    last: Exception | None = None
    for variant in VARIANTS:
        try:
            config = tiny_config(config_class, variant, num_rows)
            with torch.device("meta"):
                planned = transformers.AutoModelForCausalLM.from_config(config)
            if sum(parameter.numel() for parameter in planned.parameters()) > MOST_PARAMETERS:
                raise ValueError("more than 20 million parameters with small sizes")
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            if logits(model).isfinite().all():
                return model
            raise ValueError("its logits are not finite")
        except Exception as error:  # a class may refuse such sizes with any error
            last = error
    assert last is not None
    raise last


def logits(model: Any) -> Any:
    import torch

    ids = torch.randint(10, 300, (1, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


class Case:
    """One model type: its folders, and what lepmerge makes of them."""

    def __init__(self, folder: Path, model_type: str) -> None:
        import pico
        import torch
        import transformers

        self.folder = folder
        self.english, self.russian = _tokenizers()
        self.model = tiny_model(model_type, self.english.get_vocab_size())
        for name in ("base", "instruct"):
            pico.save_tokenizer(self.english, folder / name)
            self.model.save_pretrained(folder / name)
            if name == "base":
                self.rows = self.model.get_input_embeddings().weight.detach().clone()
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        parameter.add_(0.02 * torch.randn_like(parameter))
        loaded, self.loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "instruct", dtype=torch.float32, output_loading_info=True
        )
        self.expected = logits(loaded.eval())  # some classes compute otherwise once they are saved and loaded
        pico.save_tokenizer(self.russian, folder / "new")

    def open(self) -> str:
        import lepmerge

        model = lepmerge.open_model(self.folder / "instruct")
        tied = self.model.get_output_embeddings() is not None and (
            self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight
        )
        return "tied" if model.tied and tied else "two tables" if not model.tied and not tied else "differs: ties"

    def loaded(self, name: str, steps: list[dict[str, Any]]) -> tuple[Any, str]:
        """Run a recipe and load the result; return it with what transformers misses in it."""
        import pico
        import torch
        from transformers import AutoModelForCausalLM

        models = {each: self.folder / each for each in ("base", "instruct", "adapted") if (self.folder / each).exists()}
        folder = pico.run_recipe(self.folder / name, models, steps)
        model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
        wrong = [key for key in keys if loading[key] != self.loading[key]]
        return model.eval(), f"differs: {', '.join(wrong)}" if wrong else "works"

    def arithmetic(self) -> str:
        import torch

        step = {"op": "arithmetic", "tensors": "embeddings", "expression": "instruct + (base - base)"}
        model, state = self.loaded("arithmetic", [step])
        same = torch.equal(logits(model), self.expected)
        return state if state != "works" or same else "differs: logits"

    def swap(self) -> str:
        import torch

        step = {"op": "swap_vocabulary", "tokenizer": str(self.folder / "new"), "init": "mean"}
        model, state = self.loaded("swap", [step])
        rows, old_rows = model.get_input_embeddings().weight, self.model.get_input_embeddings().weight
        old, new = self.english.get_vocab(), self.russian.get_vocab()
        shared = sorted(old.keys() & new.keys())
        same = torch.equal(rows[[new[token] for token in shared]], old_rows[[old[token] for token in shared]])
        finite = bool(logits(model).isfinite().all()) and logits(model).shape[-1] == len(new)
        return state if state != "works" else "works" if same and finite else "differs: rows of shared tokens"

    def propagate(self) -> str:
        import pico
        import torch
        from safetensors.torch import save_file

        import lepmerge

        folder = self.folder / "adapted"
        pico.save_tokenizer(self.russian, folder)
        config = json.loads((self.folder / "base/config.json").read_text())
        num_rows = self.russian.get_vocab_size()
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if "vocab_size" in part:
                part["vocab_size"] = num_rows
        (folder / "config.json").write_text(json.dumps(config))
        base = lepmerge.open_model(self.folder / "base")
        generator = torch.Generator().manual_seed(2)
        tables = {
            name: 0.1 * torch.randn(num_rows, base.tensors[name].shape[1], generator=generator)
            for name in base.tables.values()
        }
        save_file(tables, folder / "embeddings.safetensors", metadata={"format": "pt"})
        step = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "conversion"}
        model, state = self.loaded("propagate", [step])
        found = logits(model)
        is_good = bool(found.isfinite().all()) and found.shape[-1] == num_rows
        return state if state != "works" or is_good else "differs: logits"

    def train(self) -> str:
        import pico
        import training
        import yaml

        corpus = self.folder / "corpus.txt"
        corpus.write_text("\n\n".join(pico.RUSSIAN * 4))
        pico.save_tokenizer(training.extended(self.english), self.folder / "extended")
        config = {
            "model": "base", "tokenizer": "extended", "data": "corpus.txt", "block_size": 32, "batch_size": 4,
            "micro_batch": 4, "max_tokens": 256, "warmup_steps": 1, "precision": "fp32", "output": "trained",
        }  # fmt: skip
        (self.folder / "train.yaml").write_text(yaml.safe_dump(config))
        command = ("train", self.folder / "train.yaml", "--device", "cpu", "-q")
        done, state = pico.command(*command), "works"
        if done.exit_code == 1 and "packing: concatenate" in done.stderr:
            done, state = pico.command(*command, "--set", "packing=concatenate"), "works with packing: concatenate"
        if done.exit_code in (1, 2) and "error: " in done.stderr:
            return "refused: " + done.stderr.split("error: ")[-1].strip()
        if done.exit_code != 0:
            return f"fault: {done.exception!r}"
        return state


@lru_cache
def _tokenizers() -> tuple[Any, Any]:
    import pico

    return pico.byte_level(pico.ENGLISH, 400), pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 600)


def case(number: int, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Return the row of one model type."""
    model_type = model_types()[number]
    with tempfile.TemporaryDirectory(prefix="decoder-") as folder:
        try:
            one = Case(Path(folder), model_type)
        except Exception as error:  # of any class of the model: its row shows it
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            return Counter(["not built"]), [model_type, "", f"not built: {reason}"]
        row = [result.replace(folder, "…") for result in results(one)]
    name = type(one.model).__name__
    kinds = [f"{column}: {_kind(result)}" for column, result in zip(COLUMNS, row, strict=True)]
    return Counter(["built", *kinds]), [model_type, name, *row]


def results(one: Case) -> Iterator[str]:
    from lepmerge.errors import LepmergeError

    for column in COLUMNS:
        try:
            yield getattr(one, column)()
        except LepmergeError as error:
            yield f"refused: {error}"
        except Exception as error:  # any other error is a fault of lepmerge: the row shows it
            from frame import signature_of

            yield f"fault: {signature_of(error)}"
        for name in ("arithmetic", "swap", "propagate"):
            shutil.rmtree(one.folder / name, ignore_errors=True)


def _kind(result: str) -> str:
    """Return works, refused, differs or fault."""
    kind = result.partition(":")[0]
    return kind if kind in ("refused", "differs", "fault") else "works"


def prepare() -> None:
    import transformers

    import lepmerge.training.run  # noqa: F401 -- imported before the forks, which need not repeat it

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _tokenizers()


CAMPAIGN = Campaign("decoders", case, limit=120.0, chunk=4, prepare=prepare)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, count=len(model_types())))
