r"""Composition: coefficients x basis = task parameters, and the network that runs on them.

    theta_T = sum_r w_r theta^(r) + sum_m alpha_m (z_m * theta_delta)  =  c @ basis

One flat matrix, one GEMM; parameter tensors are views of theta; all task networks run in one vmapped forward.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.networks.task_layers import with_task_layers

CPU_CHUNK_BYTES = 32 * 2**20  # activations of one chunk on a CPU: small chunks stay in cache and out of page faults
CPU_MEMORY_LIMIT = 8 * 2**30


def compose(coefficients: Tensor, basis: Tensor, space: ParameterSpace | None = None) -> Tensor:
    """Task parameters ``theta = c B``, one GEMM.

    Args:
        coefficients: ``(*b, C)`` with C = R + M; or ``(*b, L, C)``, one mixture for each of the L blocks of ``space``.
        basis: ``(C, d)``, rows are sources and masked experts.
        space: needed for blockwise coefficients: its blocks are column slices of the basis.

    Returns:
        ``(*b, d)`` in the dtype of ``basis``.

    Raises:
        ValueError: when C or L do not match.

    Example:
        >>> compose(torch.tensor([0.25, 0.75]), torch.tensor([[0.0, 4.0], [4.0, 8.0]]))
        tensor([3., 7.])
    """
    if coefficients.shape[-1] != basis.shape[0]:
        raise ValueError(
            f"coefficients have {coefficients.shape[-1]} columns and the basis {basis.shape[0]} rows; "
            "expected one coefficient for each source and expert"
        )
    coefficients = coefficients.to(basis.dtype)
    if space is None or len(space.block_names) == 1:
        return coefficients @ basis
    blocks = len(space.block_names)
    if coefficients.ndim < 2 or coefficients.shape[-2] != blocks:
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}; blockwise mixing expects (*b, {blocks}, C), "
            f"one row for each block of {space.block_names}"
        )
    slices = basis.split(space.block_sizes, dim=-1)
    return torch.cat([coefficients[..., i, :] @ columns for i, columns in enumerate(slices)], dim=-1)


class TaskNetwork:
    """A network whose weights are an argument: T task networks in one vmapped forward.

    ``TaskNetwork(module, space)(theta, x)`` maps theta ``(*b, d)`` and x ``(*b, n, *input)`` to ``(*b, n, *output)``
    for any leading dims ``*b`` (particles, episodes). The network runs in evaluation mode, in
    the dtype of theta (compose straight into the compute dtype instead of using autocast).

    Args:
        module: the template; its weights are not used and not kept, but those of a head that the space leaves out.
        space: its parameter space.
        memory_limit: bytes that activations may take. Tasks are run in chunks that fit; when a gradient is wanted and
            all chunks together do not fit, every chunk is recomputed in the backward pass. Default: 8 GiB on a CPU,
            half of the free memory on a GPU.
        recompute: True or False to force recomputing chunks in the backward pass; None decides by ``memory_limit``.
        compile: pass the vmapped network through torch.compile; on a GPU, switch cuDNN's attention off for that
            (``torch.backends.cuda.enable_cudnn_sdp(False)``), its compiled backward fails.
    """

    def __init__(
        self,
        module: nn.Module,
        space: ParameterSpace,
        *,
        memory_limit: int | None = None,
        recompute: bool | None = None,
        compile: bool = False,
    ) -> None:
        self.space = space
        self.memory_limit = memory_limit
        self.recompute = recompute
        template = copy.deepcopy(module).eval().requires_grad_(False)
        composed = set(space.names)
        rest = [*template.named_parameters(), *template.named_buffers()]
        self._constants = {k: v.detach().clone() for k, v in rest if k not in composed}
        self._template = template.to("meta")
        self._differentiable = _with_differentiable_statistics(copy.deepcopy(self._template))
        self._opaque = [name for name, part in self._differentiable.named_modules() if _tracks_statistics(part)]
        self._batched = with_task_layers(copy.deepcopy(self._differentiable))
        self._run = torch.compile(self._vmapped) if compile else self._vmapped
        self._bytes_per_image: dict[tuple[torch.Size, torch.dtype], int] = {}

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        leading = theta.shape[:-1]
        if x.shape[: len(leading)] != leading or x.ndim <= len(leading) + 1:
            raise ValueError(
                f"theta is {tuple(theta.shape)} and x {tuple(x.shape)}; expected (*b, d) and (*b, n, *input) "
                "with the same leading dims *b (x.expand them where tasks share images)"
            )
        tasks = prod(leading)
        theta = theta.reshape(tasks, -1)
        x = x.reshape(tasks, *x.shape[len(leading) :]).to(theta.dtype)
        recompute = self._recomputes(theta, tasks * x.shape[1] * self._activation_bytes(x))
        result = self._in_chunks(theta, x, recompute)
        return result.unflatten(0, leading) if leading else result.squeeze(0)

    def shared(self, theta: Tensor, x: Tensor) -> Tensor:
        """All networks on the same images: theta ``(*k, d)`` and x ``(n, *input)`` to ``(*k, n, *output)``.

        What calling with ``x.expand(*k, ...)`` gives, but n may be large: a piece of the images at a time.
        """
        leading = theta.shape[:-1]
        tasks = prod(leading)
        theta, x = theta.reshape(tasks, -1), x.to(theta.dtype)
        per_image = self._activation_bytes(x.unsqueeze(0))
        recompute = self._recomputes(theta, tasks * len(x) * per_image)
        piece = max(1, self._limits(theta)[1] // max(per_image, 1))
        outputs = [self._in_chunks(theta, part.expand(tasks, *part.shape), recompute) for part in x.split(piece)]
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return result.unflatten(0, leading) if leading else result.squeeze(0)

    def _in_chunks(self, theta: Tensor, x: Tensor, recompute: bool) -> Tensor:
        """Outputs ``(T, n, *output)`` of T tasks, as many of them at a time as the memory allows."""
        if self._opaque and torch.is_grad_enabled() and theta.requires_grad:
            raise ValueError(
                f"modules {self._opaque} have running statistics and a forward of their own, which has no gradient in "
                "the statistics; expected plain BatchNorm or InstanceNorm layers: replace them, or run without gradient"
            )
        per_task = x.shape[1] * self._activation_bytes(x)
        chunk = max(1, min(len(theta), self._limits(theta)[1] // max(per_task, 1)))
        outputs = []
        for rows, images in zip(theta.split(chunk), x.split(chunk), strict=True):
            if recompute:
                outputs.append(checkpoint(self._forward, rows, images, use_reentrant=False))
            else:
                outputs.append(self._forward(rows, images))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _forward(self, theta: Tensor, x: Tensor) -> Tensor:
        constants = {
            k: v.to(theta.device, theta.dtype if v.is_floating_point() else v.dtype) for k, v in self._constants.items()
        }

        with _batchable_attention(theta.device):
            if theta.shape[0] > 1:
                return self._run(theta, x, constants)
            # A single task needs no batching rule: plain kernels, bit for bit.
            template = self._differentiable if torch.is_grad_enabled() and theta.requires_grad else self._template
            weights = self.space.unflatten(theta[0])
            return functional_call(template, (weights, constants), (x[0],), strict=True).unsqueeze(0)

    def _vmapped(self, theta: Tensor, x: Tensor, constants: dict[str, Tensor]) -> Tensor:
        def one_task(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self._batched, (weights, constants), (images,), strict=True)

        return vmap(one_task)(self.space.unflatten(theta), x)

    def _limits(self, theta: Tensor) -> tuple[int, int]:
        """Bytes that all activations, and those of one chunk, may take."""
        limit = self.memory_limit
        if limit is None:
            limit = _free_memory(theta.device) // 2 if theta.is_cuda else CPU_MEMORY_LIMIT
        return limit, limit if theta.is_cuda else min(limit, CPU_CHUNK_BYTES)

    def _recomputes(self, theta: Tensor, total: int) -> bool:
        """Whether chunks are recomputed in the backward pass, when all activations take ``total`` bytes."""
        needs_gradient = torch.is_grad_enabled() and theta.requires_grad
        return needs_gradient and total > self._limits(theta)[0] if self.recompute is None else self.recompute

    def _activation_bytes(self, x: Tensor) -> int:
        """Bytes that the outputs of all leaf modules take for one image, measured once on the meta device."""
        key = (x.shape[2:], x.dtype)
        if key not in self._bytes_per_image:
            total = 0

            def count(module: nn.Module, inputs: object, output: object) -> None:
                nonlocal total
                if isinstance(output, Tensor):
                    total += output.numel() * x.element_size()

            leaves = [m for m in self._template.modules() if not list(m.children())]
            hooks = [leaf.register_forward_hook(count) for leaf in leaves]
            try:
                with torch.no_grad(), _batchable_attention(torch.device("meta")):
                    dtype = next(self._template.parameters()).dtype
                    self._template(torch.empty((1, *x.shape[2:]), device="meta", dtype=dtype))
            finally:
                for hook in hooks:
                    hook.remove()
            self._bytes_per_image[key] = 2 * total  # and as much again for what the operations inside keep
        return self._bytes_per_image[key]


def _free_memory(device: torch.device) -> int:
    """Bytes free on a GPU, with those that PyTorch's allocator keeps for reuse."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


class _EvaluationBatchNorm(nn.Module):
    """Batch or instance normalisation by running statistics, differentiable in them (PyTorch's own is not).

    Running statistics are mixed like weights, so the gradient of the coefficients flows through them too.
    """

    def __init__(self, module: nn.modules.batchnorm._NormBase) -> None:
        super().__init__()
        self.eps = module.eps
        self._parameters, self._buffers = module._parameters, module._buffers

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + self.eps)
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale
        if bias is not None:
            shift = shift + bias
        channels = (-1,) + (1,) * (x.ndim - 2)
        return torch.addcmul(shift.view(channels), x, scale.view(channels))


_REPLACEABLE = (
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    nn.modules.instancenorm._InstanceNorm.forward,
)


def _tracks_statistics(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def _with_differentiable_statistics(module: nn.Module) -> nn.Module:
    if _tracks_statistics(module) and type(module).forward in _REPLACEABLE:
        return _EvaluationBatchNorm(module)  # not a subclass that does more (an activation inside, say)
    for name, child in module.named_children():
        setattr(module, name, _with_differentiable_statistics(child))
    return module


@contextmanager
def _batchable_attention(device: torch.device) -> Iterator[None]:
    """Attention that vmap can batch, forward and backward.

    nn.MultiheadAttention's evaluation fast path has no backward under vmap, and the CPU's fused attention no batching
    rule at all (the plain one is three batched products and has).
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with nullcontext() if device.type == "cuda" else sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
