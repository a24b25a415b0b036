"""Find the weights of the body that a checkpoint lacks. transformers would fill them with random numbers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lepmerge.models.tables import LAYER, is_beyond_the_layers, without_weights


def missing_weights(config: Mapping[str, Any], names: Iterable[str], tables: Iterable[str]) -> tuple[list[str], bool]:
    """Return the weights that the files lack, and whether transformers has the architecture and confirms it.

    names: of all stored tensors. The layers are compared with one another, which needs no library: a weight is suspect
    if a layer lacks it, has no other weight instead, and another layer has it. So are the weights outside the layers,
    if none is stored. The architecture is built only to confirm a suspicion, because this takes seconds.
    """
    names = [name for name in names if not is_beyond_the_layers(name, config)]
    outside = [name for name in names if not LAYER.search(name)]
    suspects = dict(_suspects(names))
    lacks_all_outside = len(outside) < len(names) and set(outside) <= set(tables)
    if not suspects and not lacks_all_outside:
        return [], True
    network = without_weights(config)
    if network is None:
        return sorted(suspects), False
    parameters = [name for name, _ in network.named_parameters()]
    of_class, stored = _counts(parameters), _counts(names)
    found = [
        name
        for name, model in suspects.items()
        if of_class[_tail(model)] == stored[_tail(model)] and of_class[_tail(name)] > stored[_tail(name)]
    ]
    if lacks_all_outside:
        ends = tuple(f".{name}" for name in ("embed_tokens.weight", "lm_head.weight", *tables))
        found += [name for name in parameters if not LAYER.search(name) and not f".{name}".endswith(ends)]
    return sorted(found), True


def _suspects(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (name that a layer lacks, name in another layer)."""
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if layer := LAYER.search(name):
            stacks[name[: layer.start(1)]][int(layer[1])].add(name[layer.end(1) :])
    for before, layers in stacks.items():
        kinds = {frozenset(ends): number for number, ends in layers.items()}
        for number in range(max(layers) + 1):
            own = frozenset(layers.get(number, ()))
            larger = min((kind for kind in kinds if own < kind), key=len, default=own)
            for end in sorted(larger - own):
                yield f"{before}{number}{end}", f"{before}{kinds[larger]}{end}"


def _tail(name: str) -> str:
    """Return a name from its layer on. What is before it differs between files and classes."""
    layer = LAYER.search(name)
    return name[layer.start(1) :] if layer else name


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[_tail(name)] += 1
    return counts
