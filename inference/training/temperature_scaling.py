r"""Temperature scaling of a routing posterior: one scalar T, fitted on held-out episodes after training.

A trained guide may be over- or under-confident about the routing. Dividing its logits l by T > 0 keeps their order;
T is the minimiser of the loss of the ensemble that is deployed (Guo et al. 2017, for routings instead of classes),

.. math::
    L(T) = -\frac1N \sum_i \frac{1}{n_i} \sum_q \log \sum_j \mathrm{softmax}(l_i / T)_j \, p(y_{iq} \mid A_j).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.float64 import in_float64
from pyro_smat.guides import CatalogGuide, PseudoBMAGuide
from pyro_smat.inference.objective.candidates import as_deployed, candidate_log_likelihoods
from pyro_smat.models.routed import RoutedModel

LOG_TEMPERATURE_LIMIT = 4.0
GRID = 33  # L(T) may have several minima: start from the best of a grid, which holds T = 1


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature.

    Attributes:
        temperature: T in [exp(-4), exp(4)]; above 1 the posterior was over-confident.
        loss_before, loss_after: the ensemble's loss at T = 1 and at T, in nats per query; never larger after.
    """

    temperature: float
    loss_before: float
    loss_after: float


def ensemble_loss(logits: Tensor, log_likelihoods: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """L(T) of the module's first lines: mean over episodes of the mean NLL of their queries, a scalar in nats.

    Args:
        logits: ``(N, J)`` unnormalised log posterior of the routings of N episodes.
        log_likelihoods: ``(N, J, Q)``, log p of the true label of every query under every routing.
        mask: ``(N, Q)`` bool, True where the query is real.
        temperature: T > 0.
    """
    log_posterior = (logits / temperature).log_softmax(-1).unsqueeze(-1)
    log_p = (log_posterior + log_likelihoods).logsumexp(1)  # (N, Q)
    return -(torch.where(mask, log_p, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


@torch.no_grad()
def fit_temperature(logits: Tensor, log_likelihoods: Tensor, mask: Tensor) -> TemperatureFit:
    """The temperature that minimises :func:`ensemble_loss`; arguments as there, from held-out episodes.

    Raises:
        ValueError: for arrays whose shapes do not fit, that hold NaN, or that hold no query.
    """
    shapes = tuple(logits.shape), tuple(log_likelihoods.shape), tuple(mask.shape)
    fits = log_likelihoods.ndim == 3 and shapes[0] == shapes[1][:2] and shapes[2] == shapes[1][::2]
    if not fits or not mask.any(-1).all():
        raise ValueError(
            f"logits, log_likelihoods and mask have shapes {shapes} and the mask shows {int(mask.sum())} queries; "
            "expected (N, J), (N, J, Q) and (N, Q) with at least one query in every episode"
        )
    logits, log_likelihoods = in_float64(logits), in_float64(log_likelihoods)

    def loss(log_temperature: float) -> float:
        return float(ensemble_loss(logits, log_likelihoods, mask, math.exp(log_temperature)))

    before = loss(0.0)
    if not math.isfinite(before):
        raise ValueError(f"the ensemble's loss is {before} before scaling; expected finite logits and likelihoods")
    grid = torch.linspace(-LOG_TEMPERATURE_LIMIT, LOG_TEMPERATURE_LIMIT, GRID, dtype=torch.float64).tolist()
    step = grid[1] - grid[0]
    start = min(grid, key=loss)
    bounds = max(start - step, grid[0]), min(start + step, grid[-1])
    refined = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)
    best = min((0.0, start, refined), key=loss)  # the first of equals: where T does not matter it stays 1
    return TemperatureFit(math.exp(best), before, loss(best))


def calibrate_guide(
    model: RoutedModel, guide: CatalogGuide | PseudoBMAGuide, batches: Sequence[EpisodeBatch]
) -> TemperatureFit:
    """Fit the temperature of a catalog guide and store it into ``guide.temperature_scale``.

    Every routing of the guide's catalog is run on every episode. A temperature that the guide already has is
    replaced, not multiplied: ``loss_before`` is that of the guide without any.

    Args:
        model: runs as deployed; its mode and the guide's are restored.
        guide: over a catalog.
        batches: held-out episodes with support features, not those of training.

    Raises:
        ValueError: for no batches.
    """
    if not batches:
        raise ValueError("got no batches; expected held-out episodes to fit the temperature on")
    logits, log_likelihoods, masks = [], [], []
    with as_deployed(model, guide):
        basis = model.basis()
        width = max(batch.query.mask.shape[1] for batch in batches)
        for batch in batches:
            batch = batch.to(basis.device)
            padding = (0, width - batch.query.mask.shape[1])
            found = candidate_log_likelihoods(model, batch, guide.catalog.coefficients, basis=basis)
            logits.append(guide.posterior(batch).logits * guide.temperature_scale)
            log_likelihoods.append(F.pad(found.transpose(0, 1), padding))
            masks.append(F.pad(batch.query.mask, padding))
    fit = fit_temperature(torch.cat(logits), torch.cat(log_likelihoods), torch.cat(masks))
    guide.temperature_scale.fill_(fit.temperature)
    return fit
