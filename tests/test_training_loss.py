"""The chunked loss and its gradients against a plain float64 computation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lepmerge.training.loss import IGNORED, SMALLEST_CHUNK, LogitTransform, chunk_length, linear_cross_entropy


def plain(hidden, table, labels, scale, logit_scale=1.0, cap=None, bias=None, weight=None):
    """Return the summed loss, and the gradients of scale times it, by autograd in float64."""
    hidden, table = hidden.double().requires_grad_(), table.double().requires_grad_()
    logits = hidden @ table.T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * logit_scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    total = nats.sum() if weight is None else (nats * weight).sum()
    (total * scale).backward()
    return total.detach(), hidden.grad, table.grad


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_tokens=st.integers(1, 40),
    num_rows=st.integers(1, 60),
    width=st.integers(1, 12),
    chunk=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    scale=st.sampled_from([1.0, 0.01, 3.0]),
    size=st.sampled_from([1.0, 30.0]),
    transform=st.tuples(
        st.sampled_from([1.0, 0.0625, 3.0]), st.sampled_from([None, 30.0, 0.5]), st.sampled_from([False, True])
    ),
)
def test_equals_a_plain_float64_computation(
    seed, num_tokens, num_rows, width, chunk, ignored, span, scale, size, transform
):
    generator = torch.Generator().manual_seed(seed)
    hidden = size * torch.randn(num_tokens, width, generator=generator)
    table = torch.randn(num_rows, width, generator=generator)
    labels = torch.randint(num_rows, (num_tokens,), generator=generator)
    labels[torch.rand(num_tokens, generator=generator) < ignored] = IGNORED
    first, stop = sorted(round(part * num_rows) for part in span)
    before = torch.randn(stop - first, width, generator=generator)
    grad = before.clone()
    logit_scale, cap, has_bias = transform
    bias = torch.randn(num_rows, generator=generator) if has_bias else None
    total, grad_hidden = linear_cross_entropy(
        hidden, table, labels, scale=scale, transform=LogitTransform(logit_scale, cap, bias), grad_RD=grad,
        first_row=first, chunk=chunk,
    )  # fmt: skip
    expected, expected_hidden, expected_table = plain(hidden, table, labels, scale, *(logit_scale, cap, bias))
    assert torch.allclose(total, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(grad_hidden.double(), expected_hidden, rtol=1e-4, atol=1e-5 * scale * max(1.0, logit_scale))
    tolerance = 1e-5 * scale * size * num_tokens * max(1.0, logit_scale)
    assert torch.allclose((grad - before).double(), expected_table[first:stop], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize(("logit_scale", "cap", "biased"), [(1.0, None, False), (0.0625, 1.5, True), (2.0, 4.0, False)])
@pytest.mark.parametrize("weighted", [False, True])
def test_float64_is_exact(chunk: int, logit_scale: float, cap: float | None, biased: bool, weighted: bool) -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(50, 8, dtype=torch.float64), torch.randn(33, 8, dtype=torch.float64)
    labels, weight = torch.randint(33, (50,)), 20 * torch.rand(50, dtype=torch.float64) if weighted else None
    grad = torch.zeros(33, 8, dtype=torch.float64)
    transform = LogitTransform(logit_scale, cap, torch.randn(33, dtype=torch.float64) if biased else None)
    total, grad_hidden = linear_cross_entropy(
        hidden, table, labels, scale=0.5, weight_N=weight, transform=transform, grad_RD=grad, chunk=chunk
    )
    bias_V = transform.bias_V
    expected, expected_hidden, expected_table = plain(hidden, table, labels, 0.5, logit_scale, cap, bias_V, weight)
    assert torch.allclose(total, expected, rtol=1e-13)
    assert torch.allclose(grad_hidden, expected_hidden, atol=1e-13)
    assert torch.allclose(grad, expected_table, atol=1e-12)


def test_float32_is_as_near_as_measured() -> None:
    """At a real width and with many rows, the error is 2e-8 of the loss and 5e-7 of the largest gradient."""
    torch.manual_seed(0)
    hidden, table = torch.randn(300, 256), 0.05 * torch.randn(20000, 256)
    labels = torch.randint(20000, (300,))
    grad = torch.zeros(20000, 256)
    total, grad_hidden = linear_cross_entropy(hidden, table, labels, scale=1 / 300, grad_RD=grad)
    expected, expected_hidden, expected_table = plain(hidden, table, labels, 1 / 300)
    assert abs(total - expected) / expected < 1e-6
    for got, wanted in ((grad_hidden, expected_hidden), (grad, expected_table)):
        assert (got.double() - wanted).abs().max() < 2e-6 * wanted.abs().max()


def test_bfloat16_keeps_the_gradient_in_float32() -> None:
    """A row's gradient is summed over many chunks. Its error must not exceed the errors of the chunks."""
    torch.manual_seed(0)
    hidden, table = torch.randn(4096, 32).bfloat16(), (0.2 * torch.randn(100, 32)).bfloat16()
    labels = torch.randint(100, (4096,))
    grad = torch.zeros(100, 32)
    total, grad_hidden = linear_cross_entropy(hidden, table, labels, scale=1.0, grad_RD=grad, chunk=64)
    expected, expected_hidden, expected_table = plain(hidden, table, labels, 1.0)
    assert abs(total - expected) / expected < 1e-3
    assert grad_hidden.dtype == torch.bfloat16
    assert (grad.double() - expected_table).norm() < 0.01 * expected_table.norm()


def test_without_gradients_it_only_measures() -> None:
    hidden, table, labels = torch.randn(5, 4), torch.randn(9, 4), torch.tensor([1, 2, IGNORED, 8, 0])
    total, grad_hidden = linear_cross_entropy(hidden, table, labels, scale=1.0, needs_hidden=False)
    assert grad_hidden is None
    assert torch.allclose(total, plain(hidden, table, labels, 1.0)[0], rtol=1e-6)


def test_chunks_are_not_small() -> None:
    assert chunk_length(10**6, torch.device("cpu"), 4) == SMALLEST_CHUNK == 256
    assert chunk_length(1000, torch.device("cpu"), 2) == 2 * chunk_length(1000, torch.device("cpu"), 4) > 10_000
