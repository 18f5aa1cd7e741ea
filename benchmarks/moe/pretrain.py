"""Stage 1: train all weights of the upcycled network on the questions; what every arm starts from."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from batches import Questions
from network import MiniLMMoE, balance_loss
from torch.nn import functional as F

from pyro_smat.moe import predict
from pyro_smat.moe.surgery import Attachment


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, nothing elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def schedule(
    optimiser: torch.optim.Optimizer, steps: int, warm_up: float = 0.05
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then cosine to zero."""
    first = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + np.cos(np.pi * (step - first) / max(1, steps - first)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def pretrain(
    minilm: Path,
    train: Questions,
    *,
    seed: int,
    layers: int,
    num_experts: int,
    epochs: int,
    batch: int,
    rate: float,
    state: Path | None,
) -> MiniLMMoE:
    """The trained network, from ``state`` if it is there (and put there otherwise)."""
    torch.manual_seed(seed)
    device = train.labels.device
    with np.load(minilm) as arrays:
        network = MiniLMMoE(arrays, layers, num_experts).to(device)
    file = None if state is None else state / f"network-{seed}.pt"
    if file is not None and file.exists():
        network.load_state_dict(torch.load(file, weights_only=True, map_location=device))
        return network.eval().requires_grad_(False)
    network.train()
    steps = epochs * max(1, len(train) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01, fused=device.type == "cuda")
    scheduler = schedule(optimiser, steps)
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for data in train.batches(batch, generator):
            with autocast(device):
                hidden, routed = network.encode(data["input_ids"], data["attention_mask"])
                loss = F.cross_entropy(network.answer(hidden, data["input_ids"]), data["labels"])
            balance = balance_loss(routed, data["attention_mask"], network.layers[0].moe.router.top_k)
            optimiser.zero_grad(set_to_none=True)
            (loss + 0.01 * balance).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
            total += loss.detach()
        seconds = time.perf_counter() - start
        print(
            f"  epoch {epoch + 1}: loss {float(total) * batch / max(batch, len(train)):.3f}, {seconds:.0f} s",
            flush=True,
        )
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
    return network.eval().requires_grad_(False)


def answers(network: MiniLMMoE, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the four options ``(B, 4)``."""
    with autocast(data["labels"].device):
        return network(data["input_ids"], data["attention_mask"])


def mean_nll(attachment: Attachment, function: object, questions: Questions, batch: int) -> float:
    """NLL of one pass, for early stopping."""
    total = 0.0
    for data in questions.batches(batch):
        p = predict(attachment, function, lambda data=data: answers(attachment.model, data)).probabilities
        total -= float(p.gather(1, data["labels"].unsqueeze(1)).clamp(min=1e-12).log().sum())
    return total / len(questions)
