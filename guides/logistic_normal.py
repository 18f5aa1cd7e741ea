"""LogisticNormalGuide: amortised Gaussian logits over sources and experts."""

from __future__ import annotations

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import LogisticNormalPosterior
from pyro_smat.guides.router import RouterNetwork, RoutingGuide


class LogisticNormalGuide(RoutingGuide):
    r"""q(w, alpha | S): independent Gaussian logits, softmax over sources and over experts.

    .. math:: u \sim N(\mu(S), \mathrm{diag}\,\sigma(S)^2), \quad w = \mathrm{softmax}(u_{1:R}),
              \quad \alpha = \mathrm{softmax}(u_{R+1:R+M})

    The sample sites are the contrasts of u (Bayes-routed SMAT, section 4, without the common shift). Pairs with
    :class:`~pyro_smat.models.priors.LogisticNormalPrior`; the KL is exact.

    Args:
        sources: R.
        experts: M.
        hidden: width of the router network.
    """

    def __init__(self, sources: int, experts: int = 0, hidden: int = 64) -> None:
        super().__init__()
        self.router = RouterNetwork(sources, experts, hidden)

    def posterior(self, batch: EpisodeBatch) -> LogisticNormalPosterior:
        location, scale = self.router(batch)
        return LogisticNormalPosterior(location, scale, self.router.sources)
