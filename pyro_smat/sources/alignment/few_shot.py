"""A loss for barriers: how well a network's features classify fixed few-shot episodes.

Image pool and module in; a function from state dicts to numbers out, which ``barrier.py`` calls along a segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.networks.heads import prototype_logits
from pyro_smat.sources.alignment.loading import loaded


@dataclass(frozen=True)
class FewShotScore:
    """Query cross-entropy in nats and accuracy in [0, 1] of every episode, ``(E,)`` each."""

    losses: Tensor
    accuracies: Tensor


class FewShotLoss:
    """Query loss of the prototype head on episodes that are drawn once, so that networks compare on equal terms.

    Features are centred on the mean of their domain before cosines are taken: networks that were mixed have a large
    common part, which says nothing about classes.

    Args:
        module: the feature extractor that states belong to; runs as copies.
        pool: images and labels.
        way, shot, query, episodes, seed: of the episodes, each from one domain.
        scale: what cosines are multiplied with.
        batch_size: images run at once.

    Attributes:
        episodes: the batch of episodes.

    Raises:
        ValueError: when the pool cannot supply the episodes.
    """

    def __init__(
        self,
        module: nn.Module,
        pool: ImagePool,
        *,
        way: int = 5,
        shot: int = 5,
        query: int = 5,
        episodes: int = 100,
        seed: int = 0,
        scale: float = 10.0,
        batch_size: int = 64,
    ) -> None:
        self._module, self._pool, self._scale, self._batch_size = module, pool, scale, batch_size
        self.episodes: EpisodeBatch = EpisodeSampler(pool, way, shot, query, seed=seed).sample(episodes)
        drawn = torch.cat([self.episodes.support.rows.flatten(), self.episodes.query.rows.flatten()])
        self._rows = drawn.unique()

    def __call__(self, state: Mapping[str, Tensor]) -> float:
        """Mean loss over the episodes."""
        return self.score(state).losses.mean().item()

    @torch.no_grad()
    def score(self, state: Mapping[str, Tensor]) -> FewShotScore:
        """Losses and accuracies of a network.

        Raises:
            ValueError: when the weights do not fit the module.
        """
        network = loaded(self._module, state)
        parts = [network(self._pool.at(rows)).flatten(1) for rows in self._rows.split(self._batch_size)]
        features = torch.cat(parts)
        domain = self._pool.domain[self._rows]
        for d in domain.unique():
            features[domain == d] -= features[domain == d].mean(0)
        batch = self.episodes
        support, query = (torch.searchsorted(self._rows, i) for i in (batch.support.rows, batch.query.rows))
        way = torch.arange(int(batch.way.max())) < batch.way[:, None]
        logits = prototype_logits(
            features[support], batch.support.labels, batch.support.mask, features[query], way, self._scale
        )
        losses = -logits.log_softmax(-1).gather(-1, batch.query.labels[..., None]).squeeze(-1)
        return FewShotScore(losses.mean(-1), (logits.argmax(-1) == batch.query.labels).float().mean(-1))
