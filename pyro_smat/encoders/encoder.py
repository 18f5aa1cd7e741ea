"""What every support-set encoder is: support features -> one vector and one score a source.

Sits between the frozen source features and the guide. A family of encoders says how a source is described on its own
(:meth:`SupportEncoder.encode_alone`); the view of the other sources is the same for all families. No encoder changes
its answer with the order of shots, the names of the classes, padding or the rest of the batch; permuting the sources
permutes the answer; and no parameter belongs to a source, so that a source can be added to a trained encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pyro_smat.registry import Remembered


@dataclass(frozen=True)
class Encoding:
    """What an encoder knows about the sources after seeing a support set.

    Attributes:
        embedding: ``(B, R, h)``, one vector a source.
        score: ``(B, R)``, a head start for the logits of the sources, in logits; zeros where there is none.
    """

    embedding: Tensor
    score: Tensor


class SourceContext(nn.Module):
    """Every source in the context of all: embeddings ``(B, R, h)`` -> ``(B, R, h)``, equivariant in the sources.

    One network reads the own vector beside the mean and the maximum over the sources. Source: Zaheer et al. 2017,
    Deep Sets, section 3.1 (equivariant layers).

    Args:
        hidden: h.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.combine = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())

    def forward(self, own: Tensor) -> Tensor:
        """Embeddings ``(B, R, h)``, in and out."""
        context = torch.cat([own.mean(1, keepdim=True), own.amax(1, keepdim=True)], dim=-1)
        return self.combine(torch.cat([own, context.expand(*own.shape[:-1], -1)], dim=-1))


class SupportEncoder(Remembered, nn.Module, ABC):
    """Support features -> :class:`Encoding`; families implement :meth:`encode_alone` and set ``context``.

    Args:
        hidden: h, the width of the embedding.
    """

    context: SourceContext

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    @abstractmethod
    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Every source by itself, blind to the others; arguments as in :meth:`forward`, zeros at hidden shots."""

    def forward(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Every source in the context of the others.

        Args:
            features: ``(B, R, S, f)`` support features under the frozen sources, any floating dtype.
            labels: ``(B, S)`` long in [0, W); entries that ``mask`` hides may hold anything in that range.
            mask: ``(B, S)`` bool, True where the shot is real.
            class_mask: ``(B, W)`` bool, True for the classes that an episode has, each with at least one shot.

        Returns:
            Embedding ``(B, R, h)`` and score ``(B, R)``, in the dtype of the features, float32 at least.
        """
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        features = features.masked_fill(~mask[:, None, :, None], 0.0)  # 0 x inf is NaN: weights cannot hide padding
        alone = self.encode_alone(features, labels, mask, class_mask)
        return replace(alone, embedding=self.in_context(alone.embedding))

    def in_context(self, embedding: Tensor) -> Tensor:
        """Embeddings ``(B, R, h)`` of every source alone -> in the context of all."""
        return self.context(embedding)
