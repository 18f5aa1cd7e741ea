"""Soups against averages and greedy choices made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines import ComposedLibrary, Soup, greedy_soup, uniform_soup, validation_loss


def loss_of(theta: Tensor, batches: list[EpisodeBatch], query_loss: Callable) -> float:
    return torch.stack([query_loss(theta, b, i) for b in batches for i in range(len(b))]).mean().item()


def test_uniform_soup_is_the_average(composed: ComposedLibrary, make_batch: Callable, query_loss_by_hand) -> None:
    batch, soup = make_batch(composed), uniform_soup(composed)
    mean = sum(composed.sources[r] for r in range(4)) / 4
    expected = loss_of(mean, [batch], query_loss_by_hand)
    assert validation_loss(soup, [batch]) == pytest.approx(expected, rel=1e-9)
    probabilities = soup(batch)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))


@pytest.mark.parametrize("seed", range(4))
def test_greedy_soup_by_hand(seed: int, make_library: Callable, make_batch: Callable, query_loss_by_hand) -> None:
    basis = 0.7 * torch.randn(5, 25, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis[3] = basis[1] + 0.2 * basis[3]  # of one basin, so that averaging may help
    composed = make_library(basis)
    batches = [make_batch(composed, 10), make_batch(composed, 20)]
    alone = [loss_of(row, batches, query_loss_by_hand) for row in basis]
    order = sorted(range(5), key=alone.__getitem__)
    kept, least = order[:1], alone[order[0]]
    for r in order[1:]:
        loss = loss_of(basis[[*kept, r]].mean(0), batches, query_loss_by_hand)
        if loss <= least:
            kept, least = [*kept, r], loss
    soup = greedy_soup(composed, batches)
    assert soup.members == tuple(f"source{r}" for r in kept)
    assert validation_loss(soup, batches) == pytest.approx(least, rel=1e-9)
    assert validation_loss(soup, batches) <= min(alone) + 1e-12


def test_greedy_soup_keeps_what_averages_well(make_library: Callable, make_batch: Callable) -> None:
    """Two sources whose errors cancel go together, a ruined one stays out; and the best may stand alone."""
    good, error = torch.zeros(2, 25, dtype=torch.float64)
    good[:16] = 0.5 * torch.eye(4).flatten()  # passes the four pixels on
    error[20:] = 1.5  # a bias that saturates the tanh
    ruined = 10 * torch.randn(25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = make_library(torch.stack([ruined, good + error, good - error]))
    assert set(greedy_soup(together, [make_batch(together)]).members) == {"source1", "source2"}
    apart = make_library(torch.stack([ruined, good]))
    assert greedy_soup(apart, [make_batch(apart)]).members == ("source1",)


@pytest.mark.parametrize("members", [(), ("source1", "source1"), ("source9",)])
def test_members_must_be_sources(members: tuple[str, ...], composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match=r"expected some of .*'source0'.*, each once"):
        Soup(composed, members, "soup")


def test_greedy_soup_needs_episodes(composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="no validation episodes"):
        greedy_soup(composed, [])
