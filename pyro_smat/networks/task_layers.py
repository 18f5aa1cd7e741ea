"""Layers with batching rules of our own: what TaskNetwork puts in the place of layers that vmap runs slowly.

All compute what the layer of torch.nn computes; only the physical layout of the T tasks differs:

- group norms and pooling: tasks stand beside channels, ``(n, T C, H, W)``, so T networks
  are one network of T C channels with T groups, and no layer transposes for the next one (vmap's rules for pooling and
  group normalisation do, and apply the affine part in passes of their own);
- convolutions are those of :mod:`~pyro_smat.networks.task_convolutions`;
  those whose patches do not overlap (the first layer of a ViT) are one product of patches and weights;
- linear layers stay with vmap's own rule, which was the faster one, but where a graph without gradient is recorded;
- attention: its projections run on ``(n, tokens, width)`` as it lies in memory (nn.MultiheadAttention transposes first,
  and vmap then copies the projection's weights once for every token).

Only for use under vmap, in an :class:`~pyro_smat.networks.evaluation_mode.EvaluationMode`: a rule is all there is.
Under torch.compile the layers are those of torch.nn again, since the
compiler lays out and fuses by itself (attention keeps its order of dims).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.networks.evaluation_mode import attention, with_tasks
from pyro_smat.networks.max_pooling import max_pooled
from pyro_smat.networks.task_convolutions import Geometry, TaskConvolution, channels_last
from pyro_smat.networks.task_products import TaskProduct, one_by_one, recording_a_graph


def with_current_weights(module: nn.Module) -> nn.Module:
    """Makes recurrent layers of ``module`` (in place) look their weights up: they keep a list of their first ones."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer.register_forward_pre_hook(_look_up)
    return module


def _look_up(layer: nn.RNNBase, inputs: Any) -> None:
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def with_task_layers(module: nn.Module) -> nn.Module:
    """Changes the class of every layer of ``module`` (in place) that has a counterpart here; names and weights stay."""
    by_groups = any(isinstance(layer, nn.GroupNorm) for layer in module.modules())
    for layer in module.modules():
        layer.__class__ = _COUNTERPARTS.get(type(layer), layer.__class__)
        if isinstance(layer, _Conv2d):
            layer.channels_last = not by_groups
    return module


class _BesideChannels(torch.autograd.Function):
    """``layer(x, parameters, T)`` on ``x (n, T C, ...)`` and parameters ``(T C', ...)``, as plain ops to autograd."""

    @staticmethod
    def forward(layer: Callable[..., Tensor], x: Tensor, *parameters: Tensor | None) -> Tensor:
        raise RuntimeError("task layers run under torch.func.vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, layer: Callable[..., Tensor], x: Tensor, *parameters: Tensor | None) -> tuple:
        tasks = info.batch_size
        x = with_tasks(x, in_dims[1], tasks, 0)
        x = channels_last(x) if x.is_cuda and x.stride(2) == 1 else x.transpose(0, 1).flatten(1, 2)
        rows = [
            p if p is None else with_tasks(p, dim, tasks, 0).flatten(0, 1)
            for p, dim in zip(parameters, in_dims[2:], strict=True)
        ]
        return layer(x, *rows, tasks=tasks).unflatten(1, (tasks, -1)), 1


class _BesideRows(torch.autograd.Function):
    """A linear layer on ``(n, ..., i)`` as one batched product over tasks, bias included."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise RuntimeError("task layers run under torch.func.vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
        tasks = info.batch_size
        x = with_tasks(x, in_dims[0], tasks, 0)
        weight = with_tasks(weight, in_dims[1], tasks, 0)
        bias = bias if bias is None else with_tasks(bias, in_dims[2], tasks, 0)
        rows = x.reshape(tasks, -1, x.shape[-1])
        if bias is not None and not torch.is_grad_enabled() and recording_a_graph(x):
            y = one_by_one(rows, weight, bias)
        else:
            y = TaskProduct.apply(rows, weight, bias)
        return y.unflatten(1, x.shape[1:-1]), 0


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if torch.compiler.is_compiling() else _BesideRows.apply(x, weight, bias)


class _Linear(nn.Linear):
    """vmap's own rule, which was the faster one, but where a graph without gradient is recorded."""

    def forward(self, input: Tensor) -> Tensor:
        plain = torch.compiler.is_compiling() or torch.is_grad_enabled() or self.bias is None or input.ndim < 2
        if plain or not recording_a_graph(input):
            return super().forward(input)
        return _linear(input, self.weight, self.bias)


class _Conv2d(nn.Conv2d):
    channels_last: bool

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if input.ndim == 4 and self._patches_tile(input):
            return self._on_patches(input, weight, bias)
        if input.ndim != 4 or self.padding_mode != "zeros" or torch.compiler.is_compiling():
            return super().forward(input)
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups, self.channels_last)
        return TaskConvolution.apply(geometry, input, weight, bias)

    def _patches_tile(self, x: Tensor) -> bool:
        return (
            self.kernel_size == self.stride != (1, 1)
            and self.groups == 1
            and self.dilation == (1, 1)
            and self.padding in ((0, 0), "valid")
            and all(size % kernel == 0 for size, kernel in zip(x.shape[-2:], self.kernel_size, strict=True))
        )

    def _on_patches(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (n, channels, height, width), (rows, columns) = x.shape, self.kernel_size
        patches = x.reshape(n, channels, height // rows, rows, width // columns, columns).permute(0, 2, 4, 1, 3, 5)
        y = _linear(patches.flatten(3).flatten(1, 2), weight.flatten(1), bias)
        return y.unflatten(1, (height // rows, width // columns)).permute(0, 3, 1, 2)


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(input)

        def layer(x: Tensor, weight: Tensor | None, bias: Tensor | None, tasks: int) -> Tensor:
            return F.group_norm(x, self.num_groups * tasks, weight, bias, self.eps)

        return _BesideChannels.apply(layer, input, self.weight, self.bias)


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or self.return_indices or torch.compiler.is_compiling():
            return super().forward(input)

        def layer(x: Tensor, tasks: int) -> Tensor:
            geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
            return max_pooled(F.max_pool2d, x, *geometry)

        return _BesideChannels.apply(layer, input)


class _MultiheadAttention(nn.MultiheadAttention):
    """The layer without its fast path; self-attention without masks and weights keeps tokens as they lie in memory."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any) -> Any:
        plain = not arguments and options.get("need_weights", True) is False
        plain &= all(options.get(name) is None for name in ("key_padding_mask", "attn_mask"))
        plain &= not options.get("is_causal", False)
        plain &= query is key and key is value and query.ndim == 3 and self.batch_first
        plain &= self.in_proj_weight is not None and self.bias_k is None and not self.add_zero_attn
        if not plain:
            return super().forward(query, key, value, *arguments, **options)
        qkv = _linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, n, heads, tokens, width)
        mixed = _attention(*heads.unbind(0)).transpose(1, 2).flatten(-2)
        return _linear(mixed, self.out_proj.weight, self.out_proj.bias), None


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        return attention(query, key, value)
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT  # the CPU's fused kernel has no batching rule
    return scores.softmax(-1) @ value


_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.Linear: _Linear,
    nn.GroupNorm: _GroupNorm,
    nn.MaxPool2d: _MaxPool2d,
    nn.MultiheadAttention: _MultiheadAttention,
}
