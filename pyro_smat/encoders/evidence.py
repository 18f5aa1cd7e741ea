"""Source evidence: for every frozen source, how well its features explain the support's labels.

Leave-one-out prototype loss, class separation, neighbours, ... Every number is a mean over shots or pairs of shots, so
no permutation of shots or class names changes it. The numbers need no training, and their first one is already a
score: the only encoder with a head start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_smat.encoders.classes import shot_sizes
from pyro_smat.encoders.encoder import Encoding, SourceContext, SupportEncoder
from pyro_smat.networks.heads import LeaveOneOut, class_sums
from pyro_smat.registry import register

EVIDENCE = (
    "leave-one-out loss / log way",
    "leave-one-out accuracy",
    "loss of the better half of the shots / log way",
    "standard deviation of the loss / log way",
    "margin of the own class",
    "entropy of the prediction / log way",
    "between-class share of the variance",
    "similarity of same-class pairs minus others",
    "share of nearest neighbours with the same label",
    "similarity of the nearest neighbour",
)
SCALE = 10.0
USUAL_SHOTS = 25.0  # brings sums over the shots of a support to the size of means
TIE = 1e-6  # similarities closer than this are equal: rounding must not break ties


def source_evidence(features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Tensor:
    """The numbers of :data:`EVIDENCE`, for every source.

    Args:
        features: ``(B, R, S, f)`` support features under the frozen sources.
        labels, mask: ``(B, S)``.
        class_mask: ``(B, W)``.

    Returns:
        ``(B, R, E)``, in the dtype of the features, float32 at least.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    dtype = features.dtype
    labels, mask, class_mask = labels.unsqueeze(1), mask.unsqueeze(1), class_mask.unsqueeze(1)
    shots = mask.to(dtype)  # (B, 1, S)
    count = shots.sum(-1).clamp(min=1)  # (B, 1)
    share = (shots / count.unsqueeze(-1)).unsqueeze(-1)  # of a shot in a mean over shots, (B, 1, S, 1)
    log_way = class_mask.sum(-1).clamp(min=2).to(dtype).log()  # (B, 1)

    left_out = LeaveOneOut(features, labels, mask, class_mask, "cosine")
    logits = left_out.logits(shots, SCALE)  # (B, R, S, W)
    log_p = logits.log_softmax(-1)
    own = labels.unsqueeze(-1).expand(*logits.shape[:-1], 1)
    loss = -log_p.gather(-1, own).squeeze(-1)
    others = logits.scatter(-1, own, -torch.inf).amax(-1)
    margin = (logits.gather(-1, own).squeeze(-1) - others).clamp(min=-2 * SCALE, max=2 * SCALE) / SCALE
    half = loss.masked_fill(~mask, torch.inf).sort(-1).values
    halves = (count / 2).ceil()
    worse = torch.arange(half.shape[-1], device=half.device) >= halves.unsqueeze(-1)
    better_half = half.masked_fill(worse, 0.0).sum(-1) / halves
    entropy = -(log_p.exp() * log_p).sum(-1)

    unit, similarity = left_out.shots, left_out.products  # (B, R, S, S)
    around = (unit - (unit * share).sum(-2, keepdim=True)) * shots.unsqueeze(-1)  # deviations from the centre
    sums, sizes = class_sums(around, labels, shots, class_mask.shape[-1])
    between = (sums.square().sum(-1) / sizes.clamp(min=1)).sum(-1) / count
    total = (around.square().sum((-1, -2)) / count).clamp(min=1e-6)

    same, pairs = left_out.same, left_out.pairs
    agreeing = same.to(dtype) / same.sum((-1, -2), keepdim=True).clamp(min=1)
    apart = (pairs ^ same).to(dtype)
    gap = similarity * (agreeing - apart / apart.sum((-1, -2), keepdim=True).clamp(min=1))
    closest = similarity.masked_fill(~pairs, -torch.inf)
    near = closest.amax(-1)
    nearest = pairs & (closest >= near.unsqueeze(-1) - TIE)  # all of them: a tie must not go to the first shot
    agreement = (nearest & same).sum(-1) / nearest.sum(-1).clamp(min=1)
    of_shots = [loss, (margin > TIE).to(dtype), margin, entropy, agreement.to(dtype), near.nan_to_num(neginf=0.0)]
    mean_loss, accuracy, *means = (torch.stack(of_shots, dim=-1) * share).sum(-2).unbind(-1)
    deviation = ((loss - mean_loss.unsqueeze(-1)).square() * share.squeeze(-1)).sum(-1).clamp(min=1e-8).sqrt()
    mean_margin, mean_entropy, mean_agreement, mean_near = means
    return torch.stack(
        [
            mean_loss / log_way,
            accuracy,
            better_half / log_way,
            deviation / log_way,
            mean_margin,
            mean_entropy / log_way,
            between / total,
            gap.sum((-1, -2)),
            mean_agreement,
            mean_near,
        ],
        dim=-1,
    )


@register("encoder", "evidence")
class EvidenceEncoder(SupportEncoder):
    """The numbers of :data:`EVIDENCE` and the size of the support, through one network for all sources.

    The score is minus trust x the first number: before any training the router already prefers the source that
    explains the support best.

    Args:
        hidden: h.
        trust: initial weight of the leave-one-out loss, in logits per unit of the loss over log way; learned.
        total: also look at the sum of the leave-one-out losses over shots, which grows with the support as a
            log-likelihood does, where all other numbers are means; its weight in the score is learned from 0.
    """

    def __init__(self, hidden: int = 64, trust: float = 8.0, total: bool = False) -> None:
        super().__init__(hidden)
        inputs = len(EVIDENCE) + 1 + total
        self.embed = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.context = SourceContext(hidden)
        self.trust = nn.Parameter(torch.tensor(float(trust)))
        self.total = total
        if total:
            self.trust_in_total = nn.Parameter(torch.tensor(0.0))

    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Arguments as in :func:`source_evidence`."""
        evidence = source_evidence(features, labels, mask, class_mask)
        shots = mask.sum(-1).to(evidence.dtype).view(-1, 1, 1)
        size = shot_sizes(shots).expand(*evidence.shape[:-1], 1)
        inputs, score = [evidence, size], -self.trust * evidence[..., 0]
        if self.total:
            total = shots * evidence[..., :1]  # (B, R, 1)
            inputs.append(total / USUAL_SHOTS)
            score = score - self.trust_in_total * total.squeeze(-1)
        return Encoding(self.embed(torch.cat(inputs, dim=-1)), score)
