"""Find the weights of the body that a checkpoint lacks. transformers would fill them with random numbers.

The names of the tensors are compared with the parameters of transformers' class. Building the class takes seconds, so
the layouts of the most common model types are listed here.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from lepmerge.models.configs import text_configs
from lepmerge.models.tables import INPUT, LAYER, is_beyond_the_layers, without_weights
from lepmerge.tensors import LazyTensor

_NORMS = ("input_layernorm", "post_attention_layernorm")
_PROJECTIONS = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
_LLAMA = tuple(f"{name}.weight" for name in (*_PROJECTIONS, *_NORMS))
_NORMS_OF_HEADS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_NORMS_OF_GEMMA = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
_FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *_NORMS)
LAYOUTS: dict[str, tuple[str, ...]] = {
    "gemma": _LLAMA,
    "gemma2": (*_LLAMA, *_NORMS_OF_GEMMA),
    "gemma3_text": (*_LLAMA, *_NORMS_OF_GEMMA, *_NORMS_OF_HEADS),
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": tuple(f"{name}.weight" for name in _FUSED),
    "qwen2": (*_LLAMA, *(f"self_attn.{part}_proj.bias" for part in "qkv")),
    "qwen3": (*_LLAMA, *_NORMS_OF_HEADS),
    "smollm3": _LLAMA,
}
"""Model type → weights of every layer, unless its config sets one of ADDS_WEIGHTS. Outside the layers is FINAL_NORM."""
ADDS_WEIGHTS, FINAL_NORM = ("attention_bias", "mlp_bias"), "norm.weight"
MOST_KINDS = 4
"""The kinds of weights that are missing together, at most, where their names have to be found by sizes."""


def missing_weights(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], tables: Mapping[str, str]
) -> tuple[list[str], bool]:
    """Return the weights that the files lack, and whether transformers has the architecture and confirms it.

    tensors: all stored ones. tables: role → name. Only the language model is examined. A tensor that the class does not
    have may be converted into its parameters when the model is loaded, such as experts that the class stacks. So
    parameters count as missing only if they have more elements than all such tensors together. Tensors of a quantized
    layer stand for its parameters. If transformers does not have the architecture, or the model brings its own code,
    the layers are compared with one another: a weight that only some of them have may be missing.
    """
    before, is_quantized = _parent(tables[INPUT]), bool(config.get("quantization_config"))
    own = {
        name.removeprefix(before): math.prod(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(before) and name not in tables.values() and not is_beyond_the_layers(name, config)
        if tensor.dtype.is_floating_point or is_quantized
    }
    if not any(LAYER.search(name) for name in own):
        return [], True  # an embeddings-only folder
    text = next(iter(text_configs(config)), config)
    if _is_whole(text, {*own, *(f"{_module(name)}.weight" for name in own if is_quantized)}):
        return [], True
    known = _parameters(text, config)
    if known is None:
        return [f"{before}{name}" for name in sorted(_suspects(own))], False
    parameters, buffers = known
    stored = {name: size for name, size in own.items() if name not in buffers}
    lacking = _lacking_of_quantized if is_quantized else _lacking
    return [f"{before}{name}" for name in sorted(lacking(parameters, stored))], True


def _parent(table: str) -> str:
    """Return the prefix of the language model's tensors: `model.` for `model.embed_tokens.weight`."""
    return "".join(f"{part}." for part in table.split(".")[:-2])


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_whole(config: Mapping[str, Any], names: set[str]) -> bool:
    """Return whether the model type's layout is listed, and all its weights are stored."""
    layout = LAYOUTS.get(str(config.get("model_type")))
    count = config.get("num_hidden_layers")
    if layout is None or not isinstance(count, int) or any(config.get(key) for key in ADDS_WEIGHTS):
        return False
    return {FINAL_NORM, *(f"layers.{number}.{name}" for number in range(count) for name in layout)} <= names


def _parameters(text: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, int], set[str]] | None:
    """Return name → elements of the parameters of transformers' language model, and the names of its buffers.

    Return None if transformers has no such model.
    """
    code = config.get("auto_map")
    has_own_code = isinstance(code, Mapping) and any(str(key).startswith("AutoModel") for key in code)
    if has_own_code or config.get("is_encoder_decoder"):
        return None
    plain = ({key: value for key, value in part.items() if key != "quantization_config"} for part in (text, config))
    network = next((network for part in plain if (network := without_weights(part)) is not None), None)
    if network is None:
        return None
    table, head = network.get_input_embeddings(), network.get_output_embeddings()
    before = _parent(next(f"{name}.weight" for name, module in network.named_modules() if module is table))
    heads = [module.weight for module in (table, head) if hasattr(module, "weight")]
    may_be_missing = [*(network._keys_to_ignore_on_load_missing or ()), *(network._tied_weights_keys or ())]
    parameters = {
        name.removeprefix(before): parameter.numel()
        for name, parameter in network.named_parameters()  # each tied parameter once
        if name.startswith(before) and not any(parameter is weight for weight in heads)
        if not any(re.search(pattern, name) for pattern in may_be_missing)
    }
    return parameters, {name.removeprefix(before) for name, _ in network.named_buffers()}


def _lacking(parameters: Mapping[str, int], stored: Mapping[str, int]) -> set[str]:
    """Return the parameters without a stored tensor, without those that come from tensors of other names.

    The sizes tell which ones these are. If several choices fit, take the one whose names differ most from those of the
    other tensors. If none fits, return all: something is missing, but it is not known what.
    """
    lacking, others = parameters.keys() - stored.keys(), stored.keys() - parameters.keys()
    missing = sum(parameters[name] for name in lacking) - sum(stored[name] for name in others)
    if missing <= 0:
        return set()
    sizes: dict[str, int] = defaultdict(int)
    for name in lacking:
        sizes[_kind(name)] += parameters[name]
    parts = {part for name in others for part in name.split(".")}
    fitting = (
        kinds
        for count in range(1, MOST_KINDS + 1)
        for kinds in combinations(sorted(sizes), count)
        if sum(sizes[kind] for kind in kinds) == missing
    )
    chosen = min(
        fitting, key=lambda kinds: sum(part in parts for kind in kinds for part in kind.split(".")), default=sizes
    )
    return {name for name in lacking if _kind(name) in chosen}


def _kind(name: str) -> str:
    """Return a name without its layer."""
    layer = LAYER.search(name)
    return f"{name[: layer.start(1)]}*{name[layer.end(1) :]}" if layer else name


def _lacking_of_quantized(parameters: Mapping[str, int], stored: Mapping[str, int]) -> set[str]:
    """Return the parameters of modules that have no stored tensor. If other modules are stored, return none."""
    modules = {_module(name) for name in parameters}
    packed = set()
    for name in stored.keys() - parameters.keys():
        found = modules.intersection(_prefixes(name))
        if not found:
            return set()
        packed |= found
    return {name for name in parameters.keys() - stored.keys() if _module(name) not in packed}


def _prefixes(name: str) -> Iterator[str]:
    while name := _module(name):
        yield name


def _suspects(names: Iterable[str]) -> Iterator[str]:
    """Yield the names that a layer lacks, has no other weight instead of, and another layer has."""
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if layer := LAYER.search(name):
            stacks[name[: layer.start(1)]][int(layer[1])].add(name[layer.end(1) :])
    for before, layers in stacks.items():
        kinds = sorted(map(frozenset, layers.values()), key=lambda kind: (len(kind), sorted(kind)))
        for number in range(max(layers) + 1):
            own = frozenset(layers.get(number, ()))
            larger = next((kind for kind in kinds if own < kind), own)
            yield from (f"{before}{number}{end}" for end in larger - own)
