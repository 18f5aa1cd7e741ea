"""A router as a baseline of another one: by its decision rule, as it is deployed, but without abstention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.decision.prediction import predict
from pyro_smat.inference.evaluation.baselines.baseline import Baseline

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.classifier import RoutedClassifier


class RouterBaseline(Baseline):
    """Another router over the same sources.

    Args:
        classifier: the router.
        name: its row in tables.
    """

    def __init__(self, classifier: RoutedClassifier, name: str) -> None:
        router = classifier.router
        self.name, self._router = name, router
        self._rule = classifier.deployment.decider(router.model, router.catalog)
        self._generator = torch.Generator(device=router.device).manual_seed(router.config.seed)
        self._basis = router.model.basis().detach()

    @torch.no_grad()
    def __call__(self, batch: EpisodeBatch) -> Tensor:
        model, posterior = self._router.model, self._router.guide.posterior(batch)
        return predict(model, posterior, batch, self._rule, generator=self._generator, basis=self._basis)
