"""Posterior predictive checks of query labels: would the program have drawn labels like these?

The queries of an episode share a routing, so they are no independent points: quantities are of *episodes*, and where a
query is looked at, it is one of each. Held out throughout: the guide has not seen the queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_smat.inference.diagnostics.calibration import POWER_REPEATS, PosteriorCalibration, draws_calibration
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.metrics.arrays import FloatArray

if TYPE_CHECKING:
    import xarray as xr

MAJORITY, ONE_QUERY, AGREEMENT = "likeliest labels", "one query", "labels in common"


def label_calibration(
    draws: RoutingDraws, *, seed: int = 0, power_repeats: int = POWER_REPEATS
) -> PosteriorCalibration:
    """PIT values of three statistics of the query labels, against their posterior predictive draws.

    ====================================  =======================================================================
    likeliest labels                      accuracy, as the program foresees it: too few is over-confidence
    one query                             of every episode: labels that were thought unlikely
    labels in common                      with another draw: whether queries go wrong together
    ====================================  =======================================================================

    Args:
        draws: at least 100 episodes; half of the draws of labels say what is likely, half are compared with the truth.
        seed: of the choice of queries and of ties.
        power_repeats: simulations of the power.

    Raises:
        ValueError: for fewer than 100 episodes or 20 draws.
    """
    predicted, labels = draws.predicted, draws.labels
    if len(predicted) < 20:
        raise ValueError(f"got {len(predicted)} draws of labels; expected at least 20")
    half = len(predicted) // 2
    first, second = predicted[:half], predicted[half:]
    shown = labels >= 0
    generator = np.random.default_rng(seed)
    likely = _frequencies(first, int(labels.max()) + 1)  # (B, Q, W)
    majority = likely.argmax(-1)
    one = np.array([generator.choice(np.flatnonzero(row)) for row in shown])
    rows = np.arange(len(labels))
    other = first[generator.integers(0, half, len(labels)), rows]  # (B, Q), one earlier draw an episode

    def statistics(values: np.ndarray) -> dict[str, FloatArray]:
        """Of labels ``(k, B, Q)``, each ``(k, B)``."""
        asked = values[:, rows, one]
        return {
            MAJORITY: ((values == majority) & shown).sum(-1).astype(np.float64),
            ONE_QUERY: likely[rows, one][rows, asked.clip(0)],
            AGREEMENT: ((values == other) & shown).sum(-1).astype(np.float64),
        }

    truth = {name: values[0] for name, values in statistics(labels[None]).items()}
    return draws_calibration(
        statistics(second),
        truth,
        population=f"{len(labels)} held-out episodes",
        reference="query labels",
        seed=seed,
        power_repeats=power_repeats,
    )


def flatten_queries(tree: xr.DataTree, *, one_each: bool = True, seed: int = 0) -> xr.DataTree:
    """Labels with a single dim "point" for ArviZ's predictive plots, which take no (episode, query).

    Args:
        tree: from :func:`to_datatree`.
        one_each: one query of every episode, so that points are independent; False takes all.
        seed: of the choice.

    Returns:
        Groups posterior_predictive and observed_data of "labels".
    """
    import xarray as xr

    labels = tree.children["observed_data"].dataset["labels"].values
    predicted = tree.children["posterior_predictive"].dataset["labels"].values
    shown = labels >= 0
    if one_each:
        generator = np.random.default_rng(seed)
        picked = np.zeros_like(shown)
        picked[np.arange(len(labels)), [generator.choice(np.flatnonzero(row)) for row in shown]] = True
        shown = picked
    points = {"point": np.arange(int(shown.sum()))}
    chains = {"chain": np.arange(predicted.shape[0]), "draw": np.arange(predicted.shape[1])}
    return xr.DataTree.from_dict(
        {
            "/posterior_predictive": xr.Dataset(
                {"labels": (("chain", "draw", "point"), predicted[:, :, shown])}, chains | points
            ),
            "/observed_data": xr.Dataset({"labels": (("point",), labels[shown])}, points),
        }
    )


def _frequencies(values: np.ndarray, classes: int) -> FloatArray:
    """How often each label was drawn, ``(B, Q, W)``, from labels ``(k, B, Q)``."""
    return np.stack([(values == label).mean(0) for label in range(max(classes, int(values.max()) + 1))], axis=-1)
