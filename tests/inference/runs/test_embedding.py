"""Of a large pool a run embeds what training will draw, in batches, before it starts."""

from __future__ import annotations

import pytest
from tiny_run import tiny_pool, tiny_router
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly import RunConfig
from pyro_smat.inference.assembly.router import FEW
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.runs.embedding import features_of_run, rows_of_training
from pyro_smat.inference.training.trainer import MetaTrainer

EPISODES = {"way": 2, "shot": 1, "query": 1}


def run(steps: int, numbered: bool = False) -> RunConfig:
    training = {"steps": steps, "episodes": 2, "numbered": numbered}
    return RunConfig.model_validate({"data": {"size": 8}, "episodes": EPISODES, "training": training, "guide": "point"})


class Watched(EpisodeSampler):
    """Notes every row that is drawn."""

    def __init__(self, pool: ImagePool) -> None:
        super().__init__(pool, 2, 1, 1, seed=3)
        self.rows: set[int] = set()

    def sample(self, count: int) -> EpisodeBatch:
        return self._noted(super().sample(count))

    def at(self, number):  # type: ignore[no-untyped-def, override]
        return self._noted(super().at(number))

    def _noted(self, batch: EpisodeBatch) -> EpisodeBatch:
        self.rows |= {*batch.support.rows.flatten().tolist(), *batch.query.rows.flatten().tolist()}
        return batch


@pytest.mark.parametrize("numbered", [False, True])
def test_training_asks_for_no_other_image_of_a_large_pool(numbered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And runs the sources no more: their features of support and queries are there, in both ways of drawing."""
    config, pool = run(3, numbered), tiny_pool()
    router, sampler = tiny_router(config), Watched(pool)
    features = features_of_run(config, router, pool, pool, sampler=EpisodeSampler(pool, 2, 1, 1, seed=3))["train"]
    assert features.singly

    def no_source(*arguments: object) -> Tensor:
        raise AssertionError("a source was run")

    monkeypatch.setattr(features, "_under", no_source)
    elbo = CVaR_ELBO(rho=1.0)
    trainer = MetaTrainer(
        router.model, router.guide, elbo=elbo, sampler=sampler, features=features, settings=config.training
    )
    trainer.fit(progress=False)
    assert sampler.rows == set(rows_of_training(EpisodeSampler(pool, 2, 1, 1, seed=3), config.training).tolist())
    assert 0 < len(sampler.rows) <= 24


def test_a_pool_that_is_not_large_is_embedded_whole() -> None:
    pool = tiny_pool()
    steps = -(-len(pool) // (FEW * 2 * 4))  # 8 images a step: a quarter of the pool
    config = run(steps)
    found = features_of_run(config, tiny_router(config), pool, pool, sampler=EpisodeSampler(pool, 2, 1, 1))
    assert not found["train"].singly


def test_no_step_draws_nothing() -> None:
    pool = tiny_pool()
    assert rows_of_training(EpisodeSampler(pool, 2, 1, 1), run(0).training).tolist() == []
    assert features_of_run(run(0), tiny_router(run(0)), pool, pool, sampler=EpisodeSampler(pool, 2, 1, 1))[
        "train"
    ].singly
