"""Merge methods in float64 on whole tensors, written from their papers; nothing of lepmerge.

Every function takes the base (None where there is none), the models, and parameters; a list has an element per model.
"""

import math

import torch


def largest(delta: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of the `count` largest magnitudes; of equal ones the first."""
    order = delta.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(delta.shape)


def task_sum(base, deltas, weight, scale=1.0, normalize=False):
    total = sum(w * d for w, d in zip(weight, deltas, strict=True))
    return base + scale * total / (sum(weight) if normalize else 1)


def elected(base, deltas, weight, scale=1.0, normalize=True):
    """TIES, section 3: γ = sgn Σ wδ, then the mean over the models whose wδ has that sign, element by element."""
    terms = [w * d for w, d in zip(weight, deltas, strict=True)]
    sign = torch.sign(sum(terms))
    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for w, term in zip(weight, terms, strict=True):
        agrees = (torch.sign(term) == sign) & (sign != 0)
        total += torch.where(agrees, term, 0.0)
        divisor += torch.where(agrees, w, 0.0)
    if normalize:
        total = total / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return base + scale * total


def linear(base, models, weight, normalize=True):
    total = sum(w * m for w, m in zip(weight, models, strict=True))
    return total / sum(weight) if normalize else total


def task_arithmetic(base, models, weight, scale=1.0, normalize=False):
    return task_sum(base, [m - base for m in models], weight, scale, normalize)


def ties(base, models, weight, density, scale=1.0, normalize=True):
    deltas = [m - base for m in models]
    kept = [d * largest(d, int(k * d.numel())) for d, k in zip(deltas, density, strict=True)]
    return elected(base, kept, weight, scale, normalize)


def middle(delta, density, gamma):
    kept = int(density * delta.numel())
    dropped = min(int(gamma * delta.numel()), delta.numel() - kept)
    return delta * (largest(delta, dropped + kept) & ~largest(delta, dropped))


def breadcrumbs(base, models, weight, density, gamma, scale=1.0, normalize=False):
    deltas = [middle(m - base, k, g) for m, k, g in zip(models, density, gamma, strict=True)]
    return task_sum(base, deltas, weight, scale, normalize)


def breadcrumbs_ties(base, models, weight, density, gamma, scale=1.0, normalize=False):
    deltas = [middle(m - base, k, g) for m, k, g in zip(models, density, gamma, strict=True)]
    return elected(base, deltas, weight, scale, normalize)


def slerp(base, models, t):
    a, b = (model.flatten().double() for model in models)
    if not a.norm() * b.norm():
        return (1 - t) * models[0] + t * models[1]
    cosine = float(a @ b / (a.norm() * b.norm()))
    if abs(cosine) > 0.9995:
        return (1 - t) * models[0] + t * models[1]
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * models[0] + math.sin(t * angle) * models[1]) / math.sin(angle)


def nuslerp(base, models, weight, row_wise=False):
    t = weight[1] / sum(weight)
    if not row_wise:
        return slerp(None, models, t)
    rows = [slerp(None, pair, t) for pair in zip(*(m.reshape(-1, m.shape[-1]) for m in models), strict=True)]
    return torch.stack(rows).view(models[0].shape)


def model_stock(base, models):
    deltas = [(m - base).flatten() for m in models]
    cosines = []
    for i in range(len(deltas)):
        for j in range(i):
            norms = deltas[i].norm() * deltas[j].norm()
            cosines.append(float(deltas[i] @ deltas[j] / norms) if norms else 0.0)
    c, n = sum(cosines) / len(cosines), len(models)
    t = n * c / (1 + (n - 1) * c) if c > 0 else 0.0
    return t * sum(models) / n + (1 - t) * base


def karcher(base, models, weight, max_iter=10, tol=1e-5):
    """Gradient descent on the sphere: mean ← exp(Σ w log(u)), in the tensors' own coordinates."""
    used = [(m.flatten(), w) for m, w in zip(models, weight, strict=True) if m.norm() > 0]
    total = sum(w for _, w in used)
    if not total:
        return torch.zeros_like(models[0])
    units = [(m / m.norm(), w / total) for m, w in used]
    mean = sum(w * u for u, w in units)
    if mean.norm() < 1e-7:
        return torch.zeros_like(models[0])
    mean = mean / mean.norm()
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for u, w in units:
            cosine = max(-1.0, min(1.0, float(u @ mean)))
            along = u - cosine * mean
            if along.norm() > 1e-7:
                tangent += w * math.acos(cosine) * along / along.norm()
        length = float(tangent.norm())
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) * tangent / length
        mean = mean / mean.norm()
    scale = sum(float(m.norm()) * w / total for m, w in used)
    return (scale * mean).view(models[0].shape)


def sce(base, models, select_topk=1.0):
    deltas = torch.stack([m - base for m in models])
    variance = deltas.var(0, unbiased=False)
    count = int(select_topk * variance.numel())
    limit = variance.flatten().sort(descending=True).values[count - 1] if count else math.inf
    if select_topk < 1:
        deltas = torch.where(variance >= limit, deltas, 0.0)
    energy = deltas.square().flatten(1).sum(1)
    weight = energy / energy.sum() if energy.sum() > 0 else energy
    sign = torch.sign(deltas.sum(0))
    out = base.clone()
    for place in torch.nonzero(sign):
        here = tuple(place.tolist())
        chosen = [i for i in range(len(models)) if torch.sign(deltas[(i, *here)]) == sign[here] and weight[i] > 0]
        if chosen:
            out[here] += sum(weight[i] * deltas[(i, *here)] for i in chosen) / sum(weight[i] for i in chosen)
    return out


def arcee_fusion(base, models):
    (model,) = models
    p, q = model.log_softmax(-1), base.log_softmax(-1)
    importance = (model - base).abs() * (p.exp() * (p - q)).sum(-1, keepdim=True).clamp(min=0)
    ordered = importance.flatten().sort(descending=True).values
    upper, median, lower = (ordered[max(1, round(part * len(ordered))) - 1] for part in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (upper - lower), model, base)
