"""Layers with batching rules of our own: what TaskNetwork puts in the place of layers that vmap runs slowly.

All compute what the layer of torch.nn computes; only the physical layout of the T tasks differs:

- convolutions, group and instance-free norms, pooling: tasks stand beside channels, ``(n, T C, H, W)``, so T networks
  are one network of T C channels with T groups, and no layer transposes for the next one (vmap's rules for pooling and
  group normalisation do, and apply the affine part in passes of their own);
- convolutions whose patches do not overlap (the first layer of a ViT) are one product of patches and weights;
- layer normalisation applies its affine part in one pass (nn.Linear stays: vmap's own rule was faster);
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
    for layer in module.modules():
        layer.__class__ = _COUNTERPARTS.get(type(layer), layer.__class__)
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
        x = with_tasks(x, in_dims[1], tasks, 1).flatten(1, 2)
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
        y = _BatchedLinear.apply(x.reshape(tasks, -1, x.shape[-1]), weight, bias)
        return y.view(*x.shape[:-1], y.shape[-1]), 0


class _BatchedLinear(torch.autograd.Function):
    """``y_t = x_t W_t' + b_t``: x ``(T, rows, i)``, W ``(T, o, i)``, b ``(T, o)``; W's gradient is ``(T, o, i)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (g,) = ctx.saved_tensors, gradients
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(g, weight) if for_x else None,
            torch.bmm(g.mT, x) if for_weight else None,
            g.sum(1) if for_bias else None,
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if torch.compiler.is_compiling() else _BesideRows.apply(x, weight, bias)


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        if self.weight is None or self.bias is None or torch.compiler.is_compiling():
            return super().forward(input)
        normal = F.layer_norm(input, self.normalized_shape, None, None, self.eps)
        return torch.addcmul(self.bias, normal, self.weight)


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 4 and self._patches_tile(input):
            return self._on_patches(input)
        if input.ndim != 4 or self.padding_mode != "zeros" or torch.compiler.is_compiling():
            return super().forward(input)

        def layer(x: Tensor, weight: Tensor, bias: Tensor | None, tasks: int) -> Tensor:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups * tasks)

        return _BesideChannels.apply(layer, input, self.weight, self.bias)

    def _patches_tile(self, x: Tensor) -> bool:
        return (
            self.kernel_size == self.stride != (1, 1)
            and self.groups == 1
            and self.dilation == (1, 1)
            and self.padding in ((0, 0), "valid")
            and all(size % kernel == 0 for size, kernel in zip(x.shape[-2:], self.kernel_size, strict=True))
        )

    def _on_patches(self, x: Tensor) -> Tensor:
        (n, channels, height, width), (rows, columns) = x.shape, self.kernel_size
        patches = x.reshape(n, channels, height // rows, rows, width // columns, columns).permute(0, 2, 4, 1, 3, 5)
        y = _linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)
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
            return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

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
    nn.LayerNorm: _LayerNorm,
    nn.GroupNorm: _GroupNorm,
    nn.MaxPool2d: _MaxPool2d,
    nn.MultiheadAttention: _MultiheadAttention,
}
