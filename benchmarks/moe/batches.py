"""questions.npz -> padded batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Questions:
    """A set of questions, padded.

    Attributes:
        input_ids: ``(n, L)``.
        lengths: ``(n,)``.
        labels: ``(n,)``.
    """

    input_ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[dict[str, Tensor]]:
        """In order, or shuffled and without the rest; each only as long as its longest question."""
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        last = n if generator is None else max(size, n - n % size)
        for start in range(0, last, size):
            rows = order[start : start + size].to(self.labels.device)
            lengths = self.lengths[rows]
            longest = int(lengths.max())
            mask = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
            yield {
                "input_ids": self.input_ids[rows, :longest],
                "attention_mask": mask.long(),
                "labels": self.labels[rows],
            }


def load_questions(path: Path, name: str, device: torch.device, limit: int | None = None) -> Questions:
    """One of the sets of questions.npz."""
    with np.load(path) as arrays:
        tokens, ends, answers = (arrays[f"{name}.{key}"] for key in ("tokens", "ends", "answers"))
    ends = ends[:limit]
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    padded = np.zeros((len(ends), lengths.max()), dtype=np.int64)
    for row, (a, b) in enumerate(zip(starts, ends, strict=True)):
        padded[row, : b - a] = tokens[a:b]
    labels = answers[: len(ends)].astype(np.int64)
    return Questions(*(torch.from_numpy(a).to(device) for a in (padded, lengths.astype(np.int64), labels)))
