r"""Ridge regression on one-hot labels, in the span of few weighted shots, with exact leave-one-out predictions.

.. math::
    \min_V \sum_i \rho_i \bigl\|V \hat f_i - (e_{y_i} - \tfrac1W)\bigr\|^2 + \lambda \|V\|^2, \qquad
    V = A^\top \hat F, \quad A = (\hat F \hat F^\top + \lambda\, \mathrm{diag}(1/\rho))^{-1} Y

for features :math:`\hat f` of length one. Leaving shot i out of the fit predicts
:math:`Y_i - A_i / [(\hat F \hat F^\top + \lambda\, \mathrm{diag}(1/\rho))^{-1}]_{ii}` for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SAY = 1e-6  # weight of a row that has none


def ridge_regression(features: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    r"""Fit.

    Args:
        features: :math:`\hat F` ``(*b, n, f)``.
        targets: ``(*b, n, W)``.
        weights: :math:`\rho` ``(*b, n)`` >= 0.
        penalty: :math:`\lambda` > 0.

    Returns:
        V ``(*b, W, f)``, and what each row is predicted as by the others ``(*b, n, W)``.

    Example:
        >>> rows, targets = torch.eye(3)[:2], torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
        >>> fitted, left_out = ridge_regression(rows, targets, torch.ones(2), penalty=1.0)
        >>> fitted
        tensor([[ 0.2500, -0.2500,  0.0000],
                [-0.2500,  0.2500,  0.0000]])
        >>> left_out.abs().max()  # orthogonal shots say nothing of each other
        tensor(0.)
    """
    kernel = features @ features.mT + torch.diag_embed(penalty / weights.clamp(min=LEAST_SAY))
    inverse = torch.linalg.inv_ex(kernel).inverse  # positive definite: nothing to check, which a device would wait for
    dual = inverse @ targets
    left_out = targets - dual / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return dual.mT @ features, left_out
