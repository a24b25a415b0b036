"""adapter_config.json of a PEFT adapter: which modules it trained, and the factor of each update.

A LoRA module adds scaling · B A to its weight, where scaling = alpha / r (alpha / √r with use_rslora). Modules are
named as in the transformers model, such as `model.layers.0.self_attn.q_proj`.
"""

import re
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from lepmerge.errors import CheckpointError
from lepmerge.models.configs import read_json

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
REFUSED = {
    "layer_replication": "it repeats layers of the base",
    "lora_bias": "it also trains a bias of B",
    "alora_invocation_tokens": "it acts only after these tokens",
    "use_qalora": "its A works on groups of inputs",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it routes each token to other adapters",
    "kasa_config": "it truncates the base weights",
    "megatron_config": "its layers are Megatron's",
    "monteclora_config": "its matrices are sampled",
    "target_parameters": "it trains the fused parameters of experts",
}
"""LoRA options that change more than B A → the reason, for error messages."""
CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Values of init_lora_weights for which PEFT changes the base weights before it adds B A."""
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "velora_config",
}  # fmt: skip
"""Keys that describe the origin or the training of the adapter, and do not affect what it computes."""


def lora_config(*, rank: int, alpha: float, modules: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return the contents of adapter_config.json for an adapter that PEFT loads. options: further keys."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_dora": False,
        "use_rslora": False,
        **options,
    }


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class AdapterConfig(BaseModel):
    """The keys of adapter_config.json that determine what the adapter computes."""

    model_config = ConfigDict(extra="allow", frozen=True)

    folder: Path
    r: int = Field(8, ge=1)
    lora_alpha: FiniteFloat = 8
    rank_pattern: dict[Pattern, Annotated[int, Field(ge=1)]] = {}
    alpha_pattern: dict[Pattern, FiniteFloat] = {}
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none"] = "none"
    ensure_weight_tying: bool = False
    init_lora_weights: bool | str = True
    target_modules: Pattern | list[str] | None = None
    exclude_modules: Pattern | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Pattern | list[Pattern] | None = None
    modules_to_save: list[Pattern] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> "AdapterConfig":
        """Read and check the configuration in an adapter's folder.

        Raises:
            CheckpointError: the file is missing, the adapter is not LoRA, or an option changes more than B A.
        """
        path = folder / CONFIG
        if not path.exists():
            raise CheckpointError(f"{path} is missing: a PEFT adapter is a folder with {CONFIG} and its weights")
        values = read_json(path)
        kind = values.pop("peft_type", None)
        if kind != "LORA":
            raise CheckpointError(
                f"{path}: the adapter is {kind}, lepmerge merges LORA only: merge it with PEFT's merge_and_unload"
            )
        if values.get("bias") not in (None, "none"):
            raise CheckpointError(
                f"{path}: `bias: {values['bias']}` trains biases of the base: merge it with PEFT's merge_and_unload"
            )
        for key, reason in REFUSED.items():
            if values.get(key):
                raise CheckpointError(f"{path}: lepmerge cannot merge an adapter with `{key}`: {reason}")
        init = str(values.get("init_lora_weights"))
        if init.lower().startswith(CHANGES_THE_BASE):
            raise CheckpointError(
                f"{path}: `init_lora_weights: {init}` changed the base weights before the training: save the adapter "
                f"again with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        try:
            return cls(**{**{key: value for key, value in values.items() if value is not None}, "folder": folder})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise CheckpointError(f"{path}: {where}: {fault['msg']}") from None

    @property
    def unknown_keys(self) -> list[str]:
        """Return the keys with a value that lepmerge does not know."""
        extra = self.model_extra or {}
        return sorted(key for key, value in extra.items() if value and key not in {*REFUSED, *WITHOUT_EFFECT})

    def rank(self, module: str) -> int:
        return _first_match(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """Return the factor of B A in a module."""
        alpha, rank = _first_match(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return alpha / (sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Return whether LoRA applies to a module. PEFT ignores stored weights of other modules."""
        excluded = self.exclude_modules or []
        if re.fullmatch(excluded, module) if isinstance(excluded, str) else _is_named(module, excluded):
            return False
        if self.saves(module):
            return False
        if isinstance(self.target_modules, str):
            return self.target_modules.lower() == ALL_LINEAR or bool(re.fullmatch(self.target_modules, module))
        return _is_named(module, self.target_modules or []) and self._in_chosen_layer(module)

    def saves(self, module: str) -> bool:
        """Return whether a module is trained and saved as a whole."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save or [])

    def tokens_of(self, module: str) -> list[int]:
        """Return the token ids whose rows are trained in a table. A plain list applies to both uses of a tied table."""
        tokens = self.trainable_token_indices or []
        if isinstance(tokens, dict):
            return next((ids for name, ids in tokens.items() if _is_named(module, [name])), [])
        return tokens

    def _in_chosen_layer(self, module: str) -> bool:
        if self.layers_to_transform is None or self.layers_to_transform == []:
            return True
        chosen = [self.layers_to_transform] if isinstance(self.layers_to_transform, int) else self.layers_to_transform
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        regexes = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns or [] if pattern]
        found = (re.match(regex, module) for regex in regexes or [r".*?\.[^.]*\.(\d+)\."])
        return any(int(match[1]) in chosen for match in found if match)


def _is_named(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _first_match(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)
