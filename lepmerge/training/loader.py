"""Load language models with transformers: plain decoders, and the text model of multimodal models."""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lepmerge.errors import CheckpointError
from lepmerge.models.configs import config_faults, text_configs
from lepmerge.models.model import Model
from lepmerge.tensors import LazyTensor, blocks, workspace_for
from lepmerge.training.config import BodyPrecision
from lepmerge.training.quantized import loading_options, prepare_quantized
from lepmerge.vocabulary.autotokenizer import quiet_transformers

FAULTS = (OSError, RuntimeError, AssertionError, IndexError)
"""Exceptions of transformers for a model that it cannot load or run, besides those for a config."""
CAUSAL = 1e-5
"""Largest relative difference of float32 logits that counts as rounding. For other data types it is two last places."""


def load_network(
    folder: Path,
    *,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device,
    precision: BodyPrecision | None = None,
    merged: Model | None = None,
    place: Callable[[Any], None] | None = None,
) -> Any:
    """Load the transformers model of a folder on a device, frozen. dtype None keeps the stored data type.

    precision: `int8` or `nf4` quantizes its linear layers, except the head, which stays in `dtype`. merged: take the
    tensors and the config of this model, which was made from that of the folder, instead of the stored ones.
    place: another way to move the network to its device.
    Of a multimodal model, only the text model and the head are kept; images and sound are not supported.

    Raises:
        CheckpointError: transformers cannot load the model, or cannot run it on this device.
    """
    version = tuple(int(part) for part in importlib.metadata.version("transformers").split(".")[:2])
    key = "dtype" if version >= (4, 56) else "torch_dtype"
    loader = _loader(folder)
    options = {key: dtype or "auto", "output_loading_info": True, **loading_options(precision, device)}

    def loaded() -> Any:
        if merged is None:
            network, found = loader.from_pretrained(folder, local_files_only=True, **options)
        else:
            built = skeleton(folder, name=name)
            config = type(built.config).from_dict(dict(merged.config))
            weights = {name: _whole(tensor) for name, tensor in merged.tensors.items()}
            network, found = type(built).from_pretrained(None, config=config, state_dict=weights, **options)
        _drop_other_towers(network)
        _check_complete(network, found["missing_keys"])
        quantized = getattr(network, "quantization_method", None) is not None
        return network if place or quantized and network.device == device else network.to(device)

    with quiet_transformers():
        network: Any = translated(loaded, f"{name}: transformers cannot load {folder}")
    network.requires_grad_(False).eval()
    prepare_quantized(network)
    if place is not None:
        translated(lambda: place(network), f"{name}: transformers cannot load {folder}")
    logits = translated(lambda: _logits_of_pairs(network), f"{name}: transformers cannot run {folder} on {device}")
    _check_causal(logits, name=name, architecture=type(network).__name__)
    return network


def _check_complete(network: Any, missing: Iterable[str]) -> None:
    """Raise ValueError if the files lack a weight of the network. transformers fills it with random numbers."""
    lacking = sorted(set(missing) & dict(network.named_parameters()).keys())
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(f"its files lack the weight {lacking[0]}{more}; download it again")


def _whole(tensor: LazyTensor) -> torch.Tensor:
    workspace = workspace_for(tensor)
    rows = [tensor.read(block, workspace).to(tensor.dtype) for block in blocks(tensor)]
    return torch.cat(rows).view(tensor.shape)


def skeleton(folder: Path, *, name: str) -> Any:
    """Build the transformers model of a folder's config without weights (on the meta device).

    Raises:
        CheckpointError: transformers has no language model for this config.
    """
    from transformers import AutoConfig

    def built() -> Any:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
        loader = _loader(folder)
        with torch.device("meta"):
            network = loader._from_config(config) if hasattr(loader, "config_class") else loader.from_config(config)
        _drop_other_towers(network)
        return network

    return translated(built, f"{name}: transformers cannot load {folder}")


def check_quantization(config: Mapping[str, Any], folder: Path, *, name: str) -> None:
    """Check that transformers and the library behind it can load the quantized weights of a model.

    Raises:
        CheckpointError: the method is unknown, or its library is not installed.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    for part in (config, *text_configs(config)):
        if quantization := part.get("quantization_config"):
            method = quantization.get("quant_method", "of an unnamed method")

            def check(quantization: Any = quantization) -> None:
                quantizer = AutoHfQuantizer.from_config(dict(quantization), pre_quantized=True)
                quantizer.validate_environment(device_map=None, dtype=None, torch_dtype=None)

            translated(check, f"{name}: transformers cannot load {folder}, which is quantized ({method})")


def translated(do: Callable[[], Any], what: str) -> Any:
    """Return do(), but turn exceptions of transformers into a one-line CheckpointError."""
    try:
        return do()
    except (*config_faults(), *FAULTS) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
        if "`CONVERSION`" in reason:  # it refers to a long report, which is not shown
            reason = "its quantized weights are damaged, or were quantized in another way than config.json says"
        raise CheckpointError(f"{what}: {reason}") from error


def text_model(network: Any) -> Any:
    """Return the submodule that computes hidden states from embedded tokens: of a multimodal model, the text model."""
    inner = getattr(network.base_model, "language_model", network.base_model)
    return inner.model if hasattr(inner, "lm_head") else inner  # Llama 4's language model includes the head


def _loader(folder: Path) -> Any:
    """Return the transformers class that loads a folder. For a multimodal model it is the one named in config.json."""
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not text_configs(config):
        return transformers.AutoModelForCausalLM
    named = getattr(transformers, next(iter(config.get("architectures") or []), ""), None)
    return named or transformers.AutoModelForImageTextToText


def _drop_other_towers(network: Any) -> None:
    """Free the weights that text does not use: vision and audio towers and their projections."""
    base = network.base_model
    inner = getattr(base, "language_model", None)
    if inner is None:
        return
    # in transformers 4 the language model may lie deeper than its name says
    base = next(module for module in network.modules() if any(child is inner for child in module.children()))
    for name, child in list(base.named_children()):
        if child is not inner and child is not network.get_output_embeddings():
            with suppress(AttributeError):
                setattr(base, name, None)


@torch.no_grad()  # not inference_mode: a sharded body keeps the memory into which its weights are gathered
def _logits_of_pairs(network: Any) -> torch.Tensor:
    """Return the logits of the first token of (0, 1) and of (0, 2).

    Quantized weights also load on devices that cannot compute with them, so this is tried at once.
    """
    id_BL = torch.tensor([[0, 1], [0, 2]], device=network.get_input_embeddings().weight.device)
    return network(input_ids=id_BL, use_cache=False).logits[:, 0]


def _check_causal(logit_BV: torch.Tensor, *, name: str, architecture: str) -> None:
    """Raise CheckpointError if the logits of a token depend on the token after it.

    In transformers 4 each token of PaliGemma's prompt attends to the whole prompt.
    """
    tolerance = max(CAUSAL, 2 * torch.finfo(logit_BV.dtype).eps)
    if (logit_BV[0] - logit_BV[1]).abs().max() > tolerance * logit_BV.abs().max():
        raise CheckpointError(
            f"{name}: in {architecture} of transformers {importlib.metadata.version('transformers')} tokens attend to "
            f"later tokens, so it does not predict text from left to right: lepmerge cannot train or measure it"
        )
