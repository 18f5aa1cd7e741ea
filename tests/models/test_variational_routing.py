"""VariationalRouting with its guide: ELBOs against Pyro's and by hand, padding, one pass, selection, likelihoods."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_smat.guides.moe_routing import TokenRoutingGuide
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models.variational_routing import CausalLM, Classification, MultipleChoice, VariationalRouting
from pyro_smat.moe import attach
from pyro_smat.moe.priors import (
    CostAwarePrior,
    GaussianPrior,
    LoadBalancingPrior,
    LogTemperaturePrior,
    PaperTemperaturePrior,
)
from pyro_smat.moe.selection import PlackettLuce

transformers = pytest.importorskip("transformers")
small_tail = pytest.mark.filterwarnings("ignore:rho x B")
FAMILIES = ["mean_field", "low_rank", "full", "temperature"]


def network(seed: int = 0, layers: int = 2, **options: Any) -> nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **options,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.MixtralForCausalLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.3, generator=generator)
    return model


def batch(sequences: int = 3, length: int = 5) -> dict[str, Tensor]:
    ids = torch.randint(3, 32, (sequences, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    labels = ids.clone()
    labels[:, :2] = -100
    mask[1, 3:], labels[1, 3:], ids[1, 3:] = 0, -100, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pair(family: str = "mean_field", **options: Any) -> tuple[VariationalRouting, TokenRoutingGuide]:
    if family in ("temperature", "point_temperature"):
        options.setdefault("prior", LogTemperaturePrior(0.7))
    model = VariationalRouting(attach(network()), CausalLM(), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        guide = TokenRoutingGuide(model, family, trunk=8, rank=2)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, guide


def value_and_gradient(elbo: Any, model: Any, guide: TokenRoutingGuide, data: dict[str, Tensor]) -> list[Tensor]:
    pyro.set_rng_seed(3)
    loss = elbo.differentiable_loss(model, guide, data)
    return [loss.detach(), *torch.autograd.grad(loss, list(guide.parameters()))]


@pytest.mark.parametrize("kl_reduction", ["sum", "token_mean"])
@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
@pytest.mark.parametrize("family", FAMILIES)
def test_mean_tail_is_pyros_elbo(family: str, reference: Any, kl: Any, particles: int, kl_reduction: Any) -> None:
    model, guide = pair(family, beta=0.3, kl_reduction=kl_reduction)
    ours = value_and_gradient(CVaR_ELBO(rho=1.0, kl=kl, num_particles=particles), model, guide, batch())
    theirs = value_and_gradient(reference(num_particles=particles), model, guide, batch())
    assert max(float(t.abs().max()) for t in theirs[1:]) > 1e-3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@small_tail
@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO(), CVaR_ELBO(rho=0.5), CVaR_ELBO(rho=1.0)])
def test_one_pass_of_the_network_per_elbo(elbo: Any) -> None:
    model, guide = pair("full")
    runs = []
    model.network.register_forward_hook(lambda *_: runs.append(1))
    elbo.differentiable_loss(model, guide, batch()).backward()
    assert len(runs) == 1


@pytest.mark.parametrize("kl_reduction", ["sum", "token_mean"])
def test_the_objective_by_hand(kl_reduction: Any) -> None:
    """NLL of the answers plus beta times the KLs of real tokens, each computed from the traces by torch."""
    beta, data = 0.25, batch()
    model, guide = pair("full", beta=beta, kl_reduction=kl_reduction)
    pyro.set_rng_seed(0)
    loss = TraceMeanField_ELBO().loss(model, guide, data)
    pyro.set_rng_seed(0)
    guide(data)
    model_trace, guide_trace = guide.get_traces()
    logits = model_trace.nodes["y"]["fn"].logits.detach()
    expected = 0.0
    for i in range(3):
        for t in range(4):
            if data["labels"][i, t + 1] != -100:
                expected -= float(logits[i, t].log_softmax(-1)[data["labels"][i, t + 1]])
    for name in ("route.0", "route.1"):
        q, p = guide_trace.nodes[name]["fn"], model_trace.nodes[name]["fn"]
        dense = torch.distributions.MultivariateNormal(p.mean, torch.diag_embed(p.variance))
        kl = kl_divergence(torch.distributions.MultivariateNormal(q.loc, q.covariance_matrix), dense)
        kl = (kl * data["attention_mask"]).detach()
        expected += beta * float(
            (kl.sum(1) / data["attention_mask"].sum(1) if kl_reduction == "token_mean" else kl).sum()
        )
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_tempered_objective_is_not_called_an_elbo() -> None:
    assert pair()[0].objective == "negative ELBO"
    assert "not an ELBO" in pair(beta=0.1)[0].objective
    assert "not an ELBO" in pair(kl_reduction="token_mean")[0].objective


@pytest.mark.parametrize("kl_reduction", ["sum", "token_mean"])
def test_padding_changes_nothing(kl_reduction: Any) -> None:
    """More padding, and other tokens in it: the same loss (of heads that have no spread)."""
    data = batch()
    losses = []
    for pad, token in ((0, 0), (4, 0), (4, 17)):
        model, guide = pair("full", kl_reduction=kl_reduction)
        with torch.no_grad():
            for layer in guide.heads.layers:  # no spread: draws of other lengths do not matter
                layer.cholesky.weight.zero_()
                rows, columns = torch.tril_indices(6, 6)
                layer.cholesky.bias.copy_(torch.where(rows == columns, -12.0, 0.0))
        extra = {"input_ids": token, "attention_mask": 0, "labels": -100}
        padded = {name: torch.cat([t, torch.full((len(t), pad), extra[name])], 1) for name, t in data.items()}
        losses.append(TraceMeanField_ELBO().loss(model, guide, padded))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_prompt_and_padding_are_not_in_the_likelihood() -> None:
    _, guide = pair()
    guide(batch())
    mask = guide.get_traces()[0].nodes["y"]["mask"]
    assert torch.equal(mask, batch()["labels"][:, 1:] != -100)


@small_tail
def test_the_tail_is_over_sequences() -> None:
    model, guide = pair("mean_field", kl_reduction="token_mean", beta=0.01)
    data = batch(6)
    terms = CVaR_ELBO(rho=0.5).terms(model, guide, data)
    assert terms.episode_losses.shape == (6,)
    worst = terms.episode_losses.topk(3)
    assert torch.allclose(terms.tail_loss, worst.values.mean())
    assert set(terms.weights.nonzero().flatten().tolist()) == set(worst.indices.tolist())


def test_svi_trains_the_heads_and_not_the_network() -> None:
    pyro.clear_param_store()
    model, guide = pair("full", beta=0.01, kl_reduction="token_mean")
    before = {name: p.clone() for name, p in model.network.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=TraceMeanField_ELBO())
    pyro.set_rng_seed(0)
    losses = [svi.step(batch()) for _ in range(60)]
    assert sum(losses[-15:]) < 0.95 * sum(losses[:15])
    assert all(torch.equal(p, before[name]) for name, p in model.network.named_parameters())
    assert not list(pyro.get_param_store().keys())


def test_the_prior_alone_is_a_model() -> None:
    model, _ = pair()
    trace = poutine.trace(model).get_trace(batch())
    value, fn = trace.nodes["route.0"]["value"], trace.nodes["route.0"]["fn"]
    assert value.shape == (3, 5, 6)
    assert not torch.equal(value, fn.mean)
    assert torch.equal(fn.stddev, torch.ones(3, 5, 6))


def test_cost_aware_prior_is_the_tilted_gaussian() -> None:
    """Against the ratio of densities: log p - log N = -lambda c.l + constant."""
    model, _ = pair()
    router, logits = model.attachment.routers[0], torch.randn(4, 6)
    prices = torch.linspace(0, 2, 6)
    tilted, plain = CostAwarePrior(prices, rate=0.7, scale=1.3)(logits, router), GaussianPrior(1.3)(logits, router)
    points = torch.randn(9, 4, 6)
    ratio = tilted.log_prob(points) - plain.log_prob(points) + 0.7 * (points * prices).sum(-1)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"has 6 experts; found prices \(3,\)"):
        CostAwarePrior(prices[:3])(logits, router)


def test_a_cost_aware_prior_moves_tokens_to_cheap_experts() -> None:
    shares = []
    for rate in (0.0, 3.0):
        model, _ = pair(prior=CostAwarePrior(torch.tensor([0, 0, 0, 1, 1, 1.0]), rate=rate))
        pyro.set_rng_seed(0)
        trace = poutine.trace(model).get_trace(batch(20))
        chosen = trace.nodes["route.0"]["value"].topk(2, -1).indices
        shares.append(float((chosen < 3).float().mean()))
    assert shares[0] < 0.7 < 0.9 < shares[1]


def test_load_balancing_prior_lowers_busy_experts() -> None:
    model, _ = pair()
    router, prior = model.attachment.routers[0], LoadBalancingPrior(rate=2.0)
    logits = torch.zeros(50, 6)
    logits[:, 0] = 3.0
    assert torch.equal(prior(logits, router).mean, logits)
    prior.observe(logits, router)
    shifted = prior(logits, router).mean
    assert (shifted[:, 0] < logits[:, 0] - 1).all()
    assert (shifted[:, 1:] > logits[:, 1:]).all()


@pytest.mark.parametrize("gradient", ["pathwise", "straight_through", "score"])
@pytest.mark.parametrize("family", ["temperature", "mean_field"])
def test_sampled_selection_trains(family: str, gradient: Any) -> None:
    model, guide = pair(family, selection="sample", gradient=gradient, beta=0.1, kl_reduction="token_mean")
    elbo = CVaR_ELBO(rho=1.0)
    values = value_and_gradient(elbo, model, guide, batch())
    assert all(v.isfinite().all() for v in values)
    assert sum(float(v.abs().sum()) for v in values[1:]) > 0


class TinyRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = 3, 2
        self.weight = nn.Parameter(torch.tensor([[0.5], [0.0], [-0.4]]))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(hidden, self.weight)
        kept, index = logits.topk(2, -1)
        return logits, kept.softmax(-1), index


class TinyNetwork(nn.Module):
    """x (B, 1, 1) -> two class logits, by constant experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = TinyRouter()
        self.experts = nn.Parameter(torch.tensor([[2.0, -1.0], [-1.5, 0.5], [0.3, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        _, weights, index = self.router(x.flatten(0, 1))
        return (weights.unsqueeze(-1) * self.experts[index]).sum(1)


def test_score_function_gradient_is_that_of_the_exact_expectation() -> None:
    """One token, three experts, six ordered pairs: the mean gradient of 20,000 sequences against their exact sum."""
    model = VariationalRouting(attach(TinyNetwork()), Classification(), selection="sample", gradient="score")
    guide = TokenRoutingGuide(model, "point", trunk=4)
    with torch.no_grad():
        guide.heads.layers[0].mean.bias.copy_(torch.tensor([0.2, -0.3, 0.1]))
    bias = guide.heads.layers[0].mean.bias

    def data(size: int) -> dict[str, Tensor]:
        return {"x": torch.ones(size, 1, 1), "labels": torch.zeros(size, dtype=torch.long)}

    pyro.set_rng_seed(0)
    size = 20_000
    for elbo in (Trace_ELBO(), CVaR_ELBO(rho=1.0), CVaR_ELBO(rho=1.0, baseline="decaying_average")):
        (estimate,) = torch.autograd.grad(elbo.differentiable_loss(model, guide, data(size)) / size, [bias])
        pairs = torch.tensor(list(itertools.permutations(range(3), 2))).view(6, 1, 2)
        with poutine.condition(data={"route.0.experts": pairs}):
            guide(data(6))
        model_trace, guide_trace = guide.get_traces()
        model_trace.compute_log_prob()
        latent = guide_trace.nodes["route.0"]["value"]
        probability = PlackettLuce(latent, 2).log_prob(pairs).squeeze(1).exp()
        assert probability.sum().item() == pytest.approx(1.0, abs=1e-5)
        nll = -model_trace.nodes["y"]["log_prob"].squeeze(1)
        prior = -model_trace.nodes["route.0"]["log_prob"].squeeze(1)
        (exact,) = torch.autograd.grad((probability * (nll + prior)).sum(), [bias])
        torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)
        (pathwise,) = torch.autograd.grad(_pathwise(model, guide, data(size)), [bias])
        assert (pathwise - exact).abs().max() > 0.1  # without the score function it is another gradient


def _pathwise(model: VariationalRouting, guide: TokenRoutingGuide, data: dict[str, Tensor]) -> Tensor:
    guide(data)
    trace = guide.get_traces()[0]
    trace.compute_log_prob()
    return -(trace.nodes["y"]["log_prob"].mean() + trace.nodes["route.0"]["log_prob"].mean())


def test_missing_mask_shape_and_bad_options() -> None:
    model, _ = pair()
    bad = VariationalRouting(model.attachment, CausalLM(), mask=lambda router, b: torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"sees \(3, 5\) tokens, the mask has \(3, 4\)"):
        bad(batch())
    with pytest.raises(ValueError, match="beta is 0"):
        VariationalRouting(model.attachment, CausalLM(), beta=0)
    with pytest.raises(ValueError, match="posterior of log_temperature"):
        TokenRoutingGuide(model, "temperature")


def test_a_batch_without_answers_is_refused() -> None:
    model, guide = pair()
    data = batch()
    del data["labels"]
    for routed in (model, guide):
        with pytest.raises(ValueError, match=r"has \['attention_mask', 'input_ids'\].*\['labels'\] for CausalLM"):
            routed(data)
    with pytest.raises(ValueError, match=r"has \['labels'\]; expected inputs of the network"):
        model({"labels": torch.zeros(3, 5)})
    other = VariationalRouting(model.attachment, Classification("answer"))
    with pytest.raises(ValueError, match=r"\['answer'\] for Classification"):
        other(batch())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_is_refused_also_when_it_is_switched_on_later() -> None:
    model, guide = pair()
    model.network.gradient_checkpointing_enable()
    for attempt in (lambda: guide(batch()), lambda: VariationalRouting(model.attachment, CausalLM())):
        with pytest.raises(ValueError, match="gradient checkpointing runs layers again"):
            attempt()


def test_the_papers_penalty_warns_and_equals_minus_log_temperature() -> None:
    with pytest.warns(UserWarning, match="exploded"):
        prior = PaperTemperaturePrior()
    model, guide = pair("point_temperature", prior=prior, beta=0.5, kl_reduction="token_mean", selection="sample")
    data = batch()
    pyro.set_rng_seed(0)
    loss = TraceMeanField_ELBO().loss(model, guide, data)
    pyro.set_rng_seed(0)
    guide(data)
    model_trace, guide_trace = guide.get_traces()
    model_trace.compute_log_prob()
    mask = data["attention_mask"]
    penalty = sum(
        float(((guide_trace.nodes[n]["value"].detach() * mask).sum(1) / mask.sum(1)).sum())
        for n in ("route.0", "route.1")
    )
    assert loss == pytest.approx(-float(model_trace.nodes["y"]["log_prob_sum"].detach()) - 0.5 * penalty, rel=1e-5)


def test_classification_and_multiple_choice() -> None:
    data = batch()
    answers = {**data, "labels": torch.tensor([0, 2, 1])}
    model = VariationalRouting(attach(network()), MultipleChoice((5, 6, 7, 8)))
    trace = poutine.trace(model).get_trace(answers)
    with torch.no_grad():
        output = trace.nodes["_RETURN"]["value"].logits
    expected = torch.stack([output[i, t, 5:9] for i, t in enumerate((4, 2, 4))])
    torch.testing.assert_close(trace.nodes["y"]["fn"].logits.squeeze(1), expected.log_softmax(-1))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = network(), nn.Linear(32, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(self.body(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0])

    model = VariationalRouting(attach(Classifier()), Classification())
    guide = TokenRoutingGuide(model, "mean_field", trunk=4)
    assert math.isfinite(CVaR_ELBO(rho=1.0).loss(model, guide, answers))
    assert isinstance(guide.get_traces()[0].nodes["y"]["fn"], dist.Categorical)
