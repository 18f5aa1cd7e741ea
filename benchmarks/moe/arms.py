"""The arms: a network as it is, fine-tuned routers, variational ones, and what they must be compared with.

An arm is fitted on the training questions (or not at all) and offers ways to predict: a way is a list of routing
functions whose probabilities are averaged.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from batches import Questions
from pretrain import answers, autocast, mean_nll, schedule
from pyro.infer import TraceMeanField_ELBO

from pyro_smat.guides.moe_routing import TokenRoutingGuide
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models.variational_routing import Classification, VariationalRouting
from pyro_smat.moe import (
    GaussianPrior,
    LogTemperaturePrior,
    PaperTemperaturePrior,
    expected_routing,
    mean_routing,
    sampled_routing,
)
from pyro_smat.moe.baselines import FixedTemperature, PriorRouting, dropout_routing, fit_router_laplace
from pyro_smat.moe.surgery import Attachment, RoutingFunction

Way = Callable[[int], list[RoutingFunction | None]]  # number of the batch -> routing functions


@dataclass(frozen=True)
class Settings:
    """What all arms share."""

    seed: int
    epochs: int
    batch: int
    rate: float
    trunk: int
    trajectories: int
    samples: int
    members: int


@dataclass(frozen=True)
class Arm:
    """A fitted arm.

    Attributes:
        ways: name -> way.
        posterior: of which signals are read; None where there is none.
        stability: seed -> routing function whose choices are compared.
        guide: of which cost is measured.
        notes: figures of the fit.
    """

    ways: Mapping[str, Way]
    posterior: Any = None
    stability: Callable[[int], RoutingFunction | None] = lambda seed: None
    guide: TokenRoutingGuide | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


Fit = Callable[[Attachment, Questions, Questions, Settings], Arm]


def fit_guide(
    attachment: Attachment, train: Questions, validation: Questions, settings: Settings, *,
    family: str, beta: float, reduction: str = "token_mean", rho: float | None = None, prior: Any = None,
    selection: str = "top_k", member: int = 0,
) -> tuple[TokenRoutingGuide, dict[str, Any]]:  # fmt: skip
    """Train the heads and keep those of the best epoch by validation NLL of the mean routing."""
    torch.manual_seed(1000 * settings.seed + member)
    device = train.labels.device
    options: dict[str, Any] = {"beta": beta, "kl_reduction": reduction, "selection": selection}
    model = VariationalRouting(attachment, Classification(), prior, **options)
    guide = TokenRoutingGuide(model, family, trunk=settings.trunk).to(device)
    elbo = TraceMeanField_ELBO() if rho is None else CVaR_ELBO(rho=rho)
    if family == "point":
        elbo = CVaR_ELBO(rho=1.0, kl="sampled")  # a point has no KL to a Gaussian, but a density under it
    optimiser = torch.optim.AdamW(guide.parameters(), lr=settings.rate, weight_decay=0.0)
    scheduler = schedule(optimiser, settings.epochs * max(1, len(train) // settings.batch))
    generator = torch.Generator().manual_seed(settings.seed + 7 * member)
    best, kept, history = float("inf"), copy.deepcopy(guide.state_dict()), []
    for _ in range(settings.epochs):
        for data in train.batches(settings.batch, generator):
            with autocast(device):
                loss = elbo.differentiable_loss(model, guide, data) / len(data["labels"])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(guide.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
        value = mean_nll(attachment, mean_routing(guide), validation, settings.batch)
        history.append(value)
        if value < best:
            best, kept = value, copy.deepcopy(guide.state_dict())
    guide.load_state_dict(kept)
    return guide.requires_grad_(False), {"objective": model.objective, "validation_nll": history}


def gaussian_ways(posterior: Any, settings: Settings, selection: str = "top_k") -> dict[str, Way]:
    """Mean, expected and trajectories."""

    def trajectories(batch: int) -> list[RoutingFunction | None]:
        seeds = (1000 * batch + s for s in range(settings.trajectories))
        return [sampled_routing(posterior, seed, selection=selection) for seed in seeds]

    return {
        "mean": lambda batch: [mean_routing(posterior)],
        "expected": lambda batch: [expected_routing(posterior, settings.samples)],
        "trajectories": trajectories,
    }


def variational(family: str, beta: float, **options: Any) -> Fit:
    """A guide of a family; log-normal temperatures draw their experts."""

    def fit(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
        guide, notes = fit_guide(attachment, train, validation, settings, family=family, beta=beta, **options)
        ways = gaussian_ways(guide, settings, options.get("selection", "top_k"))
        return Arm(ways, guide, lambda seed: expected_routing(guide, settings.samples), guide, notes)

    return fit


def deterministic(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    return Arm({"mean": lambda batch: [None]})


def fine_tuned(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    """The equal budget: the same heads, steps and data, no randomness."""
    guide, notes = fit_guide(attachment, train, validation, settings, family="point", beta=0.01)
    return Arm({"mean": lambda batch: [mean_routing(guide)]}, None, lambda seed: mean_routing(guide), guide, notes)


def ensemble(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    """Several fine-tuned routers over the same experts."""
    fitted = [
        fit_guide(attachment, train, validation, settings, family="point", beta=0.01, member=m)
        for m in range(1, 1 + settings.members)
    ]
    functions: list[RoutingFunction | None] = [mean_routing(guide) for guide, _ in fitted]
    return Arm({"trajectories": lambda batch: functions}, None, lambda seed: functions[seed % len(functions)])


def dropout(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    def way(batch: int) -> list[RoutingFunction | None]:
        return [dropout_routing(0.05, 1000 * batch + s) for s in range(settings.trajectories)]

    return Arm({"trajectories": way}, None, lambda seed: dropout_routing(0.05, seed))


def fixed_temperature(temperature: float) -> Fit:
    def fit(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
        posterior = FixedTemperature(temperature)
        ways = gaussian_ways(posterior, settings, "sample")
        return Arm(
            {"trajectories": ways["trajectories"]},
            None,
            lambda seed: sampled_routing(posterior, seed, selection="sample"),
        )

    return fit


def untrained_prior(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    posterior = PriorRouting(GaussianPrior())
    ways = gaussian_ways(posterior, settings)
    del ways["mean"]  # the deterministic router
    return Arm(ways, posterior, lambda seed: expected_routing(posterior, settings.samples))


def laplace(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    """The prior's precision is chosen by validation NLL of a few members."""
    subset = [data for data, _ in zip(train.batches(settings.batch), range(40), strict=False)]

    def log_likelihood(data: dict[str, torch.Tensor]) -> torch.Tensor:
        return answers(attachment.model, data).log_softmax(-1).gather(1, data["labels"].unsqueeze(1)).squeeze(1)

    choices = {}
    for precision in (1.0, 10.0, 100.0, 1000.0):
        fitted = fit_router_laplace(attachment, subset, log_likelihood, prior_precision=precision)
        choices[precision] = (mean_nll(attachment, fitted.member(0), validation, settings.batch), fitted)
    precision, (_, chosen) = min(choices.items(), key=lambda item: item[1][0])
    members: list[RoutingFunction | None] = [chosen.member(s) for s in range(settings.trajectories)]
    notes = {"prior_precision": precision, "validation_nll": {str(p): nll for p, (nll, _) in choices.items()}}
    return Arm({"trajectories": lambda batch: members}, chosen, lambda seed: chosen.member(seed), None, notes)


def paper_temperature(attachment: Attachment, train: Questions, validation: Questions, settings: Settings) -> Arm:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        prior = PaperTemperaturePrior()
    fit = variational("point_temperature", 0.05, prior=prior, selection="sample")
    return fit(attachment, train, validation, settings)


ARMS: dict[str, Fit] = {
    "deterministic": deterministic,
    "fine-tuned": fine_tuned,
    "prior": untrained_prior,
    "dropout": dropout,
    "fixed T=.3": fixed_temperature(0.3),
    "fixed T=1": fixed_temperature(1.0),
    "laplace": laplace,
    "mean-field .01": variational("mean_field", 0.01),
    "mean-field .1": variational("mean_field", 0.1),
    "mean-field 1": variational("mean_field", 1.0),
    "full .01": variational("full", 0.01),
    "full .1": variational("full", 0.1),
    "full 1": variational("full", 1.0),
    "full ELBO": variational("full", 1.0, reduction="sum"),
    "full .1 tail .3": variational("full", 0.1, rho=0.3),
    "temperature .1": variational("temperature", 0.1, prior=LogTemperaturePrior(), selection="sample"),
    "temperature -log T": paper_temperature,
    "ensemble": ensemble,
}
