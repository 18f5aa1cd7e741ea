"""CUDA graphs of a task network: its forward and backward kernels, recorded once for each shape and replayed.

A forward pass of T networks is thousands of small kernels, and launching them takes longer than running them. A graph
launches them all at once. The same kernels run on the same numbers, so answers and gradients are those of a call
without a graph (without a gradient, linear layers add their bias inside the product: equal to rounding).

    forward   theta, images -> the recording's own memory; replay; a copy of the result
    backward  gradient -> the recording's own memory; replay; a copy of the gradient in theta

Activations live in the recording, so a recording belongs to one forward pass until its backward pass has run: a second
forward pass before that gets another recording. The first call of a shape runs as ever, the second one records. Where
no graph can serve, the call runs as ever too, and :attr:`CudaGraphs.fallbacks` says why.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_smat.networks.expanded import expanded_dims, stored_part

_log = logging.getLogger(__name__)

Run = Callable[[Tensor, Tensor], Tensor]
LARGEST_NUMBER = 8  # of recordings, each of which holds the activations of its shape


class Recording:
    """The graph of one shape: of ``run(theta, x)``, and of its backward pass where theta wants a gradient."""

    def __init__(self, run: Run, theta: Tensor, x: Tensor) -> None:
        wants_gradient = torch.is_grad_enabled() and theta.requires_grad
        self._device = theta.device
        with torch.cuda.device(self._device), torch.inference_mode(False), torch.set_grad_enabled(wants_gradient):
            self._theta = torch.empty_like(theta, requires_grad=False).copy_(theta.detach())
            self._images = torch.empty_like(stored_part(x), requires_grad=False).copy_(stored_part(x).detach())
            self._theta.requires_grad_(wants_gradient)
            images = self._images.expand(x.shape)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what libraries set up at their first call must not be recorded
                out = run(self._theta, images)
                if wants_gradient:
                    torch.autograd.grad(out, self._theta, torch.zeros_like(out))
                del out
            torch.cuda.current_stream().wait_stream(side)
            how: Any = {"pool": torch.cuda.graph_pool_handle(), "stream": side, "capture_error_mode": "thread_local"}
            self._forward = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._forward, **how):
                out = run(self._theta, images)
            if wants_gradient:
                self._probe = torch.zeros_like(out)
                self._backward = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._backward, **how):
                    (self._gradient,) = torch.autograd.grad(out, self._theta, self._probe)
            self._out = out.detach()
            self._done = torch.cuda.Event()

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """``run(theta, x)``, without autograd."""
        with torch.cuda.device(self._device), torch.no_grad():
            self._wait()
            self._theta.detach().copy_(theta)
            self._images.copy_(stored_part(x))
            self._forward.replay()
            result = self._out.clone()
            self._done.record()
        return result

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient in theta after the last :meth:`forward`, for the gradient in its result."""
        with torch.cuda.device(self._device):
            self._wait()
            self._probe.copy_(gradient)
            self._backward.replay()
            result = self._gradient.clone()
            self._done.record()
        return result

    def _wait(self) -> None:
        """For the last use, which may have been on another stream."""
        torch.cuda.current_stream().wait_event(self._done)


class CudaGraphs:
    """All recordings of one task network, for any number of threads.

    Args:
        record: makes a recording.
        device: the type of device that it serves.

    Attributes:
        fallbacks: why calls ran without a graph, and how many.
    """

    def __init__(self, record: Callable[[Run, Tensor, Tensor], Any] = Recording, device: str = "cuda") -> None:
        self._record, self._device = record, device
        self._shelves: OrderedDict[Any, _Shelf] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self.fallbacks: Counter[str] = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        return CudaGraphs, (self._record, self._device)

    def __call__(self, run: Run, theta: Tensor, x: Tensor) -> Tensor:
        """``run(theta, x)``, which draws no random numbers: theta ``(T, d)`` and images ``(T, n, *input)``."""
        gradient = torch.is_grad_enabled() and theta.requires_grad
        lease = self._unfit(theta, x) or self._lease(run, theta, x, gradient)
        if isinstance(lease, _Lease):
            return _Replay.apply(theta, x, lease) if gradient else lease.answer(theta, x)
        if lease is not None:
            if lease not in self.fallbacks:
                _log.warning("running without a CUDA graph: %s", lease)
            self.fallbacks[lease] += 1
        return run(theta, x)

    def _unfit(self, theta: Tensor, x: Tensor) -> str | None:
        if theta.device.type != self._device:
            return f"theta is on {theta.device.type}; expected a CUDA device"
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "the call is inside a transform of torch.func"
        if torch.is_grad_enabled() and x.requires_grad:
            return "the images want a gradient; a recording has that of theta alone"
        if torch.is_autocast_enabled(self._device):
            return "the call is inside autocast; compose into the compute dtype instead"
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return "the call is inside a checkpoint or other hooks on saved tensors"
        if torch._C._len_torch_dispatch_stack():
            return "a TorchDispatchMode is active, which would see no operation of a graph"
        if self._device == "cuda" and torch.cuda.is_current_stream_capturing():
            return "the caller is recording a graph"
        return None

    def _lease(self, run: Run, theta: Tensor, x: Tensor, gradient: bool) -> _Lease | str | None:
        """A recording for this call alone; None for the first call of its shape; or why there is none."""
        key = (theta.shape, x.shape, expanded_dims(x), theta.dtype, x.dtype, theta.device, gradient, _switches())
        with self._lock:
            shelf = self._shelves.get(key)
            if shelf is None:
                self._shelves[key] = _Shelf()
                return None
            self._shelves.move_to_end(key)
            if shelf.refused is not None:
                return shelf.refused
            lease = shelf.lease()
            if lease is not None:
                return lease
            if not self._room():
                return f"{LARGEST_NUMBER} forward passes wait for their backward pass"
            try:
                shelf.add(self._record(run, theta, x))
            except RuntimeError as error:
                shelf.refused = f"recording {tuple(theta.shape)} x {tuple(x.shape)} failed: {_first_line(error)}"
                return shelf.refused
            return shelf.lease()

    def _room(self) -> bool:
        """Makes room for one more, in place of an idle one of the shape that was used longest ago."""
        for shelf in list(self._shelves.values()):
            if sum(shelf.size for shelf in self._shelves.values()) < LARGEST_NUMBER:
                return True
            shelf.drop()
        return sum(shelf.size for shelf in self._shelves.values()) < LARGEST_NUMBER


class _Shelf:
    """The recordings of one shape."""

    def __init__(self) -> None:
        self.size = 0
        self.refused: str | None = None
        self._idle: list[tuple[Any, int]] = []  # with the number of its uses; list methods are atomic

    def add(self, recording: Any) -> None:
        self.size += 1
        self._idle.append((recording, 0))

    def lease(self) -> _Lease | None:
        try:
            recording, uses = self._idle.pop()
        except IndexError:
            return None
        return _Lease(self, recording, uses + 1)

    def give_back(self, recording: Any, uses: int) -> None:
        self._idle.append((recording, uses))

    def take_again(self, recording: Any, uses: int) -> bool:
        """Whether nobody has used it since."""
        try:
            self._idle.remove((recording, uses))
        except ValueError:
            return False
        return True

    def drop(self) -> None:
        if self._idle:
            self._idle.pop(0)
            self.size -= 1


class _Lease:
    """A recording while it belongs to one forward pass."""

    def __init__(self, shelf: _Shelf, recording: Any, uses: int) -> None:
        self._shelf, self._recording, self._uses = shelf, recording, uses
        self._held = True

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._recording.forward(theta, x)

    def answer(self, theta: Tensor, x: Tensor) -> Tensor:
        """The forward pass, where no backward pass follows."""
        try:
            return self.forward(theta, x)
        finally:
            self.release()

    def backward(self, gradient: Tensor) -> Tensor:
        if not self._held and not self._shelf.take_again(self._recording, self._uses):
            raise RuntimeError(
                "the backward pass of a task network with CUDA graphs runs again, after another forward pass has taken "
                "its memory; expected one backward pass for each forward pass: sum the losses, or cuda_graphs=False"
            )
        self._held = True
        try:
            return self._recording.backward(gradient)
        finally:
            self.release()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._shelf.give_back(self._recording, self._uses)

    def __del__(self) -> None:  # its forward pass is gone without a backward pass
        self.release()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, x: Tensor, lease: _Lease) -> Tensor:
        ctx.lease = lease
        return lease.forward(theta, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.lease.backward(gradients[0]), None, None


def _switches() -> tuple[object, ...]:
    """What a recording has taken from PyTorch's switches."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        *(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        *(
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
        *(cuda.matmul.allow_bf16_reduced_precision_reduction, cuda.matmul.allow_fp16_reduced_precision_reduction),
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).split("\n")[0] or type(error).__name__
