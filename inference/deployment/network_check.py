"""The network at the border: what a module must be to be mixed, and why it does not run on images where it does not.

:meth:`RoutedClassifier.from_sources` and ``from_trained`` look before anything is computed, ``adapt`` where a network
fails on the images that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.memory import out_of_memory
from pyro_smat.networks.outputs import checked_features
from pyro_smat.networks.parameters import refuse_lazy

Shape = tuple[int, int, int]  # (C, H, W)
_SIZES = (32, 64, 128, 224)  # that a network is tried on which cannot run on smaller images


def checked_shape(image_shape: Any) -> Shape:
    """``(C, H, W)`` of square images with 1 or 3 channels.

    Raises:
        ValueError: for anything else.

    Example:
        >>> checked_shape([3, 32, 32])
        (3, 32, 32)
        >>> checked_shape(32)
        Traceback (most recent call last):
        ValueError: image_shape is 32; expected (channels, height, width) such as (3, 32, 32)
    """
    try:
        shape = tuple(int(extent) for extent in image_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape is {image_shape!r:.60}; expected (channels, height, width) such as (3, 32, 32)")
    channels, height, width = shape
    if height != width or channels not in (1, 3):
        raise ValueError(f"image_shape is {shape}; expected 1 or 3 channels and square images")
    return channels, height, width


def checked_module(network: Any) -> nn.Module:
    """A module whose weights can be mixed, as it is.

    Raises:
        ValueError: for the class of a module, a wrapper of data parallelism, layers that are lazy still, or no module.
    """
    if isinstance(network, type):
        raise ValueError(f"network is the class {network.__name__}; expected an instance: {network.__name__}(...)")
    if not isinstance(network, nn.Module):
        raise ValueError(f"network is a {type(network).__name__}, {network!r:.60}; expected a torch.nn.Module")
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"network is a {type(network).__name__}, which spreads one network over devices and cannot be run with "
            "other weights; expected the network inside: network.module (and of sources, source.module)"
        )
    refuse_lazy(network, "network")
    return network


def check_constants(network: nn.Module, composed: Sequence[str]) -> None:
    """Refuse a network without values for what is not composed, on the meta device."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    empty = sorted({name for name, tensor in tensors if tensor.is_meta} - {*composed})
    if empty:
        raise ValueError(
            f"network is on the meta device, so {empty[:3]} have no values, and no source gives them; expected a "
            "network that is made without torch.device('meta')"
        )


@torch.no_grad()
def check_runs(network: TaskNetwork, theta: Tensor, shape: Shape) -> None:
    """Run weights ``(d,)`` on blank images.

    Raises:
        ValueError: for a network that cannot run on such images, or gives no features ``(n, f)``.
    """
    blank = torch.zeros(2, *shape, device=theta.device)
    try:
        features = network(theta, blank)
    except RuntimeError as error:
        raise unfit_images(network, theta, shape, error) from error
    checked_features(features, len(blank))


def unfit_images(network: TaskNetwork, theta: Tensor, shape: Shape, error: RuntimeError) -> Exception:
    """What to raise when a network failed on images ``(C, H, W)``: the reason, as far as trying others shows one.

    Args:
        network, theta: that failed.
        shape: of the images.
        error: how; returned as it is where memory was short.
    """
    if out_of_memory(error):
        return error
    channels, height, width = shape
    others = [(4 - channels, height, width)]  # grey for RGB, RGB for grey
    others += [(c, size, size) for size in _SIZES if size > max(height, width) for c in (channels, 4 - channels)]
    told = f"the network cannot run on images {shape}: {type(error).__name__}: {error}"
    for other in others:
        if _runs(network, theta, other):
            return ValueError(f"{told}; it can on {other}: expected such images, and image_shape={other}")
    return ValueError(
        f"{told}; expected a module that takes images (n, {channels}, {height}, {width}) when it is called with them"
    )


@torch.no_grad()
def _runs(network: TaskNetwork, theta: Tensor, shape: Shape) -> bool:
    try:
        network(theta, torch.zeros(2, *shape, device=theta.device))
    except Exception:  # of a network of a person's own
        return False
    return True
