"""What no fast algorithm can do in general: the gadgets of the reductions, each checked by brute force.

Coverage: experts z_m = 1 on the set E_m, theta_delta = 1, one query e_u of label + for every element u of the
universe; the composed classifier says + where <theta, x> > 0, so its error is the share of uncovered elements.

Exact cover by 3-sets: sources 1 on the triple E_r, target 1/q everywhere on the 3q elements; a mixture of at most q
sources hits the target if and only if q of the triples are an exact cover.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from pyro_smat.metrics.arrays import FloatArray

from .finding import Finding, rate_interval
from .simplex import least_squares_by_faces

Sets = list[frozenset[int]]


def random_sets(
    universe: int, sets: int, planted: int, rng: np.random.Generator, sizes: tuple[int, ...] = (3,)
) -> Sets:
    """Distinct random sets in random order; ``planted`` of them are a partition of the universe into equal parts."""
    order = rng.permutation(universe).tolist()
    part = universe // max(planted, 1)
    found = {frozenset(order[i * part : (i + 1) * part]) for i in range(planted)}
    while len(found) < sets:
        found.add(frozenset(rng.choice(universe, rng.choice(sizes), replace=False).tolist()))
    ordered = sorted(found, key=sorted)
    return [ordered[i] for i in rng.permutation(sets)]


def masks_of(sets: Sets, universe: int) -> FloatArray:
    """Rows 1 on each set ``(M, universe)``."""
    return np.array([[float(element in chosen) for element in range(universe)] for chosen in sets])


def error_of_experts(masks: FloatArray, chosen: tuple[int, ...]) -> float:
    """0/1 loss of the classifier composed of the chosen experts on the queries e_u, all of label +."""
    alpha = np.zeros(len(masks))
    alpha[list(chosen)] = 1
    theta = alpha @ masks  # theta_delta = 1
    scores = np.eye(masks.shape[1]) @ theta
    return float(np.mean(scores <= 0))


def greedy(masks: FloatArray, budget: int) -> tuple[int, ...]:
    """Experts one after another, each the one that lowers the loss most, the first among equals."""
    chosen: tuple[int, ...] = ()
    for _ in range(budget):
        rest = [m for m in range(len(masks)) if m not in chosen]
        chosen = (*chosen, min(rest, key=lambda m: error_of_experts(masks, (*chosen, m))))
    return chosen


def coverage_gadget(instances: int = 200, seed: int = 0) -> Finding:
    """Loss = 1 - coverage on every subset, and what greedy is worth on coverage and on loss."""
    rng = np.random.default_rng(seed)
    universe, experts, budget = 12, 8, 3
    guarantee = 1 - (1 - 1 / budget) ** budget
    rows = []
    for planted in (0, budget):
        mismatches, ratios, missed, factors = 0, [], 0, []
        for _ in range(instances // 2):
            sets = random_sets(universe, experts, planted, rng, sizes=(3, 4, 5))
            masks = masks_of(sets, universe)
            losses = {}
            for chosen in itertools.combinations(range(experts), budget):
                covered = len(frozenset().union(*(sets[m] for m in chosen)))
                losses[chosen] = error_of_experts(masks, chosen)
                mismatches += round(universe * losses[chosen]) != universe - covered
            best, found = min(losses.values()), error_of_experts(masks, greedy(masks, budget))
            ratios.append((1 - found) / (1 - best))
            missed += best == 0 and found > 0
            if best > 0:
                factors.append(found / best)
        rows.append(
            {
                "instances": f"{instances // 2}, {'a partition planted' if planted else 'random'}",
                "subsets": len(losses) * (instances // 2),
                "loss != 1 - coverage": mismatches,
                "greedy / best coverage, mean": float(np.mean(ratios)),
                "least": float(min(ratios)),
                "best loss 0, greedy's not": missed,
                "largest greedy / best loss, best > 0": max(factors, default=float("nan")),
            }
        )
    table = pd.DataFrame(rows)
    total = int(table["best loss 0, greedy's not"].sum())
    return Finding(
        "Choosing experts is maximum coverage; greedy keeps (1 - 1/e) of the coverage and no factor of the loss.",
        table,
        {
            "mismatches": int(table["loss != 1 - coverage"].sum()),
            "least greedy / best coverage": float(table["least"].min()),
            "its guarantee 1 - (1 - 1/k)^k": guarantee,
            "best loss 0, greedy's not": total,
            "as a rate": rate_interval(total, 2 * (instances // 2)),
        },
        seed,
        {"universe": universe, "experts": experts, "k": budget},
    )


def has_exact_cover(sets: Sets, universe: int) -> bool:
    """Whether some of the triples are a partition of the universe."""
    parts = universe // 3
    return any(len(frozenset().union(*chosen)) == universe for chosen in itertools.combinations(sets, parts))


def sparse_mixture_residuals(sets_of_instances: list[Sets], universe: int) -> FloatArray:
    """Least ||Theta w - 1/q||^2 over w in the simplex with at most q = universe / 3 nonzeros, of each instance."""
    parts = universe // 3
    sources = np.stack([masks_of(sets, universe) for sets in sets_of_instances])  # (instances, R, universe)
    target = np.full(universe, 1 / parts)
    weights, _ = least_squares_by_faces(sources @ sources.mT, (sources @ target)[..., None], largest=parts)
    return np.sum((sources.mT @ weights - target[:, None])[..., 0] ** 2, axis=1)


def exact_cover_gadget(instances: int = 200, seed: int = 0) -> Finding:
    """Residual 0 if and only if there is an exact cover, on yes and no instances."""
    rng = np.random.default_rng(seed)
    universe, sources = 9, 8
    planted = np.arange(instances) % 2 == 0
    problems = [random_sets(universe, sources, universe // 3 if yes else 0, rng) for yes in planted]
    covered = np.array([has_exact_cover(sets, universe) for sets in problems])
    residuals = sparse_mixture_residuals(problems, universe)
    zero = residuals < 1e-12
    table = pd.DataFrame(
        {
            "exact cover": ["yes", "no"],
            "instances": [int(covered.sum()), int((~covered).sum())],
            "residual 0": [int((zero & covered).sum()), int((zero & ~covered).sum())],
            "least residual": [float(residuals[covered].min()), float(residuals[~covered].min())],
            "largest residual": [float(residuals[covered].max()), float(residuals[~covered].max())],
        }
    )
    return Finding(
        "A mixture of at most q sources that fits exactly exists if and only if the triples have an exact cover.",
        table,
        {"mismatches": int(np.count_nonzero(zero != covered))},
        seed,
        {"universe": universe, "R": sources, "q": universe // 3},
    )
