r"""Composition: coefficients x basis = task parameters, and the network that runs on them.

    theta_T = sum_r w_r theta^(r) + sum_m alpha_m (z_m * theta_delta)  =  c @ basis

One flat matrix, one GEMM; parameter tensors are views of theta; all task networks run in one vmapped forward.
"""

from __future__ import annotations

import logging
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import _StopRecomputationError, checkpoint

from pyro_smat.networks.build import describe_network
from pyro_smat.networks.compiled_forward import CompiledForward
from pyro_smat.networks.cuda_graphs import CudaGraphs
from pyro_smat.networks.evaluation_mode import EvaluationMode, UnfitNetwork, frames_of, part_of
from pyro_smat.networks.memory import chunk_limit, measured_bytes, memory_of, out_of_memory
from pyro_smat.networks.one_gradient import split_tasks, unflatten
from pyro_smat.networks.outputs import tensor_of
from pyro_smat.networks.own_images import OwnImages
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.networks.preprocessing import detach_preprocessing
from pyro_smat.networks.product import compose
from pyro_smat.networks.running_statistics import normalises_by_batch, with_differentiable_statistics
from pyro_smat.networks.skeletons import Skeletons, weightless_copy, with_constants
from pyro_smat.networks.task_layers import with_current_weights, with_task_layers
from pyro_smat.networks.task_products import recording_a_graph
from pyro_smat.registry import Choice

__all__ = ["TaskNetwork", "compose"]

_log = logging.getLogger(__name__)


class TaskNetwork:
    """A network whose weights are an argument: T task networks in one vmapped forward.

    ``TaskNetwork(module, space)(theta, x)`` maps theta ``(*b, d)`` and x ``(*b, n, *input)`` to ``(*b, n, *output)``
    for any leading dims ``*b`` (particles, episodes). The network runs in evaluation mode, in the dtype of theta
    (compose straight into the compute dtype instead of using autocast). Outputs that are not tensors become one by
    the rule of :mod:`pyro_smat.networks.outputs`. Any number of threads may call it at once.

    What vmap can't run (an LSTM, writing through a mask, branches on values) runs one task at a time, with the same
    results and gradients, but slower; :attr:`one_at_a_time` then says why, and a line is logged once.

    Args:
        module: the template; its weights are not used and not kept, but those of a head that the space leaves out.
        space: its parameter space.
        memory_limit: bytes that activations may take. Tasks are run in chunks that fit, by the bytes that the first
            images took, and in smaller ones after running out of memory; when a gradient is wanted and all chunks
            together do not fit, every chunk is recomputed in the backward pass. Default: 8 GiB on a CPU, half of the
            free memory on a GPU.
        recompute: True or False to force recomputing chunks in the backward pass; None decides by ``memory_limit``.
        compile: pass the vmapped network through torch.compile; on a GPU, switch cuDNN's attention off for that
            (``torch.backends.cuda.enable_cudnn_sdp(False)``), its compiled backward fails.
        cuda_graphs: on a GPU, replay the forward and backward pass of a shape from its second call on
            (:mod:`~pyro_smat.networks.cuda_graphs`): the same numbers, without the time to launch. Each shape keeps the
            memory of its activations. Also an attribute, to be switched at any time.

    Attributes:
        by_batch: whether it normalises by the images that it is given together, and has no statistics of its own.
        choice: how to build the network again (:func:`~pyro_smat.networks.describe_network`); None for a module that
            was not made by ``build_network``.
        one_at_a_time: why tasks are run one after another; None while they run together.
        graphs: what was recorded; ``graphs.fallbacks`` says why calls ran without a graph.
        template: the module without the weights that are composed (they are on the meta device).

    Raises:
        ValueError: when called with theta and x that do not fit, or where the network draws random numbers in
            evaluation mode or writes to its own weights.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> network = TaskNetwork(module, ParameterSpace.from_module(module))
        >>> network(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]]), torch.ones(2, 3, 2)).squeeze(-1)
        tensor([[3., 3., 3.],
                [5., 5., 5.]])
    """

    def __init__(
        self,
        module: nn.Module,
        space: ParameterSpace,
        *,
        memory_limit: int | None = None,
        recompute: bool | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self.space = space
        self.memory_limit = memory_limit
        self.recompute = recompute
        self.cuda_graphs, self.graphs = cuda_graphs, CudaGraphs()
        self.choice: Choice | None = describe_network(module)
        self.one_at_a_time: str | None = None
        with torch.inference_mode(False), torch.no_grad():
            template = with_current_weights(weightless_copy(module))
            self._preprocessing = detach_preprocessing(template)
            composed = set(space.names)
            self._parameters = {k: v.detach().clone() for k, v in module.named_parameters() if k not in composed}
            self._buffers = {k: v.detach().clone() for k, v in module.named_buffers() if k not in composed}
            self.template = with_constants(weightless_copy(module), {**self._parameters, **self._buffers})
            self._plain = Skeletons(template)
            self._differentiable = Skeletons(template, with_differentiable_statistics)
            self.batched = Skeletons(template, lambda copy: with_task_layers(with_differentiable_statistics(copy)))
        self.by_batch = any(map(normalises_by_batch, template.modules()))
        self._compiled = CompiledForward(self) if compile else None
        self._own = OwnImages()
        self._bytes_per_image: dict[tuple[torch.Size, torch.dtype], int] = {}
        self._constants_at: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def __repr__(self) -> str:
        network = self.choice.kind if self.choice is not None else "own module"
        how = f", one task at a time: {self.one_at_a_time}" if self.one_at_a_time else ""
        return f"TaskNetwork({network}, d = {self.space.dim:,}{how})"

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
        recompute = self._recomputes(theta, x, tasks * x.shape[1])
        result = self._in_chunks(theta, x, recompute)
        return result.unflatten(0, leading) if leading else result.squeeze(0)

    def shared(self, theta: Tensor, x: Tensor) -> Tensor:
        """All networks on the same images: theta ``(*k, d)`` and x ``(n, *input)`` to ``(*k, n, *output)``.

        What calling with ``x.expand(*k, ...)`` gives, but n may be large: a piece of the images at a time (all of them,
        where the network normalises by statistics of the batch).
        """
        leading = theta.shape[:-1]
        tasks = prod(leading)
        theta, x = theta.reshape(tasks, -1), x.to(theta.dtype)
        recompute = self._recomputes(theta, x.unsqueeze(0), tasks * len(x))
        per_image = self._activation_bytes(theta, x.unsqueeze(0))
        piece = len(x) if self.by_batch else max(1, self._limits(theta)[1] // max(per_image, 1))
        outputs = []
        for part in x.split(max(piece, 1)):
            ready = self._prepared(part)
            outputs.append(self._in_chunks(theta, ready.expand(tasks, *ready.shape), recompute, per_image))
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return result.unflatten(0, leading) if leading else result.squeeze(0)

    def _in_chunks(self, theta: Tensor, x: Tensor, recompute: bool, per_image: int | None = None) -> Tensor:
        """Outputs ``(T, n, *output)`` of T tasks, as many of them at a time as the memory allows.

        Images whose bytes are given are preprocessed already.
        """
        if self._compiled is not None and torch.is_grad_enabled() and theta.requires_grad:
            self._compiled.refuse_opaque_statistics()
        version = None if theta.is_inference() else theta._version
        chunk = 1
        if len(theta) > 1:
            per_task = x.shape[1] * (self._activation_bytes(theta, x) if per_image is None else per_image)
            largest = max(1, min(len(theta), self._limits(theta)[1] // max(per_task, 1)))
            chunk = -(-len(theta) // -(-len(theta) // largest))  # as many chunks, all of about one size
        outputs = []
        for rows, images in zip(split_tasks(theta, chunk), x.split(chunk), strict=True):
            outputs.append(self._chunk(rows, images, recompute, per_image is not None))
        if version is not None and theta._version != version:
            raise UnfitNetwork(
                "the network writes to its own weights or running statistics in evaluation mode, and these are the "
                "caller's theta; expected a forward that leaves them alone: write to a copy"
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _chunk(self, theta: Tensor, x: Tensor, recompute: bool, prepared: bool) -> Tensor:
        try:
            images = x if prepared else self._prepared(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            if recompute:
                self._activation_bytes(theta, x)  # sees what the network overwrites; the run below is recorded
                return checkpoint(self._forward, theta, images, use_reentrant=False)
            return self.graphs(self._forward, theta, images) if self.cuda_graphs else self._forward(theta, images)
        except RuntimeError as error:
            divisible = len(theta) > 1 or (x.shape[1] > 1 and not self.by_batch)
            if not out_of_memory(error) or not divisible:
                raise
        # Out of the except clause, so that what its traceback holds is freed.
        dim = 0 if len(theta) > 1 else 1
        half = -(-x.shape[dim] // 2)
        rows = theta.split(half) if dim == 0 else (theta, theta)
        parts = zip(rows, x.split(half, dim), strict=True)
        return torch.cat([self._chunk(row, part, recompute, prepared) for row, part in parts], dim)

    def _prepared(self, images: Tensor) -> Tensor:
        for preprocessing in self._preprocessing:
            images = preprocessing(images)
        return images

    def _forward(self, theta: Tensor, x: Tensor) -> Tensor:
        if len(theta) > 1 and self.one_at_a_time is None:
            try:
                return self._own.run(lambda images: self._together(theta, images), x)
            except (UnfitNetwork, _StopRecomputationError):  # the latter ends a chunk's second run, as it should
                raise
            except Exception as error:
                memory = isinstance(error, RuntimeError) and out_of_memory(error)
                if self._compiled is not None or memory or recording_a_graph(theta):
                    raise
                reason = f"{error.__notes__[0]} ({str(error).split('. ')[0] or type(error).__name__})"
            result = self._singly(theta, x)  # an error of the network's own comes again, as the network has it
            self.one_at_a_time = reason
            _log.warning("tasks run one at a time, which is slow, because vmap cannot run %s", reason)
            return result
        return self._singly(theta, x)

    def _singly(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._own.run(lambda images: self._one_by_one(theta, images), x)

    def _together(self, theta: Tensor, x: Tensor) -> Tensor:
        if self._compiled is not None:
            return self._compiled(theta, x)
        gradient = torch.is_grad_enabled() and theta.requires_grad
        weights = unflatten(theta, self.space)  # before the mode, which judges what the network does
        with self.batched.lend() as network, EvaluationMode(network, batched=True, gradient=gradient):
            try:
                return self.vmapped(network, theta, x, weights)
            except Exception as error:
                error.add_note(part_of(network, frames_of(error.__traceback__)))
                raise

    def vmapped(self, network: nn.Module, theta: Tensor, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Outputs ``(T, n, *output)`` of one of the modules that run under vmap, on preprocessed images."""
        constants = self._constants(theta)

        def one_task(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            return tensor_of(functional_call(network, (weights, constants), (images,), strict=True))

        return vmap(one_task)(self.space.unflatten(theta) if weights is None else weights, x)

    def _one_by_one(self, theta: Tensor, x: Tensor) -> Tensor:
        """A single task needs no batching rule: plain kernels, bit for bit."""
        gradient = torch.is_grad_enabled() and theta.requires_grad
        store, constants, outputs = self._differentiable if gradient else self._plain, self._constants(theta), []
        tensors = [own.unbind(0) for own in unflatten(theta, self.space).values()]
        for row, images in zip(zip(*tensors, strict=True), x, strict=True):
            weights = dict(zip(self.space.names, row, strict=True))
            with store.lend() as network, EvaluationMode(network, batched=False, gradient=gradient):
                output = functional_call(network, (weights, constants), (images,), strict=True)
                outputs.append(tensor_of(output))
        return outputs[0].unsqueeze(0) if len(outputs) == 1 else torch.stack(outputs)

    def _constants(self, theta: Tensor) -> dict[str, Tensor]:
        """What the space leaves out, in the dtype and on the device of theta; buffers are copies for one call."""
        key = (theta.device, theta.dtype)
        if key not in self._constants_at:
            with torch.inference_mode(False):
                self._constants_at[key] = {
                    name: value.to(theta.device, theta.dtype if value.is_floating_point() else None)
                    for name, value in (self._parameters | self._buffers).items()
                }
        return {k: v.clone() if k in self._buffers else v for k, v in self._constants_at[key].items()}

    def _limits(self, theta: Tensor) -> tuple[int, int]:
        """Bytes that all activations, and those of one chunk, may take."""
        limit = memory_of(theta.device) if self.memory_limit is None else self.memory_limit
        return limit, chunk_limit(limit, theta.device)

    def _recomputes(self, theta: Tensor, x: Tensor, images: int) -> bool:
        """Whether chunks are recomputed in the backward pass, of so many images in all."""
        if self.recompute is not None:
            return self.recompute
        if not (torch.is_grad_enabled() and theta.requires_grad):
            return False
        return images * self._activation_bytes(theta, x) > self._limits(theta)[0]

    def _activation_bytes(self, theta: Tensor, x: Tensor) -> int:
        """Bytes that activations take for one image of ``x`` ``(T, n, *input)``, measured on its first ones."""
        key = (x.shape[2:], x.dtype)
        if key not in self._bytes_per_image and x.shape[0] and x.shape[1]:
            with self._plain.lend() as network, torch.no_grad():
                weights = self.space.unflatten(theta[0])

                def run(images: Tensor) -> Any:
                    tensors = (weights, self._constants(theta))
                    ready = self._prepared(images)
                    return self._own.run(lambda own: functional_call(network, tensors, (own,), strict=True), ready)

                self._bytes_per_image[key] = measured_bytes(network, run, x[0])
        return self._bytes_per_image.get(key, 1)
