"""MiniLM with a mixture of experts in every layer, upcycled from its feed-forward networks, and a head of four options.

Exact at the start: every expert is a copy and the weights of the chosen sum to one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEP = 102


class MiniLMRouter(nn.Module):
    """(T, H) -> logits (T, E), weights (T, k) and experts (T, k): softmax of the k largest logits."""

    def __init__(self, hidden: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.hidden_dim = num_experts, top_k, hidden
        self.weight = nn.Parameter(0.02 * torch.randn(num_experts, hidden))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.weight.float())
        kept, index = logits.topk(self.top_k, -1)
        return logits, kept.softmax(-1), index


class Experts(nn.Module):
    """E feed-forward networks; grouped matrix products on a GPU, one expert after another elsewhere."""

    def __init__(self, hidden: int, width: int, num_experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.up_bias = nn.Parameter(torch.empty(num_experts, width))
        self.down = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down_bias = nn.Parameter(torch.empty(num_experts, hidden))

    def forward(self, tokens: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """(T, H), (T, k), (T, k) -> (T, H)."""
        k = index.shape[1]
        order = index.flatten().argsort(stable=True)
        rows = order // k
        expert = index.flatten()[order]
        x = tokens[rows]
        if tokens.is_cuda:
            counts = torch.bincount(expert, minlength=len(self.up))
            offsets = counts.cumsum(0).to(torch.int32)
            x = x.bfloat16()
            h = F.gelu(_grouped(x, self.up, offsets) + self.up_bias[expert].bfloat16())
            y = _grouped(h, self.down, offsets) + self.down_bias[expert].bfloat16()
        else:
            parts = []
            for e, part in enumerate(x.split(torch.bincount(expert, minlength=len(self.up)).tolist())):
                h = F.gelu(F.linear(part, self.up[e], self.up_bias[e]))
                parts.append(F.linear(h, self.down[e], self.down_bias[e]))
            y = torch.cat(parts)
        y = y.float() * weights.flatten()[order].unsqueeze(1).float()
        return torch.zeros_like(tokens, dtype=torch.float32).index_add(0, rows, y).to(tokens.dtype)


def _grouped(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    return product(x, weight.bfloat16().transpose(-2, -1), offs=offsets)


class MoEBlock(nn.Module):
    """(B, L, H) -> (B, L, H)."""

    def __init__(self, hidden: int, width: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.router = MiniLMRouter(hidden, num_experts, top_k)
        self.experts = Experts(hidden, width, num_experts)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        tokens = hidden.flatten(0, 1)
        logits, weights, index = self.router(tokens)
        return self.experts(tokens, index, weights).view_as(hidden), logits


class Layer(nn.Module):
    """BERT's layer, normalised after each residual."""

    def __init__(self, hidden: int, heads: int, width: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.norm, self.moe_norm = nn.LayerNorm(hidden, 1e-12), nn.LayerNorm(hidden, 1e-12)
        self.moe = MoEBlock(hidden, width, num_experts, top_k)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            f(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        hidden = self.norm(hidden + self.output(attended.transpose(1, 2).flatten(2)))
        mixed, logits = self.moe(hidden)
        return self.moe_norm(hidden + mixed), logits


class MiniLMMoE(nn.Module):
    """Tokens -> logits of the four options: read at the separator that ends each, plus a scaled cosine of the mean
    states of option and gloss (MiniLM is a sentence encoder: that alone answers half of the questions untrained).

    Args:
        weights: of MiniLM, by their Hugging Face names.
        layers: how many of its layers.
        num_experts, top_k: of every layer.
        heads: attention heads.
    """

    def __init__(
        self, weights: Mapping[str, np.ndarray], layers: int = 6, num_experts: int = 16, top_k: int = 2, heads: int = 12
    ) -> None:
        super().__init__()
        vocabulary, hidden = weights["embeddings.word_embeddings.weight"].shape
        positions = len(weights["embeddings.position_embeddings.weight"])
        width = len(weights["encoder.layer.0.intermediate.dense.bias"])
        self.words, self.positions = nn.Embedding(vocabulary, hidden), nn.Embedding(positions, hidden)
        self.segment = nn.Parameter(torch.empty(hidden))
        self.norm = nn.LayerNorm(hidden, 1e-12)
        self.layers = nn.ModuleList(Layer(hidden, heads, width, num_experts, top_k) for _ in range(layers))
        self.score = nn.Linear(hidden, 1)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self._load(weights)

    @torch.no_grad()
    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        def get(name: str) -> Tensor:
            return torch.from_numpy(np.asarray(weights[name], dtype=np.float32))

        def linear(module: nn.Module, name: str) -> None:
            module.weight.copy_(get(f"{name}.weight"))
            module.bias.copy_(get(f"{name}.bias"))

        self.words.weight.copy_(get("embeddings.word_embeddings.weight"))
        self.positions.weight.copy_(get("embeddings.position_embeddings.weight"))
        self.segment.copy_(get("embeddings.token_type_embeddings.weight")[0])
        linear(self.norm, "embeddings.LayerNorm")
        for i, layer in enumerate(self.layers):
            name = f"encoder.layer.{i}"
            for part in ("query", "key", "value"):
                linear(getattr(layer, part), f"{name}.attention.self.{part}")
            linear(layer.output, f"{name}.attention.output.dense")
            linear(layer.norm, f"{name}.attention.output.LayerNorm")
            linear(layer.moe_norm, f"{name}.output.LayerNorm")
            experts = layer.moe.experts
            experts.up.copy_(get(f"{name}.intermediate.dense.weight").expand_as(experts.up))
            experts.up_bias.copy_(get(f"{name}.intermediate.dense.bias").expand_as(experts.up_bias))
            experts.down.copy_(get(f"{name}.output.dense.weight").expand_as(experts.down))
            experts.down_bias.copy_(get(f"{name}.output.dense.bias").expand_as(experts.down_bias))

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """States (B, L, H) and router logits, one (B L, E) a layer."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.norm(self.words(input_ids) + self.positions(places) + self.segment)
        routed = []
        for layer in self.layers:
            hidden, logits = layer(hidden, attention_mask.bool())
            routed.append(logits)
        return hidden, routed

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.answer(self.encode(input_ids, attention_mask)[0], input_ids)

    def answer(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """(B, L, H) -> (B, 4)."""
        is_end = (input_ids == SEP).long()
        part = is_end.cumsum(1) - is_end  # 0 the gloss, 1 to 4 the options, 5 padding
        member = F.one_hot(part, 6)[..., :5].to(hidden.dtype)
        means = member.transpose(1, 2) @ hidden / member.sum(1).unsqueeze(-1)
        similarity = F.cosine_similarity(means[:, 1:].float(), means[:, :1].float(), dim=-1)
        ends = is_end.nonzero()[:, 1].view(len(input_ids), 5)[:, 1:]
        states = hidden.gather(1, ends.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return self.score(states).squeeze(-1).float() + self.scale * similarity


def balance_loss(routed: list[Tensor], mask: Tensor, top_k: int) -> Tensor:
    """E sum_e (share of tokens) x (mean probability), averaged over layers; padding left out (Switch, eq. 4)."""
    keep, total = mask.bool().flatten(), torch.zeros((), device=mask.device)
    for logits in routed:
        p = logits[keep].softmax(-1)
        share = F.one_hot(p.topk(top_k, -1).indices, p.shape[-1]).sum(1).float().mean(0) / top_k
        total = total + p.shape[-1] * (share * p.mean(0)).sum()
    return total / len(routed)
