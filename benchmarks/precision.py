"""How far bfloat16 and float16 are from float32: posteriors, predictions, losses, gradients and a short training.

    python benchmarks/precision.py --output precision.csv         # every family, on the CPU
    python benchmarks/precision.py --device cuda --output gpu.csv

Small networks of every kind with random weights, four sources and two experts, on episodes of noisy patterns. One thing
changes at a time: the network under a point guide; the guide and its prior over a conv4. All precisions start from
the same numbers and draw the same ones. Columns are differences to float32:

- features: relative, of what the sources make of the supports;
- posterior: of the mean weights, the largest;
- probability: of the class probabilities of the queries, under posterior means, the largest;
- loss: relative, of the training loss of one batch;
- gradient: relative, of the gradient of guide, gates, delta and scale together;
- trained: of the mean episode loss over the second half of a short training, in nats.

ResNet-18 has fewer episodes and steps, and a smaller rate of the delta: a step of AdamW moves each of its 11 million
weights by the rate, and at the default of 1e-3 a change of the sources by a millionth moves the losses of float32.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor, nn

from pyro_smat import EpisodeSampler, SourceLibrary
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import Router, build_router, choose_device
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.training.trainer import INITIAL_SCALE, MetaTrainer
from pyro_smat.networks import build_network

NETWORKS: dict[str, dict[str, Any]] = {
    "conv4": {"in_channels": 3, "channels": 8, "image_size": 16},
    "vit": {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32},
    "mobilenet_v2": {"width_mult": 0.1},
    "resnet18": {},
}
CATALOG_PRIORS = ("uniform", "cost_aware", "catalog", "hierarchical", "mixture")
SIMPLEX_PRIORS = ("uniform", "cost_aware", "logistic_normal", "dirichlet", "concrete", "simplex_cost", "mixture")
GUIDES = {
    "catalog": CATALOG_PRIORS,
    "hierarchical": CATALOG_PRIORS,
    "logistic_normal": SIMPLEX_PRIORS,
    "concrete": SIMPLEX_PRIORS,
    "dirichlet": SIMPLEX_PRIORS,
    "point": SIMPLEX_PRIORS,
    "pseudo_bma": ("uniform",),
}
COMPONENTS = {
    CATALOG_PRIORS: "[{kind='uniform'}, {kind='cost_aware', beta=3.0}]",
    SIMPLEX_PRIORS: "[{kind='dirichlet', concentration=2.0}, {kind='simplex_cost', beta=3.0}]",
}
SETTINGS = (
    "data.channels=3",
    "data.size=16",
    "experts.count=2",
    "experts.sparsity=0.5",
    "guide.encoder={kind='evidence', hidden=16}",
    "objective.rho=1.0",  # below it, two episodes of nearly the same loss may change places at the edge of the tail
    "training.learning_rate=0.01",
    "training.validate_every=0",
    "training.warmup=1",
)
LARGE = {"resnet18": ("training.delta_learning_rate=3e-5",)}  # networks, and settings of their own
HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """What is compared: a network under a guide with its prior."""

    network: str
    guide: str
    prior: str = "uniform"


@dataclass(frozen=True)
class Difference:
    """To float32; the columns of the module's first lines."""

    features: float
    posterior: float
    probability: float
    loss: float
    gradient: float
    trained: float


def cases() -> Iterator[Case]:
    """Every network, and every guide with every prior that goes with it."""
    for network in NETWORKS:
        yield Case(network, "point")
    for guide, priors in GUIDES.items():
        for prior in priors:
            if (guide, prior) != ("point", "uniform"):
                yield Case("conv4", guide, prior)


def compare(case: Case, half: str, device: torch.device, *, episodes: int = 10, steps: int = 10) -> Difference:
    """One case in float32 and in a precision of 16 bits."""
    exact, rounded = (_outcome(case, precision, device, episodes, steps) for precision in ("float32", half))
    return Difference(
        features=_relative(rounded["features"], exact["features"]),
        posterior=_largest(rounded["posterior"], exact["posterior"]),
        probability=_largest(rounded["probability"], exact["probability"]),
        loss=_relative(rounded["loss"], exact["loss"]),
        gradient=_relative(rounded["gradient"], exact["gradient"]),
        trained=_largest(rounded["trained"], exact["trained"]),
    )


@lru_cache(maxsize=1 + len(HALVES))
def _outcome(case: Case, precision: str, device: torch.device, episodes: int, steps: int) -> dict[str, Tensor]:
    """Float32 is what both others are compared with."""
    return _Run(case, precision, device, episodes, steps).outcome()


class _Run:
    """A router of one precision, always from the same numbers."""

    def __init__(self, case: Case, precision: str, device: torch.device, episodes: int, steps: int) -> None:
        prior = case.prior
        if prior == "mixture":
            prior = f"{{kind='mixture', components={COMPONENTS[GUIDES[case.guide]]}}}"
        config = [*SETTINGS, f"guide.kind={case.guide}", f"prior={prior}", f"training.precision={precision}"]
        if case.guide == "pseudo_bma":
            config.remove("guide.encoder={kind='evidence', hidden=16}")
            config += ["experts.count=0", "guide.catalog={kind='k_hot', max_sources=1}"]
        config += LARGE.get(case.network, ())
        self.config = load_config(None, [*config, f"training.steps={steps}", f"training.episodes={episodes}"])
        self.router = build_router(self.config, device, opened=made_sources(case.network))
        _disturb(self.router)
        self.episodes = episodes

    def outcome(self) -> dict[str, Tensor]:
        """What is compared, on the CPU."""
        router, model, guide = self.router, self.router.model, self.router.guide
        features = router.features(made_pool())
        sampler = EpisodeSampler(features.pool, 4, 3, 4, seed=1)
        batch = features.attach(sampler.sample(self.episodes).to(router.device))
        elbo = build_elbo(self.config.objective, features, model=model, catalog=router.catalog)
        model.eval(), guide.eval()
        with torch.no_grad():
            posterior = guide.posterior(batch).mean
            probability = model.logits(posterior, batch).softmax(-1)
        model.train(), guide.train()
        torch.manual_seed(2)
        loss = elbo.differentiable_loss(model, guide, batch)
        trained = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
        scale = (INITIAL_SCALE if model.compute_dtype == torch.float16 else 1.0) / self.episodes  # as the trainer does
        found = torch.autograd.grad(loss * scale, trained, allow_unused=True)
        outcome = {
            "features": batch.support.features,
            "posterior": posterior,
            "probability": probability,
            "loss": loss,
            "gradient": torch.cat([g.flatten() / scale for g in found if g is not None]),
        }
        torch.manual_seed(3)
        trainer = MetaTrainer(
            model, guide, elbo=elbo, sampler=sampler, features=features, settings=self.config.training,
            device=router.device,
        )  # fmt: skip
        losses = trainer.fit(progress=False)["episode_loss"]
        outcome["trained"] = torch.tensor(losses[len(losses) // 2 :].mean())
        return {name: value.detach().cpu().double() for name, value in outcome.items()}


@lru_cache(maxsize=1)
def made_sources(name: str) -> tuple[nn.Module, SourceLibrary]:
    """A small network with random weights, and four disturbed copies of it."""
    generator = torch.Generator().manual_seed(0)
    network = build_network(name, generator=generator, **NETWORKS[name])
    first, images = network.state_dict(), made_pool().images / 255
    sources = {}
    for source in ("pre", "one", "two", "three"):
        state = {
            key: value + 0.3 * value.std() * torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
            for key, value in first.items()
        }
        network.load_state_dict(state)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0  # statistics of these images: without them features shrink from layer to layer
        with torch.no_grad():
            network.train()(images)
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_var.clamp_(min=0.1)  # channels that are the same everywhere would be blown up
        sources[source] = {key: value.clone() for key, value in network.eval().state_dict().items()}
    return network, SourceLibrary.from_state_dicts(network, sources)


@lru_cache(maxsize=1)
def made_pool() -> ImagePool:
    """240 images of 3 x 16 x 16 pixels in 12 classes: patterns with noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(12, 3, 16, 16, generator=generator)
    labels = torch.arange(12).repeat_interleave(20)
    noisy = patterns[labels] + 0.6 * torch.randn(240, 3, 16, 16, generator=generator)
    return ImagePool(
        images=(255 * noisy.clamp(0, 1)).to(torch.uint8),
        labels=labels.unsqueeze(1),
        attributes=("class",),
        class_names=(tuple(map(str, range(12))),),
        domain=torch.zeros(240, dtype=torch.long),
    )


@torch.no_grad()
def _disturb(router: Router) -> None:
    """Routers start where nothing is decided yet; this one has opinions, and experts that do something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in router.guide.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(0.1 * noise.to(parameter.device))
    experts = router.model.experts
    if experts is not None:
        noise = torch.randn(experts.delta.shape, generator=generator)
        experts.delta.add_(0.1 * router.library.basis[0].abs().median() * noise.to(experts.delta.device))


def _relative(found: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    return ((found - expected).norm() / expected.norm()).item()


def _largest(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="CSV of the table.")] = None,
    only: Annotated[str, typer.Option(help="Only the cases of a network or guide of this name.")] = "",
) -> None:
    """Compare every family and print the table."""
    where, started = choose_device(device), time.perf_counter()
    rows = []
    for case in cases():
        if only and only not in (case.network, case.guide):
            continue
        sizes = {"episodes": 2, "steps": 2} if case.network in LARGE else {}
        for half in HALVES:
            rows.append({**asdict(case), "precision": half, **asdict(compare(case, half, where, **sizes))})
            if output is not None:
                pd.DataFrame(rows).to_csv(output, index=False, float_format="%.2g")
            typer.echo(" ".join(f"{v:.2g}" if isinstance(v, float) else v for v in rows[-1].values()))
    largest = pd.DataFrame(rows).groupby(["network", "precision"], sort=False).max(numeric_only=True)
    typer.echo(f"\nlargest of\n{largest.to_string(float_format='%.2g')}\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
