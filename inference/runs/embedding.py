"""What a run embeds before it trains: whole pools, or of a large one the images that training will draw.

Sources are frozen, so what is embedded depends on the seed alone, not on how far the run has come: one that is resumed
embeds the same images in the same batches and goes on with the same bits.
"""

from __future__ import annotations

import torch

from pyro_smat.distributed import World
from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.networks.features import SourceFeatures


def features_of_run(
    config: RunConfig,
    router: Router,
    pool: ImagePool,
    held_out: ImagePool,
    *,
    sampler: EpisodeSampler,
    progress: bool = False,
) -> dict[str, SourceFeatures]:
    """Features of the pools "train" and "validation".

    They are known under every routing of the catalog where nothing in the networks is trained and training draws at
    least as many images as the pool has. Of a
    pool of many more images than training draws these alone are embedded.

    Args:
        config: the run.
        router: its networks.
        pool, held_out: of training and of validation.
        sampler: of the training episodes, at the start of its stream; it is advanced.
        progress: show progress bars.
    """
    drawn = config.training.steps * config.training.episodes * config.episodes.most_images
    of_catalog = router.model.experts is None and drawn >= len(pool)
    train = router.features(pool, of_catalog=of_catalog, drawn=drawn, progress=progress)
    if train.singly:
        train.embed_rows(rows_of_training(sampler, config.training))
    return {"train": train, "validation": router.features(held_out, of_catalog=of_catalog, progress=progress)}


def rows_of_training(sampler: EpisodeSampler, settings: TrainingSettings) -> torch.Tensor:
    """The rows ``(n,)`` of the pool, each once, of all supports and queries that this process will train on.

    Args:
        sampler: of the training episodes, at the start of its stream; it is advanced.
        settings: how long training is.

    Example:
        >>> from pyro_smat import glyph_pool
        >>> rows = rows_of_training(EpisodeSampler(glyph_pool("validation"), 2, 1, 1), TrainingSettings(steps=1))
        >>> len(rows) <= 64  # 16 episodes of 4 images
        True
    """
    world, size = World.current(), settings.episodes
    numbered = settings.numbered or world.size > 1
    drawn = torch.zeros(len(sampler.pool), dtype=torch.bool)
    for step in range(settings.steps):
        share = [step * size + i for i in world.share(size)]
        if not share:
            break  # fewer episodes than processes: the trainer refuses
        batch = sampler.at(share) if numbered else sampler.sample(size)
        for part in (batch.support, batch.query):
            drawn[part.rows[part.rows >= 0].cpu()] = True
    return drawn.nonzero().flatten()
