r"""Measures: is routing stable, are predictions calibrated, which signal tells new data, and what does it cost.

Arrays in, numbers out. Scores and calibration of predictions are in ``pyro_smat.metrics``; here is what is particular
to routing, and the floor under a calibration error: what a *perfectly* calibrated predictor with the same confidences
gets at the same number of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_smat.moe.calls import Chosen, RouterCall, RoutingFunction, checked
from pyro_smat.moe.surgery import Attachment


@dataclass
class RoutingRecord:
    """What routers did during a pass.

    Attributes:
        logits: router index -> ``(tokens, E)`` logits used.
        index: router index -> ``(tokens, k)`` experts chosen: the k largest logits, or those that were drawn.
    """

    logits: dict[int, Tensor] = field(default_factory=dict)
    index: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def recording(
    attachment: Attachment, function: RoutingFunction | None, noise: Callable[[RouterCall], Tensor] | None = None
) -> Iterator[RoutingRecord]:
    """Route by ``function`` and record what is used.

    Args:
        attachment: of the network.
        function: as in ``Attachment.routing``.
        noise: added to what each router sees, ``(..., H)``; the experts see the clean state.

    Raises:
        ValueError: in the network, for a router that does not say how many experts it chooses.
    """
    record = RoutingRecord()

    def routed(call: RouterCall) -> Tensor | Chosen:
        if noise is not None:
            hidden = call.hidden + noise(call)
            call = replace(call, hidden=hidden, logits=call.logits_of(hidden))
        result = call.logits if function is None else checked(function(call), call)
        logits = result.logits if isinstance(result, Chosen) else result
        if call.router.top_k is None:
            raise ValueError(f"router {call.router.name!r}: how many experts a token gets is not known")
        index = result.index if isinstance(result, Chosen) else logits.topk(call.router.top_k, -1).indices
        record.logits[call.router.index] = logits.detach().flatten(0, -2)
        record.index[call.router.index] = index.flatten(0, -2)
        return result

    with attachment.routing(routed):
        yield record


def jaccard(first: Tensor, second: Tensor) -> Tensor:
    """|A and B| / |A or B| of sets of experts.

    Args:
        first, second: ``(..., k)`` distinct indices.

    Returns:
        ``(...)`` in [0, 1].
    """
    both = (first.unsqueeze(-1) == second.unsqueeze(-2)).any(-1).sum(-1)
    return both / (first.shape[-1] + second.shape[-1] - both)


@dataclass(frozen=True)
class Stability:
    """Jaccard indices of chosen experts, means over real tokens and layers.

    Attributes:
        self_jaccard: of two runs on the same input; below 1 only where routing is random, and the ceiling of the rest.
        by_noise: gamma -> of a clean and a noisy run.
        by_layer: gamma -> router index -> the same for each layer.
    """

    self_jaccard: float
    by_noise: dict[float, float]
    by_layer: dict[float, dict[int, float]]


@torch.no_grad()
def routing_stability(
    attachment: Attachment,
    functions: Callable[[int], RoutingFunction | None],
    run: Callable[[], Any],
    *,
    embedding_norm: float,
    gammas: Sequence[float] = (0.001, 0.002, 0.005, 0.007, 0.01, 0.02, 0.05),
    mask: Tensor | None = None,
    seed: int = 0,
) -> Stability:
    r"""How much the chosen experts change under noise :math:`N(0, (\gamma \bar L)^2)` on what each router sees.

    Args:
        attachment: of the network.
        functions: seed -> routing function, so that two runs of random routing differ; constant otherwise.
        run: runs the network on the data.
        embedding_norm: :math:`\bar L`, the mean L2 norm of token embeddings (:func:`mean_embedding_norm`).
        gammas: noise levels.
        mask: ``(B, L)``, the real tokens.
        seed: of the noise.
    """
    keep = None if mask is None else mask.bool().flatten()

    def once(function_seed: int, gamma: float) -> RoutingRecord:
        generators: dict[str, torch.Generator] = {}

        def noise(call: RouterCall) -> Tensor:
            device = call.hidden.device
            generator = generators.setdefault("g", torch.Generator(device=device).manual_seed(seed))
            normal = torch.randn(call.hidden.shape, device=device, generator=generator)
            return (gamma * embedding_norm * normal).to(call.hidden.dtype)

        with recording(attachment, functions(function_seed), noise if gamma else None) as record:
            run()
        return record

    def compare(a: RoutingRecord, b: RoutingRecord) -> dict[int, float]:
        values = {i: jaccard(a.index[i], b.index[i]) for i in a.index}
        return {i: float((v if keep is None else v[keep]).double().mean()) for i, v in values.items()}

    def mean(layers: dict[int, float]) -> float:
        return sum(layers.values()) / len(layers)

    clean = once(0, 0.0)
    by_layer = {gamma: compare(clean, once(1, gamma)) for gamma in gammas}
    return Stability(mean(compare(clean, once(1, 0.0))), {g: mean(v) for g, v in by_layer.items()}, by_layer)


def mean_embedding_norm(embedding: nn.Module, input_ids: Tensor, mask: Tensor | None = None) -> float:
    """Mean L2 norm of the embeddings of real tokens ``(B, L)``."""
    with torch.no_grad():
        norms = embedding(input_ids).float().norm(dim=-1)
    return float(norms.mean() if mask is None else norms[mask.bool()].mean())


@dataclass(frozen=True)
class CalibrationFloor:
    """The calibration error of a perfectly calibrated predictor with given confidences, over simulated labels.

    Attributes:
        mean, low, high: of the simulated errors; low and high are the 5% and 95% quantiles.
    """

    mean: float
    low: float
    high: float


def calibration_floor(probabilities: Any, *, bins: int = 15, simulations: int = 200, seed: int = 0) -> CalibrationFloor:
    """Expected calibration error when every stated confidence is true, at this n and with these bins of equal width.

    An error below ``low`` is no better calibration but chance, or too small a test set.

    Args:
        probabilities: ``(n, C)`` predictions.
        bins: of equal width, as in ``expected_calibration_error``.
        simulations: sets of simulated answers.
        seed: of the simulations.
    """
    confidence = np.asarray(torch.as_tensor(probabilities).detach().cpu().double()).max(1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    generator = np.random.default_rng(seed)
    errors = np.empty(simulations)
    for i in range(simulations):
        right = generator.random(len(confidence)) < confidence
        gap = np.bincount(index, right - confidence, bins)
        errors[i] = np.abs(gap).sum() / len(confidence)
    low, high = np.quantile(errors, (0.05, 0.95))
    return CalibrationFloor(float(errors.mean()), float(low), float(high))


def average_precision(scores: Any, positives: Any) -> float:
    """Area under precision and recall (AUPRC) by steps; ties of the score count together.

    Args:
        scores: ``(n,)``, higher for positives.
        positives: ``(n,)`` 0 or 1.

    Raises:
        ValueError: when there is no positive.
    """
    s = np.asarray(torch.as_tensor(scores).detach().cpu().double())
    y = np.asarray(torch.as_tensor(positives).detach().cpu().double())
    if not y.any():
        raise ValueError("no positives; expected at least one")
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    last = np.append(np.nonzero(np.diff(s))[0], len(s) - 1)
    hits = np.cumsum(y)[last]
    precision = hits / (last + 1)
    return float((np.diff(np.append(0, hits)) * precision).sum() / y.sum())
