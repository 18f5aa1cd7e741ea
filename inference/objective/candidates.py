"""Candidates: how well each of J given routings does on every episode, on the queries or on the support alone.

The routings of a catalog or of a search -> losses of every (routing, episode) pair, by which catalogs are chosen,
posteriors calibrated and routers taught. Networks run as they are deployed and without gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import AnyBasis
from pyro_smat.networks.composition import compose
from pyro_smat.networks.heads import leave_one_out_loss

CHUNK_BYTES = 256 * 2**20  # task parameters and features of the networks that are composed at a time


@contextmanager
def as_deployed(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode and without gradient inside the context; every submodule's mode is restored."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def candidate_log_likelihoods(
    model: RoutedModel,
    batch: EpisodeBatch,
    coefficients: Tensor,
    chunk: int | None = None,
    basis: AnyBasis | None = None,
) -> Tensor:
    """log p(y | x, S, A_j) of every query under every routing, in nats.

    Args:
        model: runs as deployed; its mode is restored.
        batch: B episodes.
        coefficients: ``(J, C)`` routings; ``(J, L, C)`` where the model mixes in L > 1 blocks.
        chunk: routings at a time; default as many as fit into 256 MiB.
        basis: the model's deployed basis, to spare computing it again.

    Returns:
        ``(J, B, Q)``; meaningless where ``batch.query.mask`` is False.

    Raises:
        ValueError: for coefficients of another shape.
    """
    _check_coefficients(model, coefficients)
    with as_deployed(model):
        basis = model.basis() if basis is None else basis
        labels = batch.query.labels.unsqueeze(-1)
        parts = []
        for rows in coefficients.to(basis.device).split(chunk or _chunk(basis, batch)):
            log_p = model.logits(rows.unsqueeze(1), batch, basis).log_softmax(-1)  # (j, B, Q, W)
            parts.append(log_p.gather(-1, labels.expand(*log_p.shape[:-1], 1)).squeeze(-1))
        return torch.cat(parts)


def candidate_losses(
    model: RoutedModel,
    batch: EpisodeBatch,
    coefficients: Tensor,
    chunk: int | None = None,
    basis: AnyBasis | None = None,
) -> Tensor:
    """Mean negative log-likelihood of the queries under every routing, ``(J, B)`` in nats per query.

    Arguments and errors as in :func:`candidate_log_likelihoods`.
    """
    log_p = candidate_log_likelihoods(model, batch, coefficients, chunk, basis)
    mask = batch.query.mask.to(log_p.device)
    return -torch.where(mask, log_p, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def support_candidate_losses(
    model: RoutedModel,
    batch: EpisodeBatch,
    coefficients: Tensor,
    chunk: int | None = None,
    basis: AnyBasis | None = None,
) -> Tensor:
    """Leave-one-out prototype loss of the support under every composed network, ``(J, B)`` in nats per shot.

    What can be known of a routing without seeing a query label: a teacher for routers. Arguments and errors as in
    :func:`candidate_log_likelihoods`; the loss is :func:`pyro_smat.networks.heads.leave_one_out_loss` at the model's
    scale.
    """
    _check_coefficients(model, coefficients)
    with as_deployed(model):
        basis = model.basis() if basis is None else basis
        episodes, shots = batch.support.labels.shape
        images = batch.support.images.flatten(0, 1)
        parts = []
        for rows in coefficients.to(basis.device).split(chunk or _chunk(basis, batch)):
            features = model.network.shared(compose(rows, basis, model.network.space), images)
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            parts.append(
                leave_one_out_loss(
                    features.unflatten(1, (episodes, shots)),
                    batch.support.labels,
                    batch.support.mask,
                    batch.class_mask,
                    model.scale,
                    model.metric,
                )
            )
        return torch.cat(parts)


def _check_coefficients(model: RoutedModel, coefficients: Tensor) -> None:
    blocks = len(model.network.space.block_names)
    expected = 2 if blocks == 1 else 3
    if coefficients.ndim != expected or (blocks > 1 and coefficients.shape[1] != blocks):
        raise ValueError(
            f"coefficients of the candidates have shape {tuple(coefficients.shape)}; expected "
            + ("(J, R + M)" if blocks == 1 else f"(J, {blocks}, R + M): the model mixes in {blocks} blocks")
        )


def _chunk(basis: AnyBasis, batch: EpisodeBatch) -> int:
    """Routings at a time: room for their task parameters, and for features as large as the images."""
    images = batch.support.images.numel() + batch.query.images.numel()
    return max(1, CHUNK_BYTES // (basis.element_size() * (basis.shape[-1] + images)))
