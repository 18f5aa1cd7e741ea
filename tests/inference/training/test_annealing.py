"""KL annealing: the factors, and that training weighs the KL, cools the guide and ramps the experts with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import build_trainer

from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.terms import ELBOTerms
from pyro_smat.inference.training.annealing import KLSchedule
from pyro_smat.inference.training.trainer import MetaTrainer


def test_constant_warmup_and_cycles() -> None:
    assert [KLSchedule().factor(s, 5) for s in range(5)] == [1.0] * 5
    assert [KLSchedule(warmup=4).factor(s, 8) for s in range(8)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [KLSchedule(warmup=2, cycles=3).factor(s, 9) for s in range(9)] == [0.0, 0.5, 1.0] * 3
    assert [KLSchedule(warmup=1, cycles=4).factor(s, 9) for s in range(9)] == [0, 1, 1, 0, 1, 0, 1, 0, 1]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 6))
def test_every_cycle_starts_at_zero_and_is_as_long_as_the_others(steps: int, cycles: int, warmup: int) -> None:
    factors = [KLSchedule(warmup, cycles).factor(s, steps) for s in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    if warmup == 0:
        assert set(factors) == {1.0}
        return
    starts = [s for s in range(steps) if factors[s] == 0]
    assert len(starts) == min(cycles, steps)
    lengths = [b - a for a, b in zip(starts, [*starts[1:], steps], strict=True)]
    assert starts[0] == 0
    assert max(lengths) - min(lengths) <= 1
    for start, length in zip(starts, lengths, strict=True):
        grown = [min(1.0, k / warmup) for k in range(length)]
        assert factors[start : start + length] == pytest.approx(grown)


@pytest.mark.parametrize(("warmup", "cycles"), [(-1, 1), (3, 0)])
def test_bad_schedules_are_refused(warmup: int, cycles: int) -> None:
    with pytest.raises(ValueError, match=rf"warmup is {warmup} and cycles {cycles}; expected >= 0 and >= 1"):
        KLSchedule(warmup, cycles)


class Watched:
    """What the objective saw at every step of a trainer."""

    def __init__(self, trainer: MetaTrainer) -> None:
        self.rows: list[dict[str, Any]] = []
        self.terms: list[ELBOTerms] = []
        terms = trainer.elbo.terms
        anneal = trainer.guide.anneal
        self.progress: list[float] = []

        def watching(*args: Any, kl_factor: float) -> ELBOTerms:
            found = terms(*args, kl_factor=kl_factor)
            experts = trainer.model.experts
            assert experts is not None
            self.terms.append(found)
            self.rows.append({"factor": kl_factor, "experts": experts.progress.item()})
            return found

        def cooling(progress: float) -> None:
            self.progress.append(progress)
            anneal(progress)

        trainer.elbo.terms = watching  # type: ignore[method-assign]
        trainer.guide.anneal = cooling  # type: ignore[method-assign]
        trainer.fit(progress=False)

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


def test_training_weighs_the_kl_by_the_schedule() -> None:
    trainer = build_trainer(None, overrides=["objective.kl_weight=0.4"], kl_warmup=2, kl_cycles=2, validate_every=0)
    watched = Watched(trainer)
    factors = [0.0, 0.5, 1.0, 1.0, 1.0] * 2
    assert watched.column("factor") == pytest.approx(factors)
    for factor, terms in zip(factors, watched.terms, strict=True):
        torch.testing.assert_close(terms.loss / 10, terms.tail_loss + 0.4 * factor * terms.kl)
    assert trainer.elbo.kl_weight == 0.4  # the objective is as it was


@pytest.mark.filterwarnings("ignore:rho x B")
def test_a_split_kl_is_weighed_in_both_parts() -> None:
    overrides = ["objective.kl_weight=0.4", "objective.entropy_weight=0.2"]
    trainer = build_trainer(None, overrides=overrides, steps=4, kl_warmup=4, validate_every=0)
    batch = trainer.validation[0]
    for factor in (0.0, 0.3, 1.0):
        weighed = CVaR_ELBO(rho=0.5, kl_weight=0.4 * factor, entropy_weight=0.2 * factor, num_particles=2)
        whole = CVaR_ELBO(rho=0.5, kl_weight=0.4, entropy_weight=0.2, num_particles=2)
        losses = []
        for elbo, options in ((weighed, {}), (whole, {"kl_factor": factor})):
            pyro.set_rng_seed(0)
            losses.append(elbo.terms(trainer.model, trainer.guide, batch, **options).loss)
        torch.testing.assert_close(losses[1], losses[0])
    assert Watched(trainer).column("factor") == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_guide_and_experts_hear_how_far_training_is() -> None:
    overrides = ["guide.kind=concrete", "guide.temperature=2.0", "guide.final_temperature=0.5"]
    trainer = build_trainer(None, overrides=overrides, steps=5, validate_every=0)
    watched = Watched(trainer)
    assert watched.progress == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert watched.column("experts") == pytest.approx(watched.progress)
    state: Mapping[str, torch.Tensor] = trainer.guide.state_dict()
    assert state["temperature"].item() == pytest.approx(0.5)


def test_one_step_of_training_is_a_run() -> None:
    """No division by steps - 1, and the KL weight of a single step is the schedule's first."""
    watched = Watched(build_trainer(None, steps=1, kl_warmup=1, validate_every=0))
    assert watched.rows == [{"factor": 0.0, "experts": 0.0}]
