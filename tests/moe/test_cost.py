"""FLOPs of routing heads: against formulas, and their share in Granite-3B-A800M's configuration."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from torch import nn

from pyro_smat.guides.moe_routing import RoutingHeads
from pyro_smat.moe import find_routers
from pyro_smat.moe.cost import active_parameters, count_flops, head_overhead, milliseconds
from pyro_smat.moe.priors import GaussianPrior


def test_flops_of_a_linear() -> None:
    with torch.device("meta"):
        layer, x = nn.Linear(8, 5), torch.zeros(3, 8)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 8 * 5


def test_active_parameters_of_mixtral() -> None:
    model = tiny("mixtral")
    config = model.config
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    attention = 32 * head_dim * (2 * 4 + 2 * 2)
    expert = 3 * 32 * 32
    layer = attention + 8 * 32 + 2 * expert + 2 * 32
    assert active_parameters(model) == 2 * layer + 32 + 64 * 32


def granite() -> nn.Module:
    """Granite 3.1 3B-A800M: 32 layers, 40 experts of which 8, hidden 1536."""
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    config = GraniteMoeConfig(
        vocab_size=49_155, hidden_size=1536, intermediate_size=512, num_hidden_layers=32, num_attention_heads=24,
        num_key_value_heads=8, num_local_experts=40, num_experts_per_tok=8, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        return GraniteMoeForCausalLM(config)


@pytest.mark.parametrize("family", ["mean_field", "full", "low_rank", "temperature"])
def test_heads_over_all_layers_of_granite_cost_at_most_one_percent(family: str) -> None:
    model = granite()
    assert 0.75e9 < active_parameters(model) < 0.95e9  # "A800M"
    routers = find_routers(model)
    assert len(routers) == 32
    with torch.device("meta"):
        heads = RoutingHeads(routers, family, trunk=64)

    def run_heads(tokens: int) -> None:
        hidden, logits = torch.zeros(tokens, 1536, device="meta"), torch.zeros(tokens, 40, device="meta")
        for router in routers:
            prior = GaussianPrior()(logits, router)
            if family == "temperature":
                prior = torch.distributions.Normal(logits[:, 0], torch.ones_like(logits[:, 0]), validate_args=False)
            heads(router.index, hidden, prior)

    overhead = head_overhead(model, run_heads)
    outputs = {"mean_field": 80, "full": 40 + 820, "low_rank": 80 + 160 + 10, "temperature": 2}[family]
    # The low-rank distribution itself multiplies its factor with itself, 2 x 40 x 16, as much as 10 outputs.
    assert overhead.heads == 32 * 2 * 64 * (1536 + outputs)
    assert 0 < overhead.share <= 0.01


def test_milliseconds_grow_with_work() -> None:
    small, large = torch.randn(20, 20), torch.randn(600, 600)
    assert milliseconds(lambda: small @ small) < milliseconds(lambda: large @ large)
