r"""Source selection: non-negative weights of the sources' features under which the support classifies itself best.

.. math::
    \phi_v(x) = \left[\sqrt{v_r}\, f_r(x) / \|f_r(x)\|\right]_r, \qquad
    \min_{v \in \Delta_R} \frac1n \sum_i -\log \mathrm{softmax}_k\left(s \cos(\phi_v(x_i), p_k)\right)_{y_i}

with :math:`p_k` the mean of :math:`\phi_v` over the shots of class k, the shot itself included. Source: Dvornik et al.
2020, "Selecting Relevant Features from a Multi-domain Representation" (SUR), section 3.2; the cosine knows no scale, so
that weights on the simplex are all that there are. Needs inner products of shots alone, never the wide features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, LEARNING_RATE = 40, 0.2  # of Adam, on the logarithms of the weights


def selected_weights(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    scale: float,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
) -> Tensor:
    """Weights v ``(B, R)`` of the sources, each at least 0, sum 1.

    Args:
        features: ``(B, R, S, f)`` of the support under every source.
        labels, mask: ``(B, S)``.
        class_mask: ``(B, W)``.
        scale: s > 0.
        steps, learning_rate: of Adam, from equal weights.

    Example:
        >>> labels = torch.tensor([[0, 0, 1, 1]])
        >>> tells_apart = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
        >>> blind = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
        >>> features = torch.stack([tells_apart, blind]).unsqueeze(0)
        >>> weights = selected_weights(features, labels, labels >= 0, torch.ones(1, 2).bool(), 10.0)
        >>> bool(weights[0, 0] > 0.9)
        True
    """
    unit = F.normalize(features, dim=-1)
    gram = unit @ unit.mT  # (B, R, S, S)
    member = F.one_hot(labels, class_mask.shape[-1]).to(gram) * mask.unsqueeze(-1)
    share = (member / member.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)  # (B, 1, S, W)
    to_class = gram @ share  # (B, R, S, W)
    squares = (share * to_class).sum(-2)  # (B, R, W), of the prototypes
    count = mask.sum(-1).clamp(min=1)

    def losses(logits: Tensor) -> Tensor:
        v = logits.softmax(-1)
        products = torch.einsum("br,brsw->bsw", v, to_class)
        lengths = torch.einsum("br,brw->bw", v, squares).clamp(min=1e-12).sqrt()
        scores = (scale * products / lengths.unsqueeze(1)).masked_fill(~class_mask.unsqueeze(1), -1e4)
        own = scores.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return -(own * mask).sum(-1) / count

    with torch.enable_grad():
        logits = gram.new_zeros(gram.shape[:2]).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=learning_rate)
        for _ in range(steps):
            (logits.grad,) = torch.autograd.grad(losses(logits).sum(), logits)
            optimizer.step()
    return logits.detach().softmax(-1)
