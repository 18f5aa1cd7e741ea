"""Which of a network's tensors its features depend on, found by running it once without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from pyro_smat.networks.outputs import as_features
from pyro_smat.networks.skeletons import weightless_copy


@torch.no_grad()
def used_tensors(module: nn.Module, names: Sequence[str], image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Those of ``names`` without which there are no features: they are made NaN, and one image is NaN then.

    The module is left as it is. Values of its other tensors do not matter: NaN times zero is NaN.

    Args:
        module: maps ``(1, *image_shape)`` to features.
        names: of floating-point parameters and buffers.
        image_shape: ``(C, H, W)``.

    Returns:
        () also where nobody can say: weights on the meta device, a network that does not run, or that makes NaN anyway.

    Example:
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> used_tensors(module, ["1.bias"], (1, 2, 2))
        ('1.bias',)
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not names or any(tensor.is_meta for tensor in tensors.values()):
        return ()
    first = next(module.parameters())
    image = torch.rand(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(first)

    def is_finite_without(missing: Sequence[str]) -> bool:
        values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name in missing:
            values[name].fill_(torch.nan)
        return bool(as_features(functional_call(weightless_copy(module), values, (image,))).isfinite().all())

    try:
        if is_finite_without(names) or not is_finite_without([]):
            return ()
        return tuple(name for name in names if not is_finite_without([name]))
    except Exception:  # whatever a forward raises: it is run again where its features are wanted, and told there
        return ()
