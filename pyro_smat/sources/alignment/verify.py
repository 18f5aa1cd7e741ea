"""The proof of permutation groups: moving all units at random must leave the network's outputs where they were."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pyro_smat.sources.alignment.spec import Permutations, PermutationSpec, permute, random_permutations


def check_groups(
    module: nn.Module, groups: PermutationSpec, inputs: Tensor, *, seed: int = 0, tolerance: float = 1e-8
) -> float:
    r"""Permute every group at random and compare outputs, :math:`\max |f_{\pi\theta}(x) - f_\theta(x)| / \max |f|`.

    Works in float64 on a copy whose weights are disturbed, so that no two units are alike: scales of one and biases of
    zero, as networks start with, would hide a tensor that a group forgot.

    Args:
        module: the network; its output is one tensor.
        groups: what is claimed to be interchangeable.
        inputs: a batch.
        seed: of the disturbance and the permutations.
        tolerance: largest relative deviation that passes for rounding.

    Returns:
        The deviation with all groups permuted at once.

    Raises:
        ValueError: when the groups do not fit the tensors, outputs are no finite tensor, or outputs change; the
            guilty groups are named.
    """
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(module).double().eval()
    state = {name: _disturbed(tensor, generator) for name, tensor in network.state_dict().items()}
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def outputs(permutations: Permutations) -> Tensor:
        network.load_state_dict(permute(state, groups, permutations))
        with torch.no_grad():
            result = network(inputs.clone())
        if not isinstance(result, Tensor) or not torch.isfinite(result).all():
            raise ValueError(f"{type(module).__name__} makes no finite tensor, so its groups cannot be checked")
        return result

    before = outputs({})
    scale = before.abs().max().item() or 1.0
    permutations = random_permutations(groups, generator)
    deviation = (outputs(permutations) - before).abs().max().item() / scale
    if deviation <= tolerance:
        return deviation
    alone = {name: (outputs({name: p}) - before).abs().max().item() / scale for name, p in permutations.items()}
    guilty = {name: value for name, value in alone.items() if value > tolerance} or alone
    raise ValueError(
        f"permuting these groups changes the outputs of {type(module).__name__}, relatively by: "
        + ", ".join(f"{name} {value:.1e}" for name, value in guilty.items())
        + f"; expected at most {tolerance:.0e}: a slot is missing or wrong"
    )


def _disturbed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Every entry scaled by a random factor in [1, 1.3), zeros replaced by small numbers; variances stay positive."""
    if not tensor.is_floating_point():
        return tensor
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    return torch.where(tensor == 0, 0.1 * (noise - 0.5), tensor * (1 + 0.3 * noise))
