"""SourceLibrary: frozen checkpoints of one network as the rows of a matrix.

Files come in here (safetensors, or .pt read with ``weights_only=True``), are checked tensor by tensor, and leave as
the first R rows of the basis. Source 0 is theta_pre, the fallback.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pyro_smat.parameters import ParameterSpace


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` file, or from a ``.pt``/``.pth`` file of tensors.

    Nothing is ever unpickled beyond tensors: ``.pt`` files go through ``torch.load(weights_only=True)``.

    Raises:
        ValueError: for a missing, truncated or foreign file, a pickle of anything but tensors, or a file without any.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a .safetensors or .pt checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of unusual pickle protocols before it refuses the file
            weights: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); expected a complete file written by safetensors"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: a pickle of something other than tensors; expected weights: save the state dict with safetensors"
        ) from error
    except Exception as error:  # damaged bytes make the reader fail in any way: IndexError, KeyError, struct.error, ...
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error}); expected a complete file"
        ) from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path}: holds {type(weights).__name__}; expected a state dict (names to tensors)")
    return weights


@dataclass(frozen=True)
class SourceLibrary:
    """R frozen sources of one network.

    Attributes:
        names: R names; the first is theta_pre, the fallback.
        basis: ``(R, d)`` float32, one source a row.
        space: the parameter space of the rows.
    """

    names: tuple[str, ...]
    basis: Tensor
    space: ParameterSpace

    def __post_init__(self) -> None:
        if self.basis.shape != (len(self.names), self.space.dim) or not self.names:
            raise ValueError(
                f"basis has shape {tuple(self.basis.shape)}; expected ({len(self.names)}, {self.space.dim}), "
                "at least one row"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"source names {self.names} repeat; expected distinct names")

    @classmethod
    def from_files(
        cls, module: nn.Module, files: Mapping[str, str | Path], blocks: Mapping[str, str] | None = None
    ) -> SourceLibrary:
        """Open checkpoints, ``{"name": path}``; the first is theta_pre.

        Raises:
            ValueError: for an unreadable file, or checkpoints that do not fit ``module``; every missing, extra or
                misshapen tensor of every file is listed at once.
        """
        return cls.from_state_dicts(module, {name: load_weights(path) for name, path in files.items()}, blocks, files)

    @classmethod
    def from_state_dicts(
        cls,
        module: nn.Module,
        states: Mapping[str, Mapping[str, Tensor]],
        blocks: Mapping[str, str] | None = None,
        origins: Mapping[str, object] | None = None,
    ) -> SourceLibrary:
        """Sources from state dicts in memory; ``origins`` says where they came from in error messages."""
        if not states:
            raise ValueError("got no sources; expected at least one checkpoint")
        space = ParameterSpace.from_module(module, blocks)
        problems = []
        for name, state in states.items():
            found = space.differences(state)
            if found:
                origin = f" ({origins[name]})" if origins else ""
                other = " - another architecture?" if not set(space.names) & set(state) else ""
                problems.append(f"source {name!r}{origin} does not fit {type(module).__name__}{other}:")
                problems += [f"  {line}" for line in found]
        if problems:
            raise ValueError("\n".join(problems))
        basis = torch.stack([space.flatten(state).float() for state in states.values()])
        return cls(tuple(states), basis, space)

    def __len__(self) -> int:
        return len(self.names)

    def one_hot(self, source: int | str, experts: int = 0) -> Tensor:
        """Coefficients ``(R + M,)`` that reproduce one source, by name or row; experts closed.

        Raises:
            ValueError: for a source that the library does not have.
        """
        if source not in (self.names if isinstance(source, str) else range(len(self))):
            raise ValueError(f"source is {source!r}; expected one of {self.names} or a row in [0, {len(self)})")
        row = self.names.index(source) if isinstance(source, str) else source
        coefficients = torch.zeros(len(self) + experts)
        coefficients[row] = 1.0
        return coefficients

    @property
    def report(self) -> str:
        """A table: for every source its norm, its distance to theta_pre relative to |theta_pre|, and the cosine
        between its task vector (theta - theta_pre) and the nearest other task vector."""
        vectors = self.basis - self.basis[0]
        norms, lengths = self.basis.norm(dim=1), vectors.norm(dim=1)
        unit = vectors / lengths.clamp(min=1e-12).unsqueeze(1)
        cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
        width = max(6, *(len(name) for name in self.names))
        lines = [
            f"{len(self)} sources, d = {self.space.dim:,} ({sum(e.trainable for e in self.space.entries)} parameter "
            f"tensors, {sum(not e.trainable for e in self.space.entries)} running statistics)",
            f"{'source':<{width}}  {'|theta|':>9}  {'moved':>7}  {'nearest task vector':>20}",
        ]
        for row, name in enumerate(self.names):
            if row == 0:
                lines.append(f"{name:<{width}}  {norms[0]:>9.3f}  {'-':>7}  {'theta_pre (fallback)':>20}")
                continue
            near = int(cosines[row, 1:].argmax()) + 1 if len(self) > 2 else 0
            text = f"{self.names[near]} {cosines[row, near]:+.2f}" if len(self) > 2 else "-"
            lines.append(f"{name:<{width}}  {norms[row]:>9.3f}  {lengths[row] / norms[0]:>7.3f}  {text:>20}")
        return "\n".join(lines)
