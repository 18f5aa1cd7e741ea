"""Ways of routing: formulas by hand, common random numbers, sigmoid routers, memory, reproducibility."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from families import run, tiny, tokens
from spread import Spread
from torch import Tensor

from pyro_smat.moe import RouterCall, RoutingFunction, attach
from pyro_smat.moe.baselines import PriorRouting, dropout_routing
from pyro_smat.moe.generation import generate
from pyro_smat.moe.measures import jaccard, recording
from pyro_smat.moe.modes import expected_routing, mean_routing, sampled_routing, samples
from pyro_smat.moe.prediction import mixture, predict, trajectories
from pyro_smat.moe.priors import GaussianPrior

RANDOM: list[Callable[[int], RoutingFunction]] = [
    lambda seed: sampled_routing(Spread(1.0), seed),
    lambda seed: sampled_routing(Spread(1.0), seed, selection="sample"),
    lambda seed: expected_routing(Spread(1.0), 2, common=False, seed=10 * seed),
    lambda seed: dropout_routing(0.3, seed),
]


@torch.no_grad()
def used(model: torch.nn.Module, attachment: Any, function: Any) -> dict[int, Tensor]:
    with recording(attachment, function) as record:
        run(model)
    return record.logits


@pytest.mark.parametrize("family", ["normal", "full", "low_rank"])
def test_a_narrow_posterior_routes_as_its_mean_in_every_mode(family: str) -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    posterior = Spread(1e-6, 0.5, family)
    mean = used(model, attachment, mean_routing(posterior))[0]
    torch.testing.assert_close(used(model, attachment, sampled_routing(posterior))[0], mean, atol=1e-3, rtol=1e-3)
    expected = used(model, attachment, expected_routing(posterior))[0]
    torch.testing.assert_close(expected.softmax(-1), mean.softmax(-1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_expected_routing_converges_to_the_mean_score(family: str) -> None:
    """Against many draws of torch's own, softmax for softmax routers and sigmoid for sigmoid routers."""
    model = tiny(family)
    attachment = attach(model)
    clean = used(model, attachment, None)[0][:3]
    found = used(model, attachment, expected_routing(Spread(1.5), 4000))[0][:3]
    torch.manual_seed(0)
    draws = clean + 1.5 * torch.randn(40_000, *clean.shape)
    if family == "mixtral":
        torch.testing.assert_close(found.exp(), draws.softmax(-1).mean(0), atol=0.01, rtol=0)
    else:
        torch.testing.assert_close(found.sigmoid(), draws.sigmoid().mean(0), atol=0.01, rtol=0)


def test_common_random_numbers_route_equal_states_alike() -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    posterior = Spread(1.0)
    once, again = (used(model, attachment, expected_routing(posterior)) for _ in range(2))
    assert torch.equal(once[0], again[0])
    function = expected_routing(posterior)
    first, second = used(model, attachment, function), used(model, attachment, function)
    assert torch.equal(first[1], second[1])
    first, second = (used(model, attachment, expected_routing(posterior, common=False, seed=s)) for s in (0, 10))
    assert not torch.equal(first[0], second[0])
    # Independent draws alone change which experts are chosen: the self-Jaccard that a stability figure must state.
    assert jaccard(first[0].topk(2, -1).indices, second[0].topk(2, -1).indices).double().mean() < 1


@pytest.mark.parametrize("selection", ["top_k", "sample"])
def test_sampled_routing_is_reproducible_by_seed(selection: str) -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    posterior = Spread(1.0)
    runs = [used(model, attachment, sampled_routing(posterior, seed, selection=selection)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("make", RANDOM)
@torch.no_grad()
def test_functions_that_draw_answer_alike_however_often_they_are_used(make: Callable[[int], RoutingFunction]) -> None:
    """In trajectories, then in generate, then in trajectories: as functions made anew; wrapped ones too."""
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    prompt = tokens(2, 5)["input_ids"]
    functions = [make(seed) for seed in range(3)]

    def components(those: list[RoutingFunction]) -> Tensor:
        return trajectories(attachment, those, lambda: run(model).logits[:, -1]).components

    def continued(those: list[RoutingFunction]) -> Tensor:
        return generate(attachment, prompt, those, max_new_tokens=8)

    first = components(functions)
    assert not torch.allclose(first[0], first[1])
    ids = continued(functions)
    assert torch.equal(continued(functions), ids)
    assert torch.equal(components(functions), first)
    assert torch.equal(components([lambda call, f=f: f(call) for f in functions]), first)
    assert torch.equal(continued([make(seed) for seed in range(3)]), ids)
    recorded = [used(model, attachment, functions[0])[1] for _ in range(2)]
    assert torch.equal(*recorded)


@torch.no_grad()
def test_draws_of_a_run_go_on_from_token_to_token_and_from_router_to_router() -> None:
    """Not the same noise for every layer or new token; a generator of the caller's goes on from run to run."""
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    noise: list[Tensor] = []

    def watched(call: RouterCall) -> Tensor:
        drawn = own(call)
        noise.append((drawn - call.logits)[-1])
        return drawn

    own = sampled_routing(Spread(1.0), 3)
    generate(attachment, tokens(1, 5)["input_ids"], [watched], max_new_tokens=4)
    assert len(noise) == 8
    assert len({tuple(n.tolist()) for n in noise}) == 8
    mine = sampled_routing(Spread(1.0), torch.Generator().manual_seed(3))
    first, second = used(model, attachment, mine)[0], used(model, attachment, mine)[0]
    assert torch.equal(first, used(model, attachment, own)[0])
    assert not torch.equal(first, second)


@torch.no_grad()
def test_one_function_draws_apart_in_two_threads() -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    function = sampled_routing(Spread(1.0), 5)
    alone = used(model, attachment, function)[1]
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(used(model, attachment, function)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(value, alone) for value in found)


def test_a_function_twice_is_refused() -> None:
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    functions = [sampled_routing(Spread(1.0))] * 2
    with pytest.raises(ValueError, match="function 1 is function 0 again"):
        trajectories(attachment, functions, lambda: run(model).logits)
    with pytest.raises(ValueError, match="function 1 is function 0 again"):
        generate(attachment, tokens()["input_ids"], functions, max_new_tokens=1)


def test_draws_have_the_covariance_and_do_not_copy_it() -> None:
    """1,024 draws of 64 tokens over 256 experts: broadcasting their covariances would take 17 GB."""
    torch.manual_seed(0)
    lower = torch.tril(0.1 * torch.randn(4, 4)) + torch.eye(4)
    small = dist.MultivariateNormal(torch.zeros(3, 4), scale_tril=lower.expand(3, 4, 4))
    drawn = samples(small, 50_000, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (50_000, 3, 4)
    torch.testing.assert_close(drawn[:, 1].T.cov(), lower @ lower.T, atol=0.03, rtol=0)
    large = dist.MultivariateNormal(
        torch.zeros(64, 256), scale_tril=torch.eye(256).expand(64, 256, 256), validate_args=False
    )
    assert samples(large, 1024, generator=torch.Generator().manual_seed(0)).shape == (1024, 64, 256)


def test_trajectories_take_the_entropy_apart() -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    posterior = PriorRouting(GaussianPrior(1.0))

    def logits() -> Tensor:
        return run(model).logits[:, -1]

    functions = [sampled_routing(posterior, seed) for seed in range(6)]
    prediction = trajectories(attachment, functions, logits)
    by_hand = torch.stack([predict(attachment, sampled_routing(posterior, s), logits).probabilities for s in range(6)])
    torch.testing.assert_close(prediction.probabilities, by_hand.mean(0))
    entropies = torch.distributions.Categorical(probs=by_hand).entropy().mean(0)
    torch.testing.assert_close(prediction.aleatoric, entropies, rtol=1e-4, atol=1e-4)
    assert (prediction.mutual_information > 1e-3).all()
    own = predict(attachment, None, logits)
    assert own.mutual_information.abs().max() < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(own.probabilities, logits().softmax(-1))
    assert float(mixture(torch.eye(2).unsqueeze(1)).mutual_information) == pytest.approx(0.6931, abs=1e-3)


def test_what_is_no_posterior_is_refused_at_once() -> None:
    for make in (mean_routing, expected_routing, sampled_routing):
        with pytest.raises(TypeError, match=r"GaussianPrior is no posterior.*PriorRouting"):
            make(GaussianPrior())  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"num_samples is 2\.5"):
        expected_routing(Spread(1.0), 2.5)  # type: ignore[arg-type]
