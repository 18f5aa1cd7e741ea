"""Batch normalisation's running statistics, measured anew on the network that was composed.

A mixture of running means and variances is not the mean and variance of the mixture: the activations of mixed networks
shrink (Jordan et al. 2022, "REPAIR"). State dict and calibration images in; state dict with measured statistics out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.sources.alignment.loading import loaded

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def recompute_statistics(
    module: nn.Module, state: Mapping[str, Tensor], images: Tensor, *, batch_size: int = 128
) -> dict[str, Tensor]:
    """The state dict with the running mean and variance that every batch normalisation sees on the images.

    Batch normalisation layers normalise by the batch while the images pass, all other layers are in evaluation mode.
    Running statistics become the mean and the unbiased variance of everything that arrived, pooled over batches.

    Args:
        module: the network, for its layers; it is not changed.
        state: composed weights; those of a flat theta are ``space.unflatten(theta)``.
        images: calibration images, at least 2.
        batch_size: images in a batch at least, where there are as many; batches are evened out.

    Returns:
        A new dict; a network without batch normalisation comes back as it was.

    Raises:
        ValueError: when the weights do not fit the module, or for fewer than 2 images or a batch size below 2.
    """
    if len(images) < 2 or batch_size < 2:
        raise ValueError(f"{len(images)} images in batches of {batch_size}; expected at least 2 of each")
    network = loaded(module, state)
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None
    }
    pools = {name: _Pool() for name in layers}
    for name, layer in layers.items():
        layer.train()
        layer.momentum = 0.0  # what the layer itself would keep is not used
        layer.register_forward_pre_hook(pools[name].see)
    with torch.no_grad():
        for batch in images.tensor_split(max(1, len(images) // batch_size)):
            network(batch.clone())
    result = dict(state)
    for name, pool in pools.items():
        if pool.count == 0:
            continue  # a layer that does not run keeps what it has
        for key, value in zip(("running_mean", "running_var"), pool.statistics(), strict=True):
            result[f"{name}.{key}"] = value.to(result[f"{name}.{key}"])
    return result


class _Pool:
    """Count, mean and sum of squared deviations of each channel, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def see(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1).double()  # (channels, samples)
        count, mean = values.shape[1], values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        total, shift = self.count + count, mean - self._mean
        self._squares = self._squares + squares + shift.square() * self.count * count / total
        self._mean = self._mean + shift * count / total
        self.count = total

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self._mean, self._squares / max(self.count - 1, 1)
