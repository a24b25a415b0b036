"""Measure what a transformers model does before and after its body: to looked-up embeddings and to hidden states.

Parts of the model are replaced by stubs that return known numbers. This finds scales and caps no matter which config
key or line of code they come from.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lepmerge.errors import CheckpointError
from lepmerge.training.loader import text_model, translated
from lepmerge.training.loss import LogitTransform

LARGEST = 1e6
"""Largest logit that is tried. All known caps are far below it."""


def measured_transform(network: Any, *, name: str) -> LogitTransform:
    """Return the function that turns hidden @ tableᵀ into the logits of a model.

    Body and head are replaced by stubs, so no weights are needed and the meta device works. The model's own code before
    and after the head still runs (MiniCPM scales before the head).

    Raises:
        CheckpointError: the model has no linear head, or its logits do not have the form of LogitTransform.
    """
    head = network.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise CheckpointError(f"{name}: {type(network).__name__} has no linear output layer, so it cannot be trained")
    num_rows = head.weight.shape[0]
    hidden_D = _probe(head.weight.shape[1])
    product_V = torch.logspace(-3, math.log10(LARGEST), num_rows, dtype=torch.float64)
    product_V[::2] *= -1
    with _stubs(network, head, hidden_D, product_V) as seen:
        logits = translated(lambda: _forward(network), f"{name}: transformers cannot run {type(network).__name__}")
    got_V = logits.flatten().double()
    before = _ratio(seen[0].flatten(), hidden_D) if seen else None
    if before is None or got_V.shape != product_V.shape:
        raise CheckpointError(_unknown(network, name))
    scale, cap = _fitted(product_V, got_V)
    if not torch.allclose(LogitTransform(scale, cap)(product_V), got_V, rtol=1e-5, atol=0):
        raise CheckpointError(_unknown(network, name))
    bias = getattr(head, "bias", None)
    return LogitTransform(_rounded(scale * before), cap, None if bias is None else bias.detach() / before)


def measured_scale(network: Any, *, name: str) -> float:
    """Return the factor that a model applies to embeddings it looks up itself, but not to `inputs_embeds`.

    Falcon-H1 has such a factor. A factor inside the embedding module itself is not included.

    Raises:
        CheckpointError: the model uses the ids for more than looking up their embeddings.
    """
    inner, embedding = text_model(network), network.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        raise CheckpointError(f"{name}: {type(network).__name__} has no table of input embeddings")
    row_D = _probe(embedding.weight.shape[1]).to(network.device, torch.float32)
    last_id = torch.full((1, 1), len(embedding.weight) - 1, device=network.device)

    def ratio() -> float | None:
        looked_up = _first_input(inner, embedding, row_D, input_ids=last_id)
        given = None
        if looked_up is not None:
            given = _first_input(inner, embedding, row_D, inputs_embeds=row_D[None, None])
        return None if looked_up is None or given is None else _ratio(looked_up.flatten(), given.flatten())

    found = translated(ratio, f"{name}: transformers cannot run {type(network).__name__}")
    if found is None:
        raise CheckpointError(_more_than_a_lookup(network, name))
    return found


def require_single_table(network: Any, *, name: str) -> None:
    """Raise CheckpointError if the body looks up ids in a second table (Gemma 3n, Gemma 4)."""
    table = network.get_input_embeddings().weight
    tables = [module.weight for module in text_model(network).modules() if isinstance(module, torch.nn.Embedding)]
    if any(other is not table and len(other) == len(table) for other in tables):
        raise CheckpointError(_more_than_a_lookup(network, name))


def _more_than_a_lookup(network: Any, name: str) -> str:
    return (
        f"{name}: {type(network).__name__} does more with its tokens than look up and scale their input embeddings. "
        f"`lepmerge train` does not know it"
    )


class _Captured(Exception):
    """Stops a forward pass at the first submodule. Carries the submodule's input, or None if that is the ids."""

    def __init__(self, tensor: torch.Tensor | None) -> None:
        super().__init__()
        self.tensor = tensor


@torch.no_grad()
def _first_input(inner: Any, embedding: Any, row_D: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor | None:
    """Return the first input of a submodule of the body that has the shape of an embedded token.

    The embedding is a stub that returns row_D.
    """

    def capture(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.shape[-1:] == row_D.shape and value.is_floating_point():
                raise _Captured(value)
            if value is inputs.get("input_ids"):
                raise _Captured(None)

    hooks = [
        module.register_forward_pre_hook(capture, with_kwargs=True)
        for module in inner.modules()
        if module not in (inner, getattr(inner, "decoder", inner), embedding)
    ]
    embedding.forward = lambda id_BL: row_D[None, None]
    try:
        inner(**inputs, use_cache=False)
    except _Captured as found:
        return found.tensor
    finally:
        del embedding.forward
        for hook in hooks:
            hook.remove()
    return None


def _probe(width: int) -> torch.Tensor:
    """Return distinct numbers that every dtype represents exactly."""
    return 2.0 ** (torch.arange(width, dtype=torch.float64) % 5)


def _fitted(product_V: torch.Tensor, got_V: torch.Tensor) -> tuple[float, float | None]:
    """Return scale and cap, given products from small to large and their logits."""
    first, last = float(got_V[0] / product_V[0]), float(got_V[-1] / product_V[-1])
    if math.isclose(first, last, rel_tol=1e-5):
        return _rounded(last), None
    cap = _rounded(abs(float(got_V[-1])))
    ratio = float(got_V[0]) / cap
    return (_rounded(cap * math.atanh(ratio) / float(product_V[0])) if abs(ratio) < 1 else math.nan), cap


def _ratio(got_D: torch.Tensor, given_D: torch.Tensor) -> float | None:
    """Return the factor between two vectors, or None if they are not proportional."""
    if got_D.shape != given_D.shape or got_D.is_meta:  # on the meta device: the stub did not replace the body
        return None
    ratio = float(got_D[-1] / given_D[-1])
    return _rounded(ratio) if torch.allclose(got_D.double(), ratio * given_D.double(), rtol=1e-5) else None


def _rounded(value: float) -> float:
    """Return the value without the rounding errors of float32, which some models use here."""
    return float(f"{value:.7g}")


@contextmanager
def _stubs(network: Any, head: Any, hidden_D: torch.Tensor, product_V: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Make the body return hidden_D and the head return product_V. Yield the list that collects the head's inputs."""
    seen: list[torch.Tensor] = []
    output = _output_class()

    def body(*args: Any, **kwargs: Any) -> Any:
        return output(last_hidden_state=hidden_D[None, None])

    def head_forward(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return product_V[None, None].clone()

    base = network.base_model if network.base_model is not network else text_model(network)
    replaced = {base: body, getattr(base, "decoder", base): body, head: head_forward}  # OPT calls model.decoder
    for module, forward in replaced.items():
        module.forward = forward
    try:
        yield seen
    finally:
        for module in replaced:
            del module.forward


def _output_class() -> Any:
    """Return a class of model outputs in which every optional part is None, whatever its name."""
    from transformers.modeling_outputs import BaseModelOutputWithPast  # slow to import, and `plan` does not need it

    class Output(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:
            return None

    return Output


@torch.no_grad()
def _forward(network: Any) -> torch.Tensor:
    id_BL = torch.zeros(1, 1, dtype=torch.int64, device=network.device)
    return network(input_ids=id_BL, use_cache=False).logits


def _unknown(network: Any, name: str) -> str:
    return (
        f"{name}: {type(network).__name__} does more with its hidden states than multiply by the output embeddings, "
        f"add a bias, scale and cap. `lepmerge train` does not know it"
    )
