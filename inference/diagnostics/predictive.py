r"""Predictive comparison: which of several guides, priors or likelihoods says the query labels better, on held-out
episodes.

.. math:: \widehat{\mathrm{elpd}}_i = \sum_q \log \frac1K \sum_k p(y_{iq} \mid c_{ik}), \qquad c_{ik} \sim q(c \mid S_i)

per *episode*: the queries of an episode share a routing and are no independent points. The guide has not seen the
queries, so this is held-out already. Leave-one-out cross-validation over queries (``az.loo``) would be a category
error: it takes points out of a posterior which they never entered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_smat.inference.diagnostics.pareto_tail import logsumexp
from pyro_smat.metrics.arrays import FloatArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PredictiveComparison:
    """Held-out elpd of several programs on the same episodes.

    Attributes:
        elpd: name -> ``ELPDDataLOO`` of ArviZ whose points are episodes; for ``az.compare`` and ``plot_khat``.
        table: ``az.compare`` of them, best first; ``elpd_diff`` and ``dse`` are of paired episodes.
        episodes: how many.
        population: what the numbers speak of.
    """

    elpd: Mapping[str, Any]
    table: pd.DataFrame
    episodes: int
    population: str = "held-out episodes; each sums over its queries"


def episode_elpd(log_likelihood: FloatArray) -> FloatArray:
    """log predictive density ``(B,)`` of every episode from ``(K, B, Q)`` log p(y | c), NaN where there is no query."""
    shown = ~np.isnan(log_likelihood)
    per_query = logsumexp(np.moveaxis(np.where(shown, log_likelihood, 0.0), 0, -1)) - np.log(len(log_likelihood))
    return np.where(shown[0], per_query, 0.0).sum(-1)


def predictive_comparison(
    log_likelihoods: Mapping[str, FloatArray], *, khats: Mapping[str, FloatArray] | None = None
) -> PredictiveComparison:
    """Compare programs by their held-out elpd.

    Args:
        log_likelihoods: name -> ``(K, B, Q)`` of the same B episodes and queries; K may differ.
        khats: name -> ``(B,)`` k-hat of importance weights that made the draws, if any.

    Raises:
        ValueError: for fewer than two programs, or other queries in one of them.
    """
    import arviz as az
    import xarray as xr
    from arviz_stats.utils import ELPDDataLOO

    _check(log_likelihoods)
    elpd: dict[str, Any] = {}
    for name, values in log_likelihoods.items():
        points = episode_elpd(np.asarray(values, dtype=np.float64))
        khat = np.zeros(len(points)) if khats is None or name not in khats else np.asarray(khats[name])
        elpd[name] = ELPDDataLOO(
            elpd=float(points.sum()),
            se=float(np.sqrt(len(points)) * points.std(ddof=0)),
            p=0.0,
            n_samples=len(values),
            n_data_points=len(points),
            scale="log",
            warning=False,
            good_k=0.7,
            elpd_i=xr.DataArray(points, dims=("episode",)),
            pareto_k=xr.DataArray(khat, dims=("episode",)),
        )
    return PredictiveComparison(elpd, az.compare(elpd), len(points))


def _check(log_likelihoods: Mapping[str, FloatArray]) -> None:
    if len(log_likelihoods) < 2:
        raise ValueError(f"got {list(log_likelihoods)}; expected at least two programs to compare")
    masks = {name: np.isnan(values).any(0) for name, values in log_likelihoods.items()}
    first = next(iter(masks))
    for name, mask in masks.items():
        if mask.shape != masks[first].shape or (mask != masks[first]).any():
            raise ValueError(
                f"{name!r} scores queries {mask.shape} and {first!r} {masks[first].shape}, or other ones of them; "
                "expected the same episodes for all: collect the draws from the same batches"
            )
