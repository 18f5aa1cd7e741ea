"""Measures against brute force, closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import run, tiny, tokens
from sklearn.metrics import average_precision_score

from pyro_smat.metrics import expected_calibration_error
from pyro_smat.moe import attach
from pyro_smat.moe.baselines import PriorRouting
from pyro_smat.moe.measures import (
    average_precision,
    calibration_floor,
    jaccard,
    mean_embedding_norm,
    recording,
    routing_stability,
)
from pyro_smat.moe.modes import expected_routing, sampled_routing
from pyro_smat.moe.priors import GaussianPrior
from pyro_smat.moe.signals import (
    at_last_token,
    gate_entropy,
    log_determinant,
    logit_variance,
    over_tokens,
    routing_information,
    watching,
)


def test_jaccard_against_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(50, 8, generator=generator).topk(3).indices for _ in range(2))
    expected = [len(set(x) & set(y)) / len(set(x) | set(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(jaccard(a, b), torch.tensor(expected))


@torch.no_grad()
def test_recorded_experts_are_those_that_run() -> None:
    """Not output[-1] of whatever a router returns, nor its logits taken for indices."""
    model = tiny("mixtral")
    chosen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda module, args: chosen.append(args[1]))
    attachment = attach(model)
    with recording(attachment, sampled_routing(PriorRouting(GaussianPrior()), 0, selection="sample")) as record:
        run(model)
    assert torch.equal(record.index[0], chosen[0])
    assert torch.equal(record.index[1], chosen[1])


def test_stability_of_a_deterministic_and_of_a_random_router() -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    norm = mean_embedding_norm(model.get_input_embeddings(), tokens()["input_ids"])
    expected = torch.stack([model.get_input_embeddings()(t).norm() for t in tokens()["input_ids"].flatten()]).mean()
    assert norm == pytest.approx(float(expected.detach()), rel=1e-5)
    gammas = (0.0001, 0.3)

    def stability(functions: object) -> object:
        return routing_stability(attachment, functions, lambda: run(model), embedding_norm=norm, gammas=gammas)

    fixed = stability(lambda seed: None)
    assert fixed.self_jaccard == 1
    assert fixed.by_noise[0.0001] > 0.97 > 0.7 > fixed.by_noise[0.3]
    prior = PriorRouting(GaussianPrior(3.0))
    common = stability(lambda seed: expected_routing(prior))
    assert common.self_jaccard == 1
    random = stability(lambda seed: sampled_routing(prior, seed))
    assert random.self_jaccard < 0.9
    assert abs(random.by_noise[0.0001] - random.self_jaccard) < 0.2


def test_floor_is_the_error_of_a_calibrated_predictor() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 500)
    floor = calibration_floor(probabilities, bins=10, simulations=400)
    errors = []
    for _ in range(400):
        labels = (generator.random((500, 1)) > probabilities.cumsum(1)).sum(1).clip(0, 3)
        errors.append(expected_calibration_error(probabilities, labels, bins=10))
    assert floor.mean == pytest.approx(np.mean(errors), rel=0.05)
    assert floor.low == pytest.approx(np.quantile(errors, 0.05), rel=0.12)
    assert floor.low < floor.mean < floor.high
    assert calibration_floor(np.repeat(probabilities, 40, 0), bins=10).mean < floor.mean / 4


def test_average_precision_is_sklearns() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        scores, labels = generator.integers(0, 12, 200) / 3.0, generator.random(200) < 0.3
        assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    with pytest.raises(ValueError, match="no positives"):
        average_precision([0.1, 0.2], [0, 0])


@torch.no_grad()
def test_signals_by_hand_and_by_position() -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    prior = PriorRouting(GaussianPrior(1.5))
    signals = {
        "entropy": gate_entropy,
        "variance": logit_variance,
        "log_det": log_determinant,
        "information": routing_information,
    }
    with watching(attachment, prior, signals) as found:
        run(model)
    with recording(attachment, None) as record:
        run(model)
    assert torch.allclose(found["variance"][0], torch.tensor(8 * 1.5**2))
    assert torch.allclose(found["log_det"][1], torch.tensor(16 * np.log(1.5)).float())
    expected = torch.distributions.Categorical(logits=record.logits[1]).entropy()
    torch.testing.assert_close(found["entropy"][1], expected)
    assert (found["information"][0] > 0).all()
    mask = torch.ones(2, 7)
    mask[0, 4:] = 0
    layers = [torch.arange(14.0), torch.arange(14.0) + 2]
    assert at_last_token(layers, mask).tolist() == [4.0, 14.0]
    assert over_tokens(layers, mask).tolist() == [2.5, 11.0]
    left = mask.flip(1)
    assert at_last_token(layers, left).tolist() == [7.0, 14.0]
