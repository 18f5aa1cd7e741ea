"""Subspaces of the training features of the suite's sources, kept beside their checkpoints.

    python benchmarks/evidence/subspaces.py --data data/suite --sources data/suite/sources --seed 0

Each specialist's subspace is fitted on the "sources" classes of its domain, the generalist's on those of all four. What
ImageNet's weights were trained on is not in the suite: ``imagenet`` has no subspace, and the baseline
"subspace_residual" never chooses it. A minute a seed on one CPU core. `SourceLibrary.subspaces` finds the files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from suite import GENERALIST, TRAINED, load_split

from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.networks import build_network
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.sources import SourceLibrary, fit_subspace, save_subspace


def fit_subspaces(data: Path, folder: Path, rank: int, device: torch.device) -> None:
    """Fit and store those of one seed's sources."""
    network = build_network("mobilenet_v2")
    files = {name: folder / f"{name}.safetensors" for name in (*TRAINED, GENERALIST)}
    library = SourceLibrary.from_files(network, files)
    frozen = TaskNetwork(network, library.space)
    for row, (name, path) in enumerate(files.items()):
        pool = load_split(data, "sources", TRAINED if name == GENERALIST else (name,))
        known = SourceFeatures(frozen, library.basis[row : row + 1].to(device), pool)
        found = fit_subspace(known.of_pool()[:, 0], rank)
        print(f"{save_subspace(path, found)}: {found.images} images, usual residual {found.usual:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/suite"))
    parser.add_argument("--sources", type=Path, default=Path("data/suite/sources"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    folder = arguments.sources / f"seed{arguments.seed}"
    fit_subspaces(arguments.data, folder, arguments.rank, choose_device(arguments.device))


if __name__ == "__main__":
    main()
