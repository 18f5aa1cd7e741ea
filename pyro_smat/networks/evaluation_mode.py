"""EvaluationMode: what holds in a forward pass of a task network, in its own thread alone.

PyTorch's switches for attention kernels and fast paths belong to the process; a ``TorchFunctionMode`` belongs to the
thread. While it is active

- functions that draw random numbers are refused, so the same image always gets the same features;
- nn.TransformerEncoderLayer and nn.MultiheadAttention don't take their fast paths (they look for such a mode), which
  have no gradient under vmap;
- convolutions in 16 bits on a CPU have a gradient of every weight (:mod:`~pyro_smat.networks.reached_taps`);
- batch and instance normalisation by running statistics have a gradient in these (PyTorch's own have none);
- max pooling on a CPU for which no gradient is wanted is fast (:mod:`~pyro_smat.networks.max_pooling`);
- for T tasks at once, layer normalisation applies its affine part in one pass;
- for T tasks at once, scaled dot-product attention has the tasks join the batch, so that the fused kernels serve it
  (on a CPU these have no batching rule at all).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_smat.networks.max_pooling import max_pooled
from pyro_smat.networks.reached_taps import convolved
from pyro_smat.networks.running_statistics import normalised

_ALWAYS = frozenset(
    [
        *(getattr(torch, name) for name in ("rand", "randn", "randint", "randperm", "normal", "poisson", "bernoulli")),
        *(getattr(torch, name) for name in ("rand_like", "randn_like", "randint_like", "multinomial", "binomial")),
        *(getattr(Tensor, f"{name}_") for name in ("bernoulli", "normal", "uniform", "exponential", "cauchy")),
        *(getattr(Tensor, name) for name in ("bernoulli", "multinomial", "geometric_", "log_normal_", "random_")),
        *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, F.gumbel_softmax),
        *(F.fractional_max_pool2d_with_indices, F.fractional_max_pool3d_with_indices),
    ]
)
_RRELUS = (F.rrelu, torch.rrelu, torch.rrelu_)
# Functions that draw when told to: position and name of the argument that tells them, and its default.
_WHEN_TOLD: Mapping[Callable[..., Any], tuple[int, str, bool | float]] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (2, "training", True)),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), (2, "training", False)),
    **dict.fromkeys((torch.dropout, torch.dropout_, torch.alpha_dropout, torch.alpha_dropout_), (2, "train", True)),
    **dict.fromkeys((torch.feature_dropout, torch.feature_dropout_, torch.native_dropout), (2, "train", True)),
    **dict.fromkeys((torch.feature_alpha_dropout, torch.feature_alpha_dropout_), (2, "train", True)),
    **dict.fromkeys(_RRELUS, (3, "training", False)),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
}

# Functions that normalise, their arguments, and which says that the statistics are those of the images.
_NORMALISATIONS: Mapping[Callable[..., Any], Sequence[str]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.instance_norm: ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}
_FROM_IMAGES = {F.batch_norm: "training", F.instance_norm: "use_input_stats", torch.batch_norm: "training"}
_BATCHED = (F.layer_norm, F.adaptive_avg_pool2d)
_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d})
_POOLS = frozenset({F.max_pool2d, torch.max_pool2d})
_RULED = frozenset(
    [
        *(*_ALWAYS, *_WHEN_TOLD, *_NORMALISATIONS, *_CONVOLUTIONS, *_POOLS, *_BATCHED),
        F.multi_head_attention_forward,
    ]
)
_FUNCTIONAL_CALL = torch.func.functional_call.__code__
_CHECKPOINT_FILE = torch.utils.checkpoint.__file__


class EvaluationMode(TorchFunctionMode):
    """The mode of one forward pass.

    Args:
        network: the module that runs; errors name its parts.
        batched: whether it runs under vmap, over T tasks.
        gradient: whether a gradient in its weights is wanted.
    """

    def __init__(self, network: nn.Module, *, batched: bool, gradient: bool) -> None:
        super().__init__()
        self.network, self.batched, self.gradient = network, batched, gradient
        self._gradient, self._hooks = torch.is_grad_enabled(), _saved_tensors_hooks()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._gradient and (not torch.is_grad_enabled() or _saved_tensors_hooks() != self._hooks):
            self._refuse_checkpointing()
        if func not in _RULED:  # by far the most calls
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if (func in _ALWAYS or func in _WHEN_TOLD) and _draws(func, args, kwargs):
            raise UnfitNetwork(
                f"{func.__name__} in {part_of(self.network, _callers())} draws random numbers in evaluation mode, so "
                "the same image would get other features each time; expected none: use nn.Dropout, or pass "
                "training=self.training"
            )
        if self.batched and func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if self.batched and func is F.multi_head_attention_forward and kwargs.get("need_weights") is False:
            # Its own call of the attention above would bypass this mode; with weights it is three batched products.
            return func(*args, **{**kwargs, "need_weights": True})[0], None
        if self.batched and func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if self.batched and func is F.adaptive_avg_pool2d:
            return _adaptive_mean(*args, **kwargs)
        if func in _POOLS:
            return func(*args, **kwargs) if self.gradient else max_pooled(func, *args, **kwargs)
        if self.gradient and func in _CONVOLUTIONS:
            return convolved(func, *args, **kwargs)
        if self.gradient and func in _NORMALISATIONS:
            values = dict(zip(_NORMALISATIONS[func], args, strict=False)) | kwargs
            if not values.get(_FROM_IMAGES[func], func is F.instance_norm):
                mean, variance, eps = values["running_mean"], values["running_var"], values.get("eps", 1e-5)
                return normalised(values["input"], mean, variance, values.get("weight"), values.get("bias"), eps)
        return func(*args, **kwargs)

    def _refuse_checkpointing(self) -> None:
        for frame in _callers():
            if frame.f_code is _FUNCTIONAL_CALL:
                return
            if frame.f_code.co_filename == _CHECKPOINT_FILE:
                raise UnfitNetwork(
                    f"{part_of(self.network, _callers())} uses activation checkpointing, which would recompute with "
                    "weights that are gone by then; expected none: switch it off in the network, "
                    "TaskNetwork(recompute=True) saves the same memory"
                )


class UnfitNetwork(ValueError):
    """A network does what no task network can do, neither T tasks at once nor one by one."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """``F.scaled_dot_product_attention`` under vmap, tasks in the batch dim."""
    leading = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    if query.ndim == 2:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        mask = attn_mask
        return attention(query, key, value, mask, dropout_p, is_causal, **options).squeeze(0)
    query, key, value = (x.expand(*leading, *x.shape[-3:]) for x in (query, key, value))
    if attn_mask is not None and attn_mask.ndim > 2:
        rows, columns = query.shape[-2], key.shape[-2]
        attn_mask = attn_mask.expand(*query.shape[:-2], rows, columns)
    return _InBatch.apply((dropout_p, is_causal, options), query, key, value, attn_mask)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``F.layer_norm`` under vmap, its affine part in one pass."""
    if weight is None or bias is None:
        return F.layer_norm(x, shape, weight, bias, eps)
    return torch.addcmul(bias, F.layer_norm(x, shape, None, None, eps), weight)


def _adaptive_mean(input: Tensor, output_size: Any) -> Tensor:
    """``F.adaptive_avg_pool2d`` under vmap: to one pixel it is a mean, but its own rule has none for channels last."""
    if output_size in (1, (1, 1), [1, 1]):
        return input.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)


class _InBatch(torch.autograd.Function):
    """Attention on inputs ``(T n, ...)``, as plain operations to autograd."""

    @staticmethod
    def forward(rest: tuple[float, bool, dict[str, Any]], *inputs: Any) -> Tensor:
        query, key, value, mask = inputs  # of constants: no task is in them
        return F.scaled_dot_product_attention(query, key, value, mask, rest[0], rest[1], **rest[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, rest: Any, *inputs: Tensor | None) -> tuple[Tensor, int]:
        tasks, dims = info.batch_size, in_dims[1:]
        query, key, value = (
            with_tasks(x, dim, tasks, 0).flatten(0, 1)
            for x, dim in zip(inputs[:3], dims[:3], strict=True)
            if x is not None
        )
        mask = inputs[3]
        if mask is not None and (dims[3] is not None or mask.ndim > 2):
            mask = with_tasks(mask, dims[3], tasks, 0)
            if mask.ndim == 3:  # one (rows, columns) for each task
                between = (1,) * (query.ndim - 2)
                mask = mask.view(tasks, *between, *mask.shape[1:]).expand(
                    tasks, query.shape[0] // tasks, *between[1:], *mask.shape[1:]
                )
            mask = mask.flatten(0, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, rest[0], rest[1], **rest[2])
        return mixed.unflatten(0, (tasks, -1)), 0


def with_tasks(x: Tensor, dim: int | None, tasks: int, to: int) -> Tensor:
    """The task dim moved to position ``to`` (a view); a tensor that all tasks share is expanded."""
    if dim is None:
        return x.unsqueeze(to).expand(*x.shape[:to], tasks, *x.shape[to:])
    return x.movedim(dim, to)


def part_of(network: nn.Module, frames: Iterator[FrameType]) -> str:
    """The innermost part of ``network`` whose code is on the stack, in words."""
    paths = {id(part): path for path, part in network.named_modules()}
    for frame in frames:
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in paths:
            name = type(part).__mro__[1].__name__ if type(part).__name__.startswith("_") else type(part).__name__
            return f"module {paths[id(part)]!r} ({name})" if paths[id(part)] else f"the forward of {name}"
    return type(network).__name__


def frames_of(traceback: TracebackType | None) -> Iterator[FrameType]:
    """The frames of an exception, innermost first."""
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return reversed(frames)


def _saved_tensors_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _draws(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if func in _ALWAYS:
        return kwargs.get("generator") is None and not any(isinstance(a, torch.Generator) for a in args)
    position, name, default = _WHEN_TOLD[func]
    told = args[position] if len(args) > position else kwargs.get(name, default)
    if func in _RRELUS:
        return bool(told)
    probability = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return bool(told) and not (isinstance(probability, float | int) and probability == 0)
