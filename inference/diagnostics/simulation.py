"""Simulation-based calibration: truths and supports drawn from the model, posteriors from the guide.

simulate -> (truth, data) -> posterior(data) -> PIT values. For models that *generate* what the guide sees. RoutedModel
does not: it takes the support as given, so that under it a support says nothing of its routing, and textbook
calibration would ask the guide to equal the prior. Known routes of episodes are the judge there
(``route_calibration``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_smat.guides import CatalogPosterior, RoutingPosterior
from pyro_smat.inference.diagnostics.calibration import (
    POWER_REPEATS,
    PosteriorCalibration,
    catalog_calibration,
    draws_calibration,
)
from pyro_smat.inference.diagnostics.quantities import DISTANCE, LOG_LIKELIHOOD, LOG_Q, catalog_quantities
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.routed import RoutedModel

Simulate = Callable[[int, torch.Generator], tuple[Tensor, Any]]
Posterior = Callable[[Any], RoutingPosterior | Tensor]


@torch.no_grad()
def simulation_based_calibration(
    simulate: Simulate,
    posterior: Posterior,
    *,
    num_simulations: int = 400,
    num_samples: int = 200,
    log_likelihood: Callable[[Any, Tensor], Tensor] | None = None,
    references: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    power_repeats: int = POWER_REPEATS,
) -> PosteriorCalibration:
    """Is the amortised posterior the one of the model that draws the data?

    Args:
        simulate: (N, generator) -> truths and data; truths are rows of the catalog ``(N,)`` long, or coefficients
            ``(N, C)`` on the simplex. ``lambda n, g: model.draw(n, 5, g)`` of FiniteRoutes.
        posterior: data -> a :class:`RoutingPosterior` of N episodes, or the probabilities ``(N, J)`` of a catalog.
        num_simulations: N, at least 100.
        num_samples: K draws an episode on the simplex; a catalog needs none.
        log_likelihood: (data, coefficients ``(k, 1 or N, C)``) -> log p(data | c) ``(k, N)``. With it the check sees a
            guide that ignores the data. Probabilities without a catalog count as one-hot coefficients ``(J, 1, J)``.
        references: data -> ``(N, C)`` points for TARP that depend on the data; default the routing of largest
            likelihood of a catalog.
        seed: of simulation, draws and ties.
        power_repeats: simulations of the power; 0 leaves it out.

    Raises:
        ValueError: for RoutedModel, which generates no supports, fewer than 100 simulations, or a point posterior.

    Example:
        >>> from pyro_smat.models.finite_routes import FiniteRoutes
        >>> laws = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
        >>> model = FiniteRoutes(torch.tensor([0.5, 0.5]), laws)
        >>> simulation_based_calibration(lambda n, g: model.draw(n, 4, g), model.posterior).p_value > 0.05
        True
    """
    if isinstance(simulate, RoutedModel):
        raise ValueError(
            "RoutedModel takes the support as given and generates none: under it a support says nothing of its "
            "routing, so that a calibrated guide would be the prior. Pass simulate=(N, generator) -> (truths, data) "
            "of your own, or use route_calibration on episodes whose routes are known"
        )
    generator = torch.Generator().manual_seed(seed)
    truth, data = simulate(num_simulations, generator)
    found = posterior(data)
    common: dict[str, Any] = {
        "population": f"{num_simulations} simulations of the model",
        "reference": "model",
        "seed": seed,
        "power_repeats": power_repeats,
    }
    if isinstance(found, Tensor | CatalogPosterior):
        if isinstance(found, Tensor):
            probabilities, coefficients, names = found, torch.eye(found.shape[-1], dtype=found.dtype), ()
        else:
            probabilities, coefficients, names = found.logits.softmax(-1), found.coefficients, ()
        likelihood = None if log_likelihood is None else log_likelihood(data, coefficients.unsqueeze(1)).mT
        q = _array(probabilities)
        quantities = catalog_quantities(
            q,
            names=names,
            log_likelihood=None if likelihood is None else _array(likelihood),
            coefficients=_array(coefficients.flatten(1)),
            references=None if references is None else _array(references(data).flatten(1)),
        )
        return catalog_calibration(q, truth.cpu().numpy(), quantities, **common)
    return draws_calibration(
        *_simplex_quantities(found, truth, data, num_samples, generator, log_likelihood, references), **common
    )


def _simplex_quantities(
    posterior: RoutingPosterior,
    truth: Tensor,
    data: Any,
    num_samples: int,
    generator: torch.Generator,
    log_likelihood: Callable[[Any, Tensor], Tensor] | None,
    references: Callable[[Any], Tensor] | None,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Quantities of draws ``(K, N)`` and of the truths ``(N,)``: weights, log q, log p(S | c), distance."""
    both = torch.cat([truth.unsqueeze(0), posterior.sample(num_samples, generator)])  # (1 + K, N, [L,] C)
    values = {LOG_Q: posterior.log_prob(both)}
    flat = both.flatten(2)
    values |= {f"weight {c}": flat[..., c] for c in range(flat.shape[-1])}
    if log_likelihood is not None:
        values[LOG_LIKELIHOOD] = log_likelihood(data, both)
    if references is not None:
        values[DISTANCE] = (flat - references(data).flatten(1)).norm(dim=-1)
    arrays = {name: _array(value) for name, value in values.items()}
    constant = [name for name, array in arrays.items() if np.ptp(array) == 0]  # the weight of a lone source
    kept = {name: array for name, array in arrays.items() if name not in constant}
    return {name: array[1:] for name, array in kept.items()}, {name: array[0] for name, array in kept.items()}


def _array(values: Tensor) -> FloatArray:
    return values.detach().cpu().double().numpy()
