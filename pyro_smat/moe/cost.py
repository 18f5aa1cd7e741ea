"""What routing heads cost: FLOPs by torch's counter, milliseconds by events or the clock, peak memory.

A pass of the network is counted as two FLOPs for every parameter that a token uses (experts in the share k / E that is
used, no embeddings, no attention scores), which is the least it can be; the share of the heads is then the most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_smat.moe.calls import Router
from pyro_smat.moe.surgery import find_routers


@dataclass(frozen=True)
class Overhead:
    """FLOPs per token.

    Attributes:
        network: of the network.
        heads: of the heads, posterior parameters included, one draw not.
    """

    network: int
    heads: int

    @property
    def share(self) -> float:
        """heads / network."""
        return self.heads / self.network


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of a call (a multiply-add counts two), on any device, meta too."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def active_parameters(model: nn.Module, routers: tuple[Router, ...] | None = None) -> int:
    """Parameters that multiply something for one token: all but embeddings, experts in the share that is chosen.

    Args:
        model: a network whose blocks of experts hold them in a child ``experts`` beside the router (or in 3-D
            parameters of the block); on the meta device it needs no memory.
        routers: of the network; found when not given.

    Raises:
        ValueError: when a router does not say how many experts it chooses.
    """
    shares: dict[int, float] = {}
    for router in find_routers(model) if routers is None else routers:
        if router.top_k is None:
            raise ValueError(f"router {router.name!r}: how many experts a token gets is not known")
        block = model.get_submodule(router.name.rpartition(".")[0])
        experts = getattr(block, "experts", block)
        for parameter in experts.parameters():
            if parameter.dim() == 3 or isinstance(experts, nn.ModuleList):
                shares[id(parameter)] = router.top_k / router.num_experts
    tied = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        tied -= {id(output.weight)}
    return round(sum(p.numel() * shares.get(id(p), 1.0) for p in model.parameters() if id(p) not in tied))


def head_overhead(model: nn.Module, heads: Callable[[int], Any], tokens: int = 64) -> Overhead:
    """The share of routing heads in the FLOPs of a forward pass.

    Args:
        model: the network, e.g. on the meta device.
        heads: tokens -> runs all heads on so many tokens.
        tokens: how many to count with.
    """
    return Overhead(2 * active_parameters(model), count_flops(lambda: heads(tokens)) // tokens)


def milliseconds(function: Callable[[], Any], *, repeats: int = 20, warm_up: int = 3) -> float:
    """Median time of a call; on a GPU the device is waited for."""

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[repeats // 2]


def peak_megabytes(function: Callable[[], Any]) -> float:
    """Peak memory that torch allocates on the GPU during a call, in MiB.

    Raises:
        RuntimeError: without a GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("peak memory is measured on a GPU; none was found")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
