"""PointGuide: point routing, the baseline; a posterior with all its mass on one routing."""

from __future__ import annotations

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import PointPosterior
from pyro_smat.guides.router import RouterNetwork, RoutingGuide


class PointGuide(RoutingGuide):
    """c = h(S): a Dirac delta at softmax(mu(S)). Training it is amortised MAP under the same prior.

    Arguments as in :class:`~pyro_smat.guides.LogisticNormalGuide`.
    """

    def __init__(self, sources: int, experts: int = 0, hidden: int = 64) -> None:
        super().__init__()
        self.router = RouterNetwork(sources, experts, hidden)

    def posterior(self, batch: EpisodeBatch) -> PointPosterior:
        location, _ = self.router(batch)
        return PointPosterior(location, self.router.sources)
