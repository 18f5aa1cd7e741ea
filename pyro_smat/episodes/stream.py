"""EpisodeStream: whatever batches of episodes can be drawn from, an EpisodeSampler or a class of one's own."""

from __future__ import annotations

from typing import Protocol

from pyro_smat.episodes.batch import EpisodeBatch


class EpisodeStream(Protocol):
    """Anything with the ``sample`` of an :class:`~pyro_smat.episodes.EpisodeSampler`."""

    def sample(self, count: int) -> EpisodeBatch: ...
