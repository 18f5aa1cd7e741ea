"""Private evidence: its statistic by loops, its sensitivity over all neighbours, its noise, and an attack on it."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import beta, chi2
from torch import Tensor

from pyro_smat.encoders.gaussian_mechanism import noise_multiplier
from pyro_smat.encoders.private_evidence import PrivateEvidence
from pyro_smat.episodes import EpisodeBatch, Labelled

PLAIN = PrivateEvidence(math.inf, 1e-5, clip=1.0, most_shots=2, mean=(0.0, 0.0), deviation=(1.0, 1.0))
SHOTS, WAY = 5, 3


def batch_of(features: Tensor, labels: Tensor, mask: Tensor | None = None) -> EpisodeBatch:
    """Supports with features ``(B, R, S, f)`` and labels ``(B, S)``; their images are never looked at."""
    images = torch.zeros(*labels.shape, 1, 1, 1)
    return EpisodeBatch(Labelled(images, labels, mask, features=features), None, torch.full((len(labels),), WAY))


def test_the_statistic_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [2, 2, 1, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    mechanism = PrivateEvidence(math.inf, 1e-5, 0.8, 3, (0.1, -0.2, 0.3), (0.5, 1.0, 0.7))
    found = mechanism.statistic(batch_of(features, labels, mask))
    for b, n in enumerate((7, 4)):
        expected = np.zeros(3)
        for i, j in itertools.combinations(range(n), 2):
            x, y = features[b, :, i].numpy(), features[b, :, j].numpy()
            cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
            vector = (cosine - np.array(mechanism.mean)) / np.array(mechanism.deviation)
            vector -= vector.mean()
            vector *= min(1, 0.8 / np.linalg.norm(vector))
            same = labels[b, i] == labels[b, j]
            expected += vector / (n * 2 / 2) if same else -vector / (n * (n - 3) / 2)
        np.testing.assert_allclose(found[b], expected, rtol=1e-10)


@cache
def all_supports() -> tuple[EpisodeBatch, Tensor]:
    """All supports of 5 shots of 12 kinds (two signs, one a source, and 3 labels), and which have <= 2 a class.

    The first shot runs slowest: row ``k * 12**4 + rest`` has its kind k and the same rest as row ``rest``.
    """
    kinds = torch.tensor(list(itertools.product((-1.0, 1.0), (-1.0, 1.0), range(WAY))))
    chosen = kinds[torch.cartesian_prod(*[torch.arange(12)] * SHOTS)]  # (12**5, 5, 3)
    labels = chosen[..., 2].long()
    allowed = (torch.nn.functional.one_hot(labels, WAY).sum(1) <= 2).all(1)
    labels = torch.where(allowed.unsqueeze(1), labels, torch.tensor([0, 0, 1, 1, 2]))  # never looked at
    return batch_of(chosen[..., :2].movedim(-1, 1).unsqueeze(-1), labels), allowed


@cache
def furthest(clip: float) -> tuple[float, int, int]:
    """The largest distance of E over all neighbours, and the two supports."""
    batch, allowed = all_supports()
    mechanism = replace(PLAIN, clip=clip)
    parts = torch.arange(12**SHOTS).split(12**4)
    values = torch.stack([mechanism.statistic(batch[rows]) for rows in parts])  # (12, 12**4, R)
    fine = allowed.view(12, -1)
    best = (0.0, 0, 0)
    for a, b in itertools.combinations(range(12), 2):
        distance = (values[a] - values[b]).norm(dim=-1).masked_fill(~(fine[a] & fine[b]), 0.0)
        rest = int(distance.argmax())
        best = max(best, (float(distance[rest]), a * 12**4 + rest, b * 12**4 + rest))
    return best


@pytest.mark.parametrize("clip", [0.5, 1.0, 1.5])
def test_no_neighbour_is_further_away_than_the_sensitivity(clip: float) -> None:
    # Vectors of pairs have the length sqrt(2) or 0 here: the bound is attained, but where the clip is longer than that.
    bound = replace(PLAIN, clip=clip).sensitivity(SHOTS)
    assert furthest(clip)[0] == pytest.approx(bound * min(1, math.sqrt(2) / clip), rel=1e-9)


def test_the_closed_form() -> None:
    for most, shots in ((2, 3), (3, 5), (6, 25), (21, 100)):
        assert replace(PLAIN, most_shots=most, clip=0.7).sensitivity(shots) == pytest.approx(8 * 0.7 / shots)
    assert replace(PLAIN, most_shots=6).sensitivity(6) > 8 / 6  # other pairs are few and weigh more


def neighbours() -> EpisodeBatch:
    """The two that are furthest apart."""
    batch, _ = all_supports()
    _, a, b = furthest(1.0)
    return batch[torch.tensor([a, b])]


def noisy(batch: EpisodeBatch, epsilon: float, delta: float, seed: int) -> tuple[np.ndarray, float]:
    released = replace(PLAIN, epsilon=epsilon, delta=delta).release(batch, torch.Generator().manual_seed(seed))
    return released.evidence.numpy(), float(released.deviation[0])


def test_the_noise_is_as_large_as_said() -> None:
    pytest.importorskip("dp_accounting", reason="optional dependency: pip install 'pyro-smat[privacy]'")
    batch = neighbours()[torch.zeros(4000, dtype=torch.long)]
    found, deviation = noisy(batch, 1.0, 1e-5, seed=1)
    assert deviation == pytest.approx(PLAIN.sensitivity(SHOTS) * noise_multiplier(1.0, 1e-5))
    squares = ((found - PLAIN.statistic(batch).numpy()) ** 2).sum() / deviation**2
    assert 1e-3 < chi2.cdf(squares, found.size) < 1 - 1e-3
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(0, abs=0.06)
    again, _ = noisy(batch, 1.0, 1e-5, seed=2)
    assert not np.isclose(found, again).any()
    unseeded = [replace(PLAIN, epsilon=1.0).release(batch[:1]).evidence for _ in range(2)]
    assert not torch.equal(*unseeded)


def attacked_epsilon(epsilon: float, delta: float, weaker: float = 1.0) -> float:
    """A lower bound on epsilon that holds in 99.9% of runs, from telling the furthest neighbours apart.

    Args:
        epsilon, delta: of the mechanism.
        weaker: factor by which its noise is too small.
    """
    pair, count = neighbours(), 40_000
    true = PLAIN.statistic(pair).numpy()
    direction = (true[1] - true[0]) / np.linalg.norm(true[1] - true[0])
    scores = []
    for which in (0, 1):
        found, _ = noisy(pair[torch.full((count,), which)], epsilon, delta, seed=3 + which)
        scores.append((true[which] + weaker * (found - true[which])) @ direction)
    calibrating, testing = ([part[half::2] for part in scores] for half in (0, 1))
    bounds = []
    for threshold in np.quantile(np.concatenate(calibrating), [0.5, 0.7, 0.9, 0.97, 0.99]):
        n = count // 2
        hits, alarms = ((part > threshold).sum() for part in testing[::-1])
        low = beta.ppf(1e-4, hits, n - hits + 1)
        high = beta.ppf(1 - 1e-4, alarms + 1, n - alarms)
        bounds.append(math.log(max(low - delta, 1e-12) / high))
    return max(bounds)


def test_an_attack_finds_no_more_than_epsilon() -> None:
    pytest.importorskip("dp_accounting", reason="optional dependency: pip install 'pyro-smat[privacy]'")
    found = attacked_epsilon(2.0, 1e-2)
    assert 1.2 < found <= 2.0  # strong enough to mean something
    assert attacked_epsilon(2.0, 1e-2, weaker=0.5) > 2.0  # and it catches noise that is too small


def test_on_public_episodes() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3, 2, 6, 4, generator=generator)
    batch = batch_of(features, torch.tensor([[0, 0, 1, 1, 2, 2]] * 3))
    found = PrivateEvidence.on_public([batch, batch], epsilon=math.inf, most_shots=3)
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    upper = torch.triu_indices(6, 6, 1)
    cosines = (unit @ unit.mT)[..., upper[0], upper[1]]
    torch.testing.assert_close(torch.tensor(found.mean).double(), cosines.mean((0, 2)))
    assert found.deviation == pytest.approx(cosines.movedim(1, 0).flatten(1).repeat(1, 2).std(1).tolist())
    assert found.clip > 0


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-smat\[privacy\]'"):
        replace(PLAIN, epsilon=1.0).release(neighbours())


def test_what_cannot_be_is_refused() -> None:
    batch = batch_of(torch.ones(1, 2, 3, 1), torch.tensor([[0, 0, 0]]))
    with pytest.raises(ValueError, match="a class has 3 shots; expected at most most_shots = 2"):
        PLAIN.statistic(batch)
    with pytest.raises(ValueError, match="features of 1 sources; expected 2"):
        PLAIN.statistic(batch_of(torch.ones(1, 1, 2, 1), torch.tensor([[0, 1]])))
    for wrong in ({"epsilon": 0.0}, {"delta": 1.0}, {"clip": 0.0}, {"most_shots": 1}, {"deviation": (1.0, 0.0)}):
        with pytest.raises(ValueError, match="expected"):
            replace(PLAIN, **wrong)
