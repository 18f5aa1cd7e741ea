"""Blocks of experts as other libraries shape them: a plain one, and gates with their contracts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """hidden (B, L, H) -> weights of experts from ``route`` -> mixture."""

    def __init__(self, hidden: int = 8, num_experts: int = 5, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.experts = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(num_experts))
        self.shared_expert_gate = nn.Linear(hidden, 1)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        weights, index = self.route(tokens)
        outputs = torch.stack([expert(tokens) for expert in self.experts], 1)
        chosen = outputs.gather(1, index.unsqueeze(-1).expand(-1, -1, outputs.shape[-1]))
        return (weights.unsqueeze(-1) * chosen).sum(1).view_as(hidden) + self.shared_expert_gate(hidden).sigmoid()


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    kept, index = logits.topk(k, -1)
    return kept.softmax(-1), index


class PlainBlock(Block):
    """gate = nn.Linear in the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, self.num_experts)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return top(self.gate(tokens), self.top_k)


class LearnedRouter(nn.Module):
    """As megablocks: ``layer``; scores, weights, indices."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k, self.layer = 2, nn.Linear(8, 5, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.layer(tokens.view(-1, tokens.shape[-1])).softmax(-1)
        return scores, *scores.topk(self.top_k, -1)


class TokenChoiceTopKRouter(nn.Module):
    """As torchtitan: ``gate``; sigmoid scores, a bias for the choice only, counts."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k, self.gate = 2, nn.Linear(8, 5, bias=False)

    def forward(self, tokens: Tensor, expert_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.gate(tokens).sigmoid()
        index = (scores + expert_bias).topk(self.top_k, -1).indices
        return scores.gather(-1, index), index, torch.bincount(index.flatten(), minlength=5)


class TopKRouter(nn.Module):
    """As Megatron: ``gating(x) -> logits`` and ``routing(logits)``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.topk = 5, 2
        self.weight = nn.Parameter(torch.randn(5, 8))

    def gating(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight)

    def routing(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return top(logits, self.topk)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.routing(self.gating(tokens))


class TopKGate(nn.Module):
    """As DeepSpeed: ``wg``; auxiliary loss, combine weights (T, E), dispatch mask, counts."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.wg = 2, nn.Linear(8, 5, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = self.wg(tokens.float())
        gates = logits.softmax(-1)
        weights, index = gates.topk(self.k, -1)
        combine = torch.zeros_like(gates).scatter(-1, index, weights / weights.sum(-1, keepdim=True))
        mask = combine > 0
        return (gates.mean(0) * mask.float().mean(0)).sum() * 5, combine, mask, mask.sum(0)


class LinearTopKGate(nn.Module):
    """As Tutel: forward is ``hidden -> logits``, ``wg`` a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k, self.wg = 2, nn.Linear(8, 5, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.wg(tokens)


class OwnRouter(nn.Module):
    """The documented protocol: one method, ``expert_logits``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 5
        self.net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 5))

    def expert_logits(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return top(self.expert_logits(tokens), 2)


class RoutedBlock(Block):
    """A block with one of these routers."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.router, TokenChoiceTopKRouter):
            return self.router(tokens, torch.linspace(-0.3, 0.3, 5))[:2]
        result = self.router(tokens)
        if isinstance(self.router, LearnedRouter):
            return result[1:]
        if isinstance(self.router, TopKGate):
            return result[1].topk(2, -1)
        return top(result, 2) if isinstance(result, Tensor) else result


GATES = (LearnedRouter, TokenChoiceTopKRouter, TopKRouter, TopKGate, LinearTopKGate, OwnRouter)


def block(kind: type[nn.Module]) -> nn.Module:
    """A block in a network, random but always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(PlainBlock() if kind is PlainBlock else RoutedBlock(kind()))
