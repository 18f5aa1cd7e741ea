"""build_network: a network by its registered name; describe_network: the name and options of one that was built."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.networks.initial_weights import DrawsFrom
from pyro_smat.networks.outputs import as_features
from pyro_smat.registry import Choice, build, choose

_RECORD = "_pyro_smat_built_as"


def build_network(
    network: str | Choice,
    *,
    generator: torch.Generator | None = None,
    own: Mapping[str, Callable[..., Any]] | None = None,
    run_files: bool = False,
    saved_configuration: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A feature extractor by name, with random initial weights: images ``(n, C, H, W)`` in [0, 1] to ``(n, f)``.

    Preprocessing (size, value range, mean, standard deviation) is inside the network, heads are dropped, outputs become
    features by the rule of :mod:`pyro_smat.networks.outputs`, and names of parameters are those of the checkpoints.
    Nothing is downloaded.

    Args:
        network: "conv4", "mobilenet_v2", "resnet18", "vit", "vit_b_16", "timm:NAME", "torchvision:NAME",
            "transformers:NAME-or-folder", "file.py:build"; or a checked choice of one.
        generator: draws the initial weights, on the CPU, and leaves PyTorch's global random state alone; None draws
            from the global generator, as the constructors of ``torch.nn`` do.
        own: ``{"network": function}``, which takes the place of a "file.py:build".
        run_files: whether a "file.py:build" may be run; never what a saved folder names.
        saved_configuration: what :func:`~pyro_smat.networks.configuration.configuration_of` gave of the same network,
            in place of what its name stands for now; None looks there.
        options: of the network's constructor.

    Raises:
        ValueError: for a name that is not known, options that the constructor does not take, or a file that may not be
            run or doesn't make an ``nn.Module``.

    Example:
        >>> build_network("conv4", channels=8, image_size=32)(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 32])
    """
    if isinstance(network, Choice):
        if options:
            raise ValueError(f"options {sorted(options)} beside a choice, which has its own; expected one of the two")
        choice = network
    else:
        choice = choose("network", {"kind": network, **options}, own=own, run_files=run_files)
    with nullcontext() if generator is None else DrawsFrom(generator):
        module = build(choice, {"saved_configuration": saved_configuration})
    if not isinstance(module, nn.Module):
        raise ValueError(f"network {choice.kind!r} makes {type(module).__name__}; expected a torch.nn.Module")
    module.register_forward_hook(_pool)
    object.__setattr__(module, _RECORD, (choice, _fingerprint(module)))
    return module


def describe_network(module: nn.Module) -> Choice | None:
    """The registered name and options that a module was built with by :func:`build_network`.

    Returns:
        None for a module of the user's own, and for one whose layers were changed since.

    Example:
        >>> describe_network(build_network("conv4", channels=8)).options["channels"]
        8
    """
    choice, fingerprint = getattr(module, _RECORD, (None, None))
    return choice if choice is not None and fingerprint == _fingerprint(module) else None


def feature_dim(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Number of features f that a module makes of one image of shape ``(C, H, W)``, found by a forward pass of zeros.

    Raises:
        ValueError: when the module does not map ``(1, C, H, W)`` to ``(1, f)``.
    """
    parameter = next(module.parameters(), torch.empty(0))
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            features = module(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for part, mode in training.items():
            part.training = mode
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != 1:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{type(module).__name__} makes {found} of one image of shape {tuple(image_shape)}; "
            "expected (1, f): replace its classifier by torch.nn.Identity and flatten"
        )
    return features.shape[1]


def _pool(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    return as_features(output)


def _fingerprint(module: nn.Module) -> str:
    """What the layers of a module are and how large; not their values, dtype or device."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in module.state_dict(keep_vars=True).items()]
    return hashlib.sha256(f"{module!r} {shapes}".encode()).hexdigest()
