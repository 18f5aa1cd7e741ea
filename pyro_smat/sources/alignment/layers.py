"""What layers do to units: which weights they reach and which dims they tie; the table that ``trace.py`` reads.

Rules are those of ``operations.py``. A layer of any other class, a subclass included, has no rule and is opaque: the
units that go in stay in place, its own weights are not touched.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torchvision.ops import StochasticDepth

from pyro_smat.sources.alignment.operations import (
    FUNCTIONS,
    Arguments,
    Keywords,
    Rule,
    Shape,
    Traced,
    meet,
    pool,
    reshape,
    same,
)
from pyro_smat.sources.alignment.units import Axes, Axis, Ledger


def _conv(ledger: Ledger, module: Any, args: Arguments, _: Keywords, shape: Shape) -> Axes:
    """Output units are new, but for depthwise convolution, whose output units are its input units."""
    (x,) = args
    place = len(x.shape) - len(module.kernel_size) - 1
    channel = x.axes[place]
    for axis in x.axes[place + 1 :]:
        ledger.fix(axis, "convolution along units")
    if module.groups == 1:
        ledger.attach(module.weight, 1, channel)
        out = ledger.new(module.out_channels)
    elif module.groups == module.in_channels == module.out_channels:
        out = channel
    else:
        ledger.fix(channel, f"convolution in {module.groups} groups")
        out = None
    ledger.attach(module.weight, 0, out)
    ledger.attach(module.bias, 0, out)
    ledger.observe(place, out)
    return (*x.axes[:place], out, *(None for _ in module.kernel_size))


def _linear(ledger: Ledger, module: nn.Linear, args: Arguments, _: Keywords, shape: Shape) -> Axes:
    """New units from those of the last dim."""
    (x,) = args
    ledger.attach(module.weight, 1, x.axes[-1])
    out = ledger.new(module.out_features)
    ledger.attach(module.weight, 0, out)
    ledger.attach(module.bias, 0, out)
    ledger.observe(len(shape) - 1, out)
    return (*x.axes[:-1], out)


def _batch_norm(ledger: Ledger, module: Any, args: Arguments, _: Keywords, shape: Shape) -> Axes:
    """One scale, shift, mean and variance for each unit of dim 1."""
    (x,) = args
    for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
        ledger.attach(tensor, 0, x.axes[1])
    ledger.observe(1, x.axes[1])
    return same(ledger, module, args, {}, shape)


def _layer_norm(ledger: Ledger, module: nn.LayerNorm, args: Arguments, _: Keywords, shape: Shape) -> Axes:
    """Mean and variance over the last dims do not see their order; scale and shift move along."""
    (x,) = args
    first = len(x.shape) - len(module.normalized_shape)
    for dim, axis in enumerate(x.axes[first:]):
        ledger.attach(module.weight, dim, axis)
        ledger.attach(module.bias, dim, axis)
        ledger.observe(first + dim, axis)
    return same(ledger, module, args, {}, shape)


def _group_norm(ledger: Ledger, module: nn.GroupNorm, args: Arguments, _: Keywords, shape: Shape) -> Axes:
    """One group, or one a channel: free. Otherwise the channels of a group stay together."""
    (x,) = args
    channel = x.axes[1]
    if 1 < module.num_groups < module.num_channels:
        ledger.bundle(channel, module.num_channels // module.num_groups)
    elif module.num_groups > 1 and channel is not None and channel.block > 1:
        ledger.fix(channel, "normalisation inside units")
    ledger.attach(module.weight, 0, channel)
    ledger.attach(module.bias, 0, channel)
    ledger.observe(1, channel)
    return same(ledger, module, args, {}, shape)


def _prelu(ledger: Ledger, module: nn.PReLU, args: Arguments, _: Keywords, shape: Shape) -> Axes:
    """One slope for all, or one for each unit of dim 1."""
    (x,) = args
    if module.num_parameters > 1:
        ledger.attach(module.weight, 0, x.axes[1])
    return same(ledger, module, args, {}, shape)


def _attention(
    ledger: Ledger, module: nn.MultiheadAttention, args: Arguments, keywords: Keywords, shape: Shape
) -> Axes:
    """Heads move as wholes: blocks of rows of q, k and v, blocks of columns of the output projection.

    The order of coordinates inside a head is left alone. Axes are those of the first output.
    """
    given = inspect.signature(module.forward).bind(*args, **keywords).arguments
    inputs: list[Traced] = [given.pop(name) for name in ("query", "key", "value")]
    heads = ledger.new(module.num_heads, f"{ledger.where}.heads")
    block = Axis(heads.units, module.head_dim) if heads else None
    for x in inputs:
        for axis in x.axes[:-1]:
            ledger.fix(axis, "attention along units")
    if module.in_proj_weight is not None:
        ledger.attach(module.in_proj_weight, 0, block, repeat=3)
        for x in inputs:
            ledger.attach(module.in_proj_weight, 1, x.axes[-1])
    else:
        for weight, x in zip((module.q_proj_weight, module.k_proj_weight, module.v_proj_weight), inputs, strict=True):
            ledger.attach(weight, 0, block)
            ledger.attach(weight, 1, x.axes[-1])
    ledger.attach(module.in_proj_bias, 0, block, repeat=3)
    masks = [mask for mask in given.values() if isinstance(mask, Traced)]
    shown = given.get("need_weights", True) and not given.get("average_attn_weights", True)
    if module.bias_k is not None or shown or any(len(mask.shape) > 2 for mask in masks):
        ledger.fix(heads, "heads told apart by a mask, a bias or the attention weights returned")
    for mask in masks:
        for axis in mask.axes:
            ledger.fix(axis, "units in an attention mask")
    out = ledger.new(module.embed_dim)
    ledger.attach(module.out_proj.weight, 0, out)
    ledger.attach(module.out_proj.weight, 1, block)
    ledger.attach(module.out_proj.bias, 0, out)
    return (*inputs[0].axes[:-1], out)


def _transformer_layer(
    ledger: Ledger, module: nn.TransformerEncoderLayer, args: Arguments, keywords: Keywords, shape: Shape
) -> Axes:
    """Attention and two linear layers around one residual stream; norms before or after touch the same units."""
    given = inspect.signature(module.forward).bind(*args, **keywords).arguments
    x: Traced = given.pop("src")
    given.pop("is_causal", None)

    def inner(name: str, rule: Rule, *inputs: Traced, **options: Any) -> Traced:
        with ledger.inside(name):
            return Traced(shape, rule(ledger, getattr(module, name), inputs, options, shape))

    masks = {"attn_mask": given.get("src_mask"), "key_padding_mask": given.get("src_key_padding_mask")}
    attended = inner("self_attn", _attention, x, x, x, **masks, need_weights=False)
    stream = Traced(shape, meet(ledger, [x, attended], shape))
    hidden = inner("linear1", _linear, stream)
    activation: Any = module.activation
    if (rule_of(activation) if isinstance(activation, nn.Module) else FUNCTIONS.get(activation)) is not same:
        ledger.fix(hidden.axes[-1], "an activation that is not known")
    stream = Traced(shape, meet(ledger, [stream, inner("linear2", _linear, hidden)], shape))
    for name in ("norm1", "norm2"):
        inner(name, _layer_norm, stream)
    return stream.axes


def _transformer(
    ledger: Ledger, module: nn.TransformerEncoder, args: Arguments, keywords: Keywords, shape: Shape
) -> Axes:
    """Its layers one after another."""
    given = inspect.signature(module.forward).bind(*args, **keywords).arguments
    x: Traced = given["src"]
    masks = {"src_mask": given.get("mask"), "src_key_padding_mask": given.get("src_key_padding_mask")}
    for number, layer in enumerate(module.layers):
        with ledger.inside(f"layers.{number}"):
            x = Traced(shape, _transformer_layer(ledger, layer, (x,), masks, shape))
    if module.norm is not None:
        norm: Any = module.norm
        with ledger.inside("norm"):
            _layer_norm(ledger, norm, (x,), {}, shape)
    return x.axes


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a layer; None where it has none, has hooks, or has parts that are not what its class expects."""
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return None
    expected: dict[str, type[nn.Module]] = {}
    if type(module) is nn.TransformerEncoderLayer:
        norms = {"norm1": nn.LayerNorm, "norm2": nn.LayerNorm}
        expected = {"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear, **norms}
    if type(module) is nn.TransformerEncoder:
        layers = {f"layers.{n}": nn.TransformerEncoderLayer for n in range(len(module.layers))}
        expected = layers | ({} if module.norm is None else {"norm": nn.LayerNorm})
    for name, kind in expected.items():
        if type(module.get_submodule(name)) is not kind or rule_of(module.get_submodule(name)) is None:
            return None
    return MODULES.get(type(module))


_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softmax, nn.LogSoftmax, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, StochasticDepth),
)
_POOL_1D = (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
_POOL_2D = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(_POINTWISE, same),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    **dict.fromkeys(_POOL_1D, pool(1)),
    **dict.fromkeys(_POOL_2D, pool(2)),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), reshape),
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _transformer_layer,
    nn.TransformerEncoder: _transformer,
}
