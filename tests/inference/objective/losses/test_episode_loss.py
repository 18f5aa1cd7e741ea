"""Episode losses: what counts of an observation, by hand; and how the ELBO scales, masks and averages the points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.losses import ClippedNLL, PredictiveNLL, as_episode_loss
from pyro_smat.inference.objective.reference import SourceReference, source_logits
from pyro_smat.registry import choose, names

LOGITS = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 4]])
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False, False, False]])
NLL = F.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten(), reduction="none").view(4, 3)


def model(mask: Tensor | bool | None = None, scale: float = 1.0) -> Callable[[], None]:
    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1), poutine.scale(scale=scale):
            if mask is None:
                pyro.sample("y", dist.Categorical(logits=LOGITS), obs=LABELS)
            else:
                with poutine.mask(mask=mask):
                    pyro.sample("y", dist.Categorical(logits=LOGITS), obs=LABELS)

    return program


def no_guide() -> None:
    pass


def losses(program: Callable[[], None], episode_loss: str | Callable) -> Tensor:
    return CVaR_ELBO(rho=1.0, episode_loss=episode_loss).terms(program, no_guide).episode_losses


def by_hand(mask: Tensor, values: Tensor, mean: bool) -> Tensor:
    rows = []
    for row, shown in zip(values, mask, strict=True):
        kept = [v for v, m in zip(row.tolist(), shown.tolist(), strict=True) if m]
        rows.append(sum(kept) / (max(len(kept), 1) if mean else 1))
    return torch.tensor(rows, dtype=values.dtype)


PROBS = LOGITS.softmax(-1)
BRIER = 0.5 * (PROBS - F.one_hot(LABELS, 5)).square().sum(-1)
POINTWISE = {
    "nll": (NLL, False),
    "mean_nll": (NLL, True),
    "expected_error": (1 - (-NLL).exp(), True),
    "clipped_nll": (NLL.clamp(max=5.0) / 5.0, True),
    "brier": (BRIER, True),
}


@pytest.mark.parametrize("mask", [None, True, MASK, MASK[0], MASK[:, :1], torch.tensor(True)])
@pytest.mark.parametrize("name", POINTWISE)
def test_losses_by_hand(name: str, mask: Tensor | bool | None) -> None:
    values, mean = POINTWISE[name]
    full = torch.ones(4, 3, dtype=torch.bool) if mask is None or mask is True else torch.as_tensor(mask).expand(4, 3)
    torch.testing.assert_close(losses(model(mask), name), by_hand(full, values, mean))


@pytest.mark.parametrize("name", POINTWISE)
def test_everything_masked_is_zero(name: str) -> None:
    assert losses(model(mask=False), name).abs().max() == 0


@pytest.mark.parametrize("name", POINTWISE)
def test_constant_scale_multiplies_the_loss(name: str) -> None:
    torch.testing.assert_close(losses(model(MASK, scale=3.0), name), 3.0 * losses(model(MASK), name))


@pytest.mark.parametrize("name", POINTWISE)
def test_masked_points_of_zero_probability_cost_nothing(name: str) -> None:
    """A masked point may be impossible: neither the value nor the gradient may become NaN."""
    logits = LOGITS.clone()
    logits[1, 2, 0] = -math.inf  # the label there is 0, and masked
    logits.requires_grad_()

    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1), poutine.mask(mask=MASK):
            pyro.sample("y", dist.Categorical(logits=logits), obs=LABELS)

    terms = CVaR_ELBO(rho=1.0, episode_loss=name).terms(program, no_guide)
    values, mean = POINTWISE[name]
    torch.testing.assert_close(terms.episode_losses, by_hand(MASK, values, mean))


@pytest.mark.parametrize("name", POINTWISE)
def test_without_an_inner_plate_every_episode_is_one_point(name: str) -> None:
    """Nothing to average over inside an episode; in particular not over the episodes."""

    def program() -> None:
        with pyro.plate("episodes", 4, dim=-1):
            pyro.sample("y", dist.Categorical(logits=LOGITS[:, 0]), obs=LABELS[:, 0])

    torch.testing.assert_close(losses(program, name), POINTWISE[name][0][:, 0])


def test_mean_does_not_depend_on_padding(make_router: Callable) -> None:
    """An episode alone and the same one padded next to a larger one."""
    for name in ("mean_nll", "expected_error"):
        router = make_router("catalog")
        router.model.eval()
        elbo = CVaR_ELBO(rho=1.0, episode_loss=name)
        together = elbo.terms(router.model, router.guide, router.batch).episode_losses
        assert not router.batch.query.mask.all()
        for i in range(len(router.batch)):
            queries, shots = router.batch.query.mask[i].sum(), router.batch.support.mask[i].sum()
            one = router.batch[i : i + 1]
            one = replace(one, support=one.support.select(slice(shots)), query=one.query.select(slice(queries)))
            alone = elbo.terms(router.model, router.guide, one).episode_losses
            torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_of_your_own_sees_distribution_labels_and_mask(reduction: str) -> None:
    """No site and no plates: the ELBO masks, scales, and sums or averages what it returns."""
    seen = []

    class Squared:
        def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
            seen.append((type(distribution), labels, mask))
            return distribution.log_prob(labels).square()

    loss = Squared()
    if reduction == "mean":
        loss.reduction = "mean"  # type: ignore[attr-defined]
    expected = 3.0 * by_hand(MASK, NLL.square(), reduction == "mean")
    torch.testing.assert_close(losses(model(MASK, scale=3.0), loss), expected)
    assert seen[0][0] is dist.Categorical
    assert torch.equal(seen[0][1], LABELS)
    assert torch.equal(seen[0][2], MASK)


def test_without_a_mask_every_point_is_real() -> None:
    seen = []

    def loss(distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        seen.append(mask)
        return -distribution.log_prob(labels)

    torch.testing.assert_close(losses(model(), loss), NLL.sum(-1))
    assert [mask.tolist() for mask in seen] == [True]


OWN = """
from pyro_smat.registry import register

def scaled(distribution, labels, mask, *, by: float = 2.0):
    return -by * distribution.log_prob(labels)

scaled.reduction = "mean"

class Gained:
    def __init__(self, *, gain: float = 3.0):
        self.gain = gain

    def __call__(self, distribution, labels, mask):
        return -self.gain * distribution.log_prob(labels)
"""


@pytest.mark.parametrize(
    ("value", "factor", "mean"),
    [
        ("scaled", 2.0, True),
        ({"kind": "scaled", "by": 5.0}, 5.0, True),
        ("Gained", 3.0, False),
        ({"kind": "Gained", "gain": 0.5}, 0.5, False),
    ],
)
def test_file_of_your_own_gives_a_function_or_a_class(value: Any, factor: float, mean: bool, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    table = {"kind": value} if isinstance(value, str) else value
    choice = choose("episode_loss", {**table, "kind": f"{path}:{table['kind']}"}, run_files=True)
    torch.testing.assert_close(losses(model(MASK), choice), by_hand(MASK, factor * NLL, mean))
    with pytest.raises(ValueError, match="has no option 'gian'"):
        choose("episode_loss", {"kind": f"{path}:Gained", "gian": 1.0}, run_files=True)
    with pytest.raises(ValueError, match="loading never runs a file"):
        CVaR_ELBO(episode_loss=f"{path}:Gained")


def test_names_tables_and_choices_mean_the_same() -> None:
    table = {"kind": "clipped_nll", "clip": 3.0}
    for value in (table, choose("episode_loss", table), ClippedNLL(clip=3.0)):
        assert as_episode_loss(value) == ClippedNLL(clip=3.0)
    assert isinstance(as_episode_loss("ensemble_nll"), PredictiveNLL)
    with pytest.raises(ValueError, match=r"no episode_loss 'nil'; did you mean 'nll'\? Known are brier, clipped_nll, "):
        as_episode_loss("nil")
    with pytest.raises(ValueError, match="'nll' has no option 'clip'; it has no options"):
        as_episode_loss({"kind": "nll", "clip": 3.0})


@pytest.mark.parametrize("name", ["brier", "clipped_nll", "expected_error"])
@given(
    arrays(np.float64, (4, 3, 5), elements=st.floats(-300, 300)),
    arrays(np.int64, (4, 3), elements=st.integers(0, 4)),
    arrays(np.bool_, (4, 3)),
)
@settings(max_examples=25, deadline=None)
def test_bounded_losses_are_bounded(name: str, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> None:
    def program() -> None:
        fn = dist.Categorical(logits=torch.from_numpy(logits))
        shown = poutine.mask(mask=torch.from_numpy(mask))
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1), shown:
            pyro.sample("y", fn, obs=torch.from_numpy(labels))

    found = losses(program, name)
    assert (found >= -1e-12).all()
    assert (found <= 1 + 1e-12).all()


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("dim", [-2, -1])
def test_expectation_over_enumerated_choices(name: str, dim: int) -> None:
    """The loss of a choice, averaged with its probability; queries right or left of the episodes."""
    table = torch.stack([LOGITS, LOGITS.flip(-1), 2.0 * LOGITS])  # (3, 4, 3, 5)
    q_logits = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    q = q_logits.softmax(-1)

    def turned(values: Tensor) -> Tensor:
        return values if dim == -2 else values.transpose(0, 1)

    def program() -> None:
        with pyro.plate("episodes", 4, dim=dim):
            k = pyro.sample("k", dist.Categorical(torch.ones(3, dtype=torch.float64) / 3))
            with pyro.plate("queries", 3, dim=-3 - dim), poutine.mask(mask=turned(MASK)):
                rows = turned(torch.arange(4).unsqueeze(1))
                logits = table[k, rows, turned(torch.arange(3).unsqueeze(0))]
                pyro.sample("y", dist.Categorical(logits=logits), obs=turned(LABELS))

    def guide() -> None:
        with pyro.plate("episodes", 4, dim=dim):
            logits = q_logits.unsqueeze(1) if dim == -2 else q_logits
            pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    expected = torch.zeros(4, dtype=torch.float64)
    for j, logits in enumerate(table):
        nll = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="none").view(4, 3)
        half = 0.5 * (logits.softmax(-1) - F.one_hot(LABELS, 5)).square().sum(-1)
        points = {"expected_error": 1 - (-nll).exp(), "clipped_nll": nll.clamp(max=5.0) / 5.0, "brier": half}
        expected = expected + q[:, j] * by_hand(MASK, points.get(name, nll), POINTWISE[name][1])
    elbo = CVaR_ELBO(rho=1.0, episode_loss=name, max_plate_nesting=2)
    torch.testing.assert_close(elbo.terms(program, guide).episode_losses, expected)


class Pixels:
    """Stands for cached features: two "sources" that see the pixels, and their squares."""

    def of(self, images: Tensor, index: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([images.flatten(2), images.flatten(2).square()], 1)


@pytest.mark.parametrize("name", names("episode_loss"))
def test_reference_of_regret_is_the_loss_of_a_source(name: str, make_episode: Callable) -> None:
    """In the units of the objective: the same number as the ELBO of a model that always uses that source."""
    shapes = [(5, 2, 3), (3, 1, 4), (4, 3, 2)]
    batch = EpisodeBatch.collate([make_episode(*shape, seed, torch.float32) for seed, shape in enumerate(shapes)])
    features: Any = Pixels()
    logits = source_logits(features, batch)

    def program(source: int) -> Callable[[], None]:
        def run() -> None:
            queries = pyro.plate("queries", batch.query.labels.shape[1], dim=-1)
            with pyro.plate("episodes", 3, dim=-2), queries, poutine.mask(mask=batch.query.mask):
                pyro.sample("labels", dist.Categorical(logits=logits[:, source]), obs=batch.query.labels)

        return run

    each = torch.stack([losses(program(source), name) for source in (0, 1)])
    for kind, expected in (("fallback", each[0]), ("best_source", each.amin(0))):
        torch.testing.assert_close(SourceReference(features, kind, episode_loss=name)(batch), expected)
