r"""The exact empirical risk minimiser by brute force, and what is true of it with a fixed design.

    y = X (Theta w + Delta) + noise,  noise N(0, I),  w in the simplex,  ||Delta||_0 <= k

Every support of size k and every face of the simplex is solved in closed form, so nothing here is a heuristic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyro_smat.metrics.arrays import FloatArray

from .finding import Finding, rate_interval
from .simplex import least_squares_by_faces


@dataclass(frozen=True)
class Design:
    """Features X ``(n, d)``, sources ``(d, R)`` as columns, and the budget k of the residual."""

    features: FloatArray
    sources: FloatArray
    budget: int

    @staticmethod
    def random(examples: int, dim: int, sources: int, budget: int, rng: np.random.Generator) -> Design:
        """Gaussian features and Gaussian sources of length about 1."""
        columns = rng.standard_normal((dim, sources)) / math.sqrt(dim)
        return Design(rng.standard_normal((examples, dim)), columns, budget)

    def truth(self, rng: np.random.Generator) -> FloatArray:
        """A realisable parameter ``(d,)``: Dirichlet weights and k entries of the size of the noise."""
        dim, sources = self.sources.shape
        theta = self.sources @ rng.dirichlet(np.ones(sources))
        amplitude = math.sqrt(2 * math.log(dim / self.budget) / len(self.features))
        theta[rng.choice(dim, self.budget, replace=False)] += amplitude * rng.choice((-1.0, 1.0), self.budget)
        return theta

    def minimise(self, targets: FloatArray) -> FloatArray:
        """Fitted values ``X theta`` ``(n, B)`` of the exact minimiser for each column of ``targets`` ``(n, B)``."""
        supports = list(itertools.combinations(range(self.features.shape[1]), self.budget))
        spanned, _ = np.linalg.qr(np.stack([self.features[:, list(support)] for support in supports]))
        mixed = self.features @ self.sources
        mixed_rest = mixed - spanned @ (spanned.mT @ mixed)  # (supports, n, R): what the residual cannot do
        targets_rest = targets - spanned @ (spanned.mT @ targets)
        weights, values = least_squares_by_faces(mixed_rest.mT @ mixed_rest, mixed_rest.mT @ targets_rest)
        losses = values + np.sum(targets_rest**2, axis=1) / 2
        best = np.argmin(losses, axis=0)
        columns = np.arange(targets.shape[1])
        mixture = mixed @ weights[best, :, columns].T
        basis = spanned[best]  # (B, n, k)
        rest = (targets - mixture).T[..., None]
        return mixture + (basis @ (basis.mT @ rest))[..., 0].T

    def largest_projection(self, noise: FloatArray) -> FloatArray:
        """max over 2k-supports S of ||P_S noise||^2 ``(B,)``, P_S onto X of the sources' differences and of S."""
        dim = self.features.shape[1]
        differences = self.features @ (self.sources[:, 1:] - self.sources[:, :1])
        supports = itertools.combinations(range(dim), min(2 * self.budget, dim))
        largest = np.zeros(noise.shape[1])
        for support in supports:
            basis, _ = np.linalg.qr(np.hstack([differences, self.features[:, list(support)]]))
            largest = np.maximum(largest, np.sum((basis.T @ noise) ** 2, axis=0))
        return largest


def upper_bound(examples: int, dim: int, sources: int, budget: int, delta: float) -> float:
    r"""What (1/n) ||X h||^2 exceeds with probability delta at most: theorem 1 of docs/theory.md, with sigma = 1.

    .. math:: \frac4n \left(\sqrt{R - 1 + 2k} + \sqrt{2 \ln \tbinom{d}{2k} + 2 \ln \tfrac1\delta}\right)^2

    The error h lies in one of C(d, 2k) spaces of dimension R - 1 + 2k; on each, the projected noise is below the
    bracket with probability 1 - delta / C(d, 2k); the basic inequality ||X h||^2 <= 2 <noise, X h> does the rest.
    """
    combinations = math.comb(dim, min(2 * budget, dim))
    bracket = math.sqrt(sources - 1 + 2 * budget) + math.sqrt(2 * math.log(combinations) + 2 * math.log(1 / delta))
    return 4 / examples * bracket**2


def explicit_bound(designs: int = 20, draws: int = 200, delta: float = 0.1, seed: int = 0) -> Finding:
    """The explicit bound against the exact minimiser: violations of it, and of the inequality that it rests on.

    That inequality, n loss <= 4 max ||P_S noise||^2 over supports of size 2k, has no luck in it: it would fail if the
    minimiser were not exact. The rates are those of the drawn designs.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for examples, dim, sources, budget in ((16, 8, 3, 1), (24, 10, 3, 2), (24, 8, 5, 2), (96, 10, 3, 2)):
        losses, deterministic = [], []
        for _ in range(designs):
            design = Design.random(examples, dim, sources, budget, rng)
            mean = (design.features @ design.truth(rng))[:, None]
            noise = rng.standard_normal((examples, draws))
            losses.append(np.sum((design.minimise(mean + noise) - mean) ** 2, axis=0))
            deterministic.append(losses[-1] > 4 * design.largest_projection(noise) * (1 + 1e-9))
        loss, bound = np.concatenate(losses) / examples, upper_bound(examples, dim, sources, budget, delta)
        violated = int(np.count_nonzero(loss > bound))
        rows.append(
            {
                "n": examples,
                "d": dim,
                "R": sources,
                "k": budget,
                "draws": len(loss),
                "mean loss": loss.mean(),
                "1 - delta quantile": float(np.quantile(loss, 1 - delta)),
                "bound": bound,
                "bound / quantile": bound / float(np.quantile(loss, 1 - delta)),
                "violations": violated,
                "rate at most": rate_interval(violated, len(loss)).high,
                "violations of the inequality": int(np.count_nonzero(deterministic)),
            }
        )
    table = pd.DataFrame(rows)
    return Finding(
        "Fixed design, exact minimiser: the explicit upper bound holds, and is loose.",
        table,
        {
            "violations": int(table.violations.sum()),
            "violation rate": rate_interval(int(table.violations.sum()), int(table.draws.sum())),
            "violations of the inequality": int(table["violations of the inequality"].sum()),
        },
        seed,
        {"delta": delta, "designs": designs},
    )


def too_few_examples(seed: int = 0) -> Finding:
    """Population loss strongly convex (identity covariance), k > n: minimisers of any excess risk."""
    rng = np.random.default_rng(seed)
    examples, dim, sources, budget = 6, 20, 3, 8
    design = Design.random(examples, dim, sources, budget, rng)
    theta = design.truth(rng)
    targets = design.features @ theta + rng.standard_normal(examples)
    active = design.features[:, :budget]
    start = np.zeros(dim)
    start[:budget] = np.linalg.lstsq(active, targets - design.features @ design.sources[:, 0])[0]
    direction = np.zeros(dim)
    direction[:budget] = np.linalg.svd(active)[2][-1]  # features times it are zero
    rows = []
    for length in (0.0, 1.0, 10.0, 1000.0):
        residual = start + length * direction
        error = design.sources[:, 0] + residual - theta
        training = np.mean((targets - design.features @ (design.sources[:, 0] + residual)) ** 2)
        rows.append(
            {
                "nonzeros of Delta": int(np.count_nonzero(residual)),
                "training loss": float(training),
                "excess population risk": float(error @ error),
            }
        )
    table = pd.DataFrame(rows)
    return Finding(
        "More free entries than examples: these are all exact empirical risk minimisers.",
        table,
        {"largest training loss": float(table["training loss"].max())},
        seed,
        {"n": examples, "d": dim, "R": sources, "k": budget},
    )
