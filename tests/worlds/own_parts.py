"""Files of a user's own: models and guides that fit, and some that do not."""

from __future__ import annotations

from pathlib import Path

MODEL = '''
from __future__ import annotations

from dataclasses import dataclass

from pyro_smat.models import RoutedModel


@dataclass(frozen=True)
class Options:
    temperature: float = 4.0


class Tempered(RoutedModel):
    """The library's model with a flatter likelihood."""

    def logits(self, coefficients, batch, basis=None):
        return super().logits(coefficients, batch, basis) / Options().temperature


class Named(RoutedModel):
    """Adds an argument; all others go on to the library's."""

    def __init__(self, colour="red", **options):
        super().__init__(**options)
        self.colour = colour


class Silent(RoutedModel):
    def forward(self, batch):
        import pyro

        with pyro.plate("episodes", len(batch), dim=-2):
            return self.prior()


class Restless(RoutedModel):
    def forward(self, batch):
        import pyro, pyro.distributions as dist

        pyro.sample("mood", dist.Normal(0.0, 1.0))
        return super().forward(batch)


class TwoArguments(RoutedModel):
    def forward(self, batch, mood):
        return super().forward(batch)


class Broken(RoutedModel):
    def forward(self, batch):
        return len(3)


class Demanding(RoutedModel):
    def __init__(self, network, library, prior, moon_phase, tide, depth=3):
        super().__init__(network, library, prior)


class Foreign:
    def __init__(self, prior):
        self.prior = prior
'''
GUIDE = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_smat.guides import LogisticNormalGuide, LogisticNormalPosterior, RoutingGuide
from pyro_smat.inference.objective.reference import support_losses


class FromLosses(RoutingGuide):
    """Logits from the leave-one-out losses alone: three numbers to learn."""

    def __init__(self, num_sources, num_experts, trust=3.0):
        super().__init__()
        self.num_sources = num_sources
        self.trust = nn.Parameter(torch.tensor(trust))
        self.of_experts = nn.Parameter(torch.zeros(num_experts))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def posterior(self, batch):
        losses = support_losses(batch)
        location = torch.cat([-self.trust * losses, self.of_experts.expand(len(losses), -1)], dim=-1)
        scale = self.log_scale.exp().expand(location.shape)
        return LogisticNormalPosterior(location, scale, num_sources=self.num_sources)


class Wide(LogisticNormalGuide):
    def __init__(self, num_sources, rank: int = 3, **options):
        super().__init__(num_sources, rank=2 * rank, **options)


class Extra(FromLosses):
    def forward(self, batch):
        pyro.sample("extra", dist.Normal(0.0, 1.0))
        return super().forward(batch)


class Auxiliary(FromLosses):
    def forward(self, batch):
        pyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        return super().forward(batch)


class NoExperts(FromLosses):
    def forward(self, batch):
        with pyro.plate("episodes", len(batch), dim=-2):
            name = "source_ilr"
            return {name: pyro.sample(name, self.posterior(batch).sites()[name])}


class NoPosterior(RoutingGuide):
    def __init__(self):
        super().__init__()


class NoArguments(FromLosses):
    def forward(self):
        pass


a_number = 3
'''


def write_own_parts(folder: Path) -> Path:
    """my_model.py and my_guide.py; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_model.py").write_text(MODEL)
    (folder / "my_guide.py").write_text(GUIDE)
    return folder


def own_overrides(folder: Path, model: str | None = None, guide: str | None = None) -> list[str]:
    """What makes a config name them."""
    overrides = [] if model is None else [f"model.kind={folder / 'my_model.py'}:{model}"]
    return overrides if guide is None else [*overrides, f"guide={{kind='{folder / 'my_guide.py'}:{guide}'}}"]
