"""Defaults: the program's own default dtype, device and modes, whatever those of the process are.

PyTorch's defaults belong to the user: float64 as default dtype, a GPU or "meta" as default device, inference mode and
autocast are all met in practice. Nothing here sets them; inside :func:`own_defaults` this thread makes its tensors as
the program expects them (float32 on the CPU, unless it says otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FLOAT = torch.float32


@contextmanager
def own_defaults() -> Iterator[None]:
    """New tensors of this thread are float32 on the CPU by default, and neither inference mode nor autocast is on.

    Also a decorator. Costs nothing where the process has these defaults anyway.

    Example:
        >>> with own_defaults():
        ...     torch.zeros(2).dtype
        torch.float32
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != _FLOAT:
            stack.enter_context(_Float32())
        yield


def plain_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of one that was made in inference mode, which autograd would refuse."""
    return tensor.clone() if tensor.is_inference() else tensor


_RANDOM_OR_EMPTY = {
    torch.empty, torch.eye, torch.linspace, torch.logspace, torch.ones, torch.rand, torch.randn, torch.zeros
}  # fmt: skip
_ASKED_FOR = {Tensor.double, Tensor.to, Tensor.type}


class _Float32(TorchFunctionMode):
    """Results that have the process's default dtype for no other reason than that become float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _RANDOM_OR_EMPTY and given.get("dtype") is None and given.get("out") is None:
            given["dtype"] = _FLOAT  # drawn as float32, not rounded to it
        result = func(*args, **given)
        default = torch.get_default_dtype()
        if not (isinstance(result, Tensor) and result.dtype == default) or func in _ASKED_FOR:
            return result
        return result if _holds(default, (*args, *given.values())) else result.to(_FLOAT)


def _holds(dtype: torch.dtype, values: Sequence[Any]) -> bool:
    """Whether an argument is the dtype, a tensor of it, or an array, which has a dtype of its own."""
    for value in values:
        if value is dtype or (hasattr(value, "dtype") and (not isinstance(value, Tensor) or value.dtype == dtype)):
            return True
        if isinstance(value, list | tuple) and value and not isinstance(value[0], float) and _holds(dtype, value):
            return True
    return False
