"""Each merge method equals its float64 reference; identities; random masks by their statistics and reproducibility."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import merge_reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lepmerge.tensors
from lepmerge.computation.merge_methods.random_masks import key_of, uniform
from lepmerge.computation.merge_methods.reductions import RankThresholds, within_rank
from lepmerge.computation.merge_methods.registry import Inputs, merge_methods
from lepmerge.errors import RecipeError
from lepmerge.tensors import LazyTensor, blocks, workspace_for

RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}
REFERENCES = {name: getattr(merge_reference, name) for name in merge_methods() if name not in RANDOM}
SYMMETRIC = ("linear", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "karcher")


@dataclass(frozen=True, eq=False, kw_only=True)
class InMemory(LazyTensor):
    """Rows of a tensor in memory."""

    value: torch.Tensor

    def read(self, rows, workspace) -> torch.Tensor:
        return self.value.reshape(-1, self.value.shape[-1])[rows.start : rows.stop]


def lazy(value: torch.Tensor) -> InMemory:
    return InMemory(value=value, shape=tuple(value.shape), dtype=value.dtype)


@dataclass(frozen=True, eq=False, kw_only=True)
class Counted(InMemory):
    """Counts how often each row is read."""

    reads: torch.Tensor

    def read(self, rows, workspace) -> torch.Tensor:
        self.reads[rows.start : rows.stop] += 1
        return super().read(rows, workspace)


@contextmanager
def block_of(num_bytes: int):
    before, lepmerge.tensors.BLOCK_BYTES = lepmerge.tensors.BLOCK_BYTES, num_bytes
    try:
        yield
    finally:
        lepmerge.tensors.BLOCK_BYTES = before


def result(method: str, base, models, *, block: int = 1 << 20, name: str = "w", **given: Any) -> torch.Tensor:
    """Return what a method makes of tensors, read block by block; lists among `given` are numbers for each model."""
    known = merge_methods()[method]
    per_model = tuple({key: given.get(key, [d] * len(models))[i] for key, d in known.per_model.items()}
                      for i in range(len(models)))  # fmt: skip
    inputs = Inputs(
        name=name,
        base=lazy(base) if known.needs_base else None,
        models=tuple(map(lazy, models)),
        per_model=per_model,
        settings={key: given.get(key, default) for key, default in known.settings.items()},
    )
    with block_of(block):
        merged = known.function(inputs)
        workspace = workspace_for(merged)
        read = [merged.read(rows, workspace) for rows in blocks(merged)]
    return torch.cat(read).view(models[0].shape)


def wanted(method: str, base, models, **given: Any) -> torch.Tensor:
    known = merge_methods()[method]
    given = {key: given.get(key, [d] * len(models)) for key, d in known.per_model.items()} | {
        "scale" if key == "lambda" else key: given.get(key, default) for key, default in known.settings.items()
    }
    reference = REFERENCES[method]
    return reference(None if base is None else base.double(), [model.double() for model in models], **given)


@st.composite
def cases(draw) -> tuple[str, torch.Tensor, list[torch.Tensor], int, dict[str, Any]]:
    """Tensors of eighths, among which equal magnitudes, zero deltas and equal models abound, and parameters."""
    method = draw(st.sampled_from(sorted(REFERENCES)))
    known = merge_methods()[method]
    shape = draw(st.sampled_from([(1,), (7,), (1, 1), (3, 4), (5, 2), (2, 2, 3)]))
    fewest, most = known.num_models
    count = draw(st.integers(fewest, most or 4))
    count = 4 if method == "sce" and count == 3 else count  # a mean of 3 rounds, and makes or breaks ties
    size = int(torch.tensor(shape).prod())
    values = st.lists(st.integers(-3, 3), min_size=size, max_size=size)

    def tensor(of: Any) -> torch.Tensor:
        return torch.tensor(draw(of), dtype=torch.float32).view(shape) / 8

    base = tensor(values)
    models = [base + tensor(values) for _ in range(count)]
    if draw(st.booleans()):
        models[-1] = models[0].clone()
    if method == "arcee_fusion":  # logarithms round: no ties
        base, *models = torch.randn(
            count + 1, *shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
        )
    number = st.sampled_from([0.1, 0.25, 0.5, 0.9])
    ranges = {
        "weight": st.sampled_from([0.3, 0.5, 1.0, 2.0] if method in ("karcher", "nuslerp") else [-0.5, 0.3, 1.0, 2.0]),
        "density": st.sampled_from([0.1, 0.34, 0.5, 0.8, 1.0]),
        "gamma": st.sampled_from([0.0, 0.01, 0.2, 0.5]),
    }
    given: dict[str, Any] = {key: [draw(ranges[key]) for _ in models] for key in known.per_model}
    if "normalize" in known.settings:
        given["normalize"] = draw(st.booleans()) and abs(sum(given["weight"])) > 0.1
    given |= {key: draw(number) for key in ("t", "lambda", "select_topk") if key in known.settings}
    given |= {"row_wise": draw(st.booleans())} if method == "nuslerp" else {}
    return method, base, models, draw(st.sampled_from([4, 48, 1 << 20])), given


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_a_method_equals_its_paper_in_float64(case) -> None:
    method, base, models, block, given = case
    got = result(method, base, models, block=block, **given)
    assert got.isfinite().all()
    # elements at a discontinuity of the method, a sign or threshold decided by rounding, are exact here: eighths
    assert torch.allclose(got.double(), wanted(method, base, models, **given), rtol=1e-4, atol=2e-6), (got, given)


@pytest.mark.parametrize("method", sorted(merge_methods()))
def test_merging_a_model_with_itself_gives_the_model(method: str) -> None:
    base, model = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    count = merge_methods()[method].num_models[0]
    given = {"t": 0.3, "density": [1.0] * count, "weight": [1.0] * count}
    got = result(method, base, [model] * count, **given)
    if method == "arcee_fusion":  # takes only values far above the quartiles
        assert bool(((got == model) | (got == base)).all())
    else:
        assert torch.allclose(got, model, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in merge_methods() if "lambda" in merge_methods()[name].settings])
def test_weight_or_lambda_0_gives_the_base(method: str) -> None:
    base, *models = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(result(method, base, models, weight=[0.0] * 3, normalize=False), base)
    assert torch.equal(result(method, base, models, **{"lambda": 0.0}), base)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear", "ties", "breadcrumbs"])
def test_density_1_keeps_everything(method: str) -> None:
    base, *models = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(3))
    votes = method in ("dare_ties", "della", "ties")
    whole = merge_reference.elected if votes else merge_reference.task_sum
    deltas = [(model - base).double() for model in models]
    got = result(method, base, models, normalize=False, weight=[0.5, 0.2, 0.4])
    assert torch.allclose(got.double(), whole(base.double(), deltas, [0.5, 0.2, 0.4], normalize=False), atol=1e-6)


@pytest.mark.parametrize("method", SYMMETRIC)
def test_the_order_of_the_models_means_nothing(method: str) -> None:
    base, *models = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(4))
    given = {"density": [0.5, 0.5, 0.5], "weight": [0.5, 0.2, 0.4]}
    forth = result(method, base, models, **given)
    back = result(method, base, models[::-1], **{key: value[::-1] for key, value in given.items()})
    assert torch.allclose(forth, back, atol=1e-6)


@pytest.mark.parametrize("method", sorted(RANDOM))
def test_random_methods_keep_the_mean_and_the_density(method: str) -> None:
    base = torch.zeros(200, 100)
    model = torch.rand(200, 100, generator=torch.Generator().manual_seed(5)) + 0.5
    got = result(method, base, [model], density=[0.4], epsilon=[0.1])
    stays = got != 0
    assert float(stays.float().mean()) == pytest.approx(0.4, abs=0.015)
    assert float(got.mean() / model.mean()) == pytest.approx(1, abs=0.03)
    if method.startswith("dare"):
        assert torch.allclose(got[stays], model[stays] / 0.4)
        assert torch.allclose(result(method, base, [model], density=[0.4], rescale=False)[stays], model[stays])
    else:  # the smallest elements of each row stay with probability 0.3, the largest with 0.5
        rank = model.argsort(1).argsort(1)
        for part, probability in ((rank < 20, 0.32), (rank >= 80, 0.48)):
            assert float(stays[part].float().mean()) == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize("method", sorted(RANDOM))
def test_random_masks_depend_on_seed_tensor_and_model_alone(method: str) -> None:
    base = torch.zeros(20, 30)
    models = [torch.ones(20, 30)] * 2
    given: dict[str, Any] = {"density": [0.5, 0.5], "weight": [1.0, 2.0], "rescale": False, "normalize": False}
    once = result(method, base, models, **given)
    for block in (4, 500, 1 << 20):
        assert torch.equal(once, result(method, base, models, block=block, **given))
    assert not torch.equal(once, result(method, base, models, seed=1, **given))
    assert not torch.equal(once, result(method, base, models, name="other", **given))
    first, second = once.remainder(2) == 1, once >= 2
    assert torch.equal(result(method, base, models[:1], density=[0.5]) != 0, first) and not torch.equal(first, second)


def test_random_numbers_are_uniform_and_these() -> None:
    drawn = uniform(torch.arange(300), 400, key_of(0, "w", 0))
    assert drawn.dtype == torch.float32 and 0 <= float(drawn.min()) and float(drawn.max()) < 1
    assert torch.histc(drawn, 10, 0, 1).sub(12000).abs().max() < 450  # 4 standard deviations
    assert torch.equal(uniform(torch.tensor([7]), 400, key_of(0, "w", 0))[0], drawn[7])
    assert len(drawn.unique()) > 119_000


@pytest.mark.parametrize(("method", "times"), [("della", 1), ("ties", 1), ("della_linear", 2), ("dare_ties", 2)])
def test_the_default_of_normalize_is_the_paper_s(method: str, times: int) -> None:
    base, model = torch.zeros(3, 4), torch.ones(3, 4)
    assert torch.equal(result(method, base, [model, model]), times * model)


def test_zero_deltas_give_the_base() -> None:
    base = torch.randn(3, 4, generator=torch.Generator().manual_seed(7))
    for name, method in merge_methods().items():
        if method.needs_base:
            count = method.num_models[0]
            numbers = {"density": [0.5] * count, "gamma": [0.1] * count, "select_topk": 0.5}
            assert torch.equal(result(name, base, [base] * count, **numbers), base), name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.5, -3e-40, float("nan")]), min_size=1, max_size=12), st.data())
def test_thresholds_keep_exactly_as_many_elements_as_asked(values: list[float], data) -> None:
    width = data.draw(st.sampled_from([w for w in range(1, len(values) + 1) if len(values) % w == 0]))
    tensor = torch.tensor(values).view(-1, width)
    rank = data.draw(st.integers(-1, len(values) + 1))
    with block_of(4 * width * data.draw(st.integers(1, 3))):
        reduction = RankThresholds(operands=(lazy(tensor),), ranks=(rank,))
        found = reduction.compute(workspace_for(lazy(tensor))).tensors
    kept = within_rank(torch.arange(len(tensor)), tensor, found, 0)
    finite = ~tensor.isnan()
    expected = merge_reference.largest(torch.where(finite, tensor, float("inf")), max(0, rank))
    assert bool(kept[~finite].all())
    assert int((~finite).sum()) >= rank > 0 or torch.equal(kept & finite, expected & finite)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("linear", {"weight": [1.0, -1.0]}, "add up to 0"),
        ("nuslerp", {"weight": [1.0, -1.0]}, "add up to 0"),
        ("karcher", {"weight": [2.0, -1.0]}, "no negative weights"),
        ("task_arithmetic", {"weight": [1.0, -1.0], "normalize": True}, "add up to 0"),
        ("della", {"density": [0.9, 0.5]}, "density 0.9 and epsilon 0.15"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_any_tensor_is_read(method: str, given, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        result(method, torch.ones(2, 2), [torch.ones(2, 2)] * 2, **given)


@pytest.mark.parametrize("method", ["ties", "sce", "arcee_fusion"])
def test_a_block_reads_every_operand_once_and_is_small(method: str) -> None:
    """Otherwise a merge of many models needs hundreds of MiB, and reads the base once for every model."""
    known, values = merge_methods()[method], torch.randn(5, 4096, 64, generator=torch.Generator().manual_seed(0))
    count = known.num_models[1] or 4
    base, *models = [
        Counted(value=v, shape=tuple(v.shape), dtype=v.dtype, reads=torch.zeros(4096)) for v in values[: count + 1]
    ]
    per_model = ({**known.per_model, **({"density": 0.5} if "density" in known.per_model else {})},) * count
    settings = {**known.settings, **({"select_topk": 0.5} if method == "sce" else {})}
    merged = known.function(Inputs(name="w", base=base, models=tuple(models), per_model=per_model, settings=settings))
    workspace = workspace_for(merged)
    for each in (base, *models):
        each.reads.zero_()
    for rows in blocks(merged):
        assert len(rows) * merged.row_width * 4 <= 1 << 20
        merged.read(rows, workspace)
    assert all(bool((each.reads == 1).all()) for each in (base, *models))
