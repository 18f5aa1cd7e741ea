"""Prototype attention: the classes of a source look at each other, without positions, and are then averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.encoders.classes import class_statistics, mean_of_classes
from pyro_smat.encoders.encoder import Encoding, SourceContext, SupportEncoder
from pyro_smat.registry import register


@register("encoder", "prototype_attention")
class PrototypeAttentionEncoder(SupportEncoder):
    """One block of self-attention over the class prototypes of a source, then their mean.

    A class is a token: its prototype, its within-class variance and its size. Tokens carry no position, so classes
    have no order. Source: Lee et al. 2019, Set Transformer, eq. 6-7, with layer normalisation before each step.

    Args:
        feature_width: f.
        hidden: h.
        heads: number of attention heads; divides h.

    Raises:
        ValueError: when ``hidden`` is no multiple of ``heads``.
    """

    def __init__(self, feature_width: int, hidden: int = 64, heads: int = 4) -> None:
        super().__init__(hidden)
        if heads < 1 or hidden % heads:
            raise ValueError(
                f"hidden is {hidden} with {heads} heads; expected a multiple of a positive number of heads"
            )
        self.heads = heads
        self.token = nn.Linear(feature_width + 2, hidden)
        self.before_attention = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.before_mlp = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
        self.context = SourceContext(hidden)

    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Arguments as in :meth:`SupportEncoder.forward`; the score is zero."""
        classes = class_statistics(features, labels, mask, class_mask.shape[-1])
        extra = torch.stack([classes.spread, classes.size], dim=-1)
        tokens = self.token(torch.cat([classes.prototypes, extra], dim=-1))  # (B, R, W, h)
        tokens = tokens + self.attend(self.before_attention(tokens), class_mask)
        tokens = tokens + self.mlp(self.before_mlp(tokens))
        embedding = mean_of_classes(tokens, class_mask)
        return Encoding(embedding, score=torch.zeros_like(embedding[..., 0]))

    def attend(self, tokens: Tensor, class_mask: Tensor) -> Tensor:
        """Attention among the tokens ``(B, R, W, h)`` of a source; nobody looks at an absent class."""
        heads = self.query_key_value(tokens).unflatten(-1, (3 * self.heads, -1)).transpose(-2, -3)
        query, key, value = heads.chunk(3, dim=-3)  # each (B, R, heads, W, h / heads)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=class_mask[:, None, None, None, :])
        return self.output(seen.transpose(-2, -3).flatten(-2))
