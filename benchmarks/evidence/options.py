"""What a run of the evidence is of: data, sources, shape of the episodes, training. Every cell carries it along."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suite import SOURCES, TRAINED, UNSEEN

from pyro_smat.networks.heads import Metric
from pyro_smat.networks.support_head import Classifier

PATHS = ("data", "sources")
NOISE = {"kind": "label_noise", "fraction": 0.4}
MARKS = {"kind": "spurious_mark", "severity": 3, "queries": True}


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        data: folder of the suite's arrays.
        sources: folder with ``seedN/NAME.safetensors``.
        network: what the sources are checkpoints of, a registered name or a table with its options.
        names: of the sources, the fallback first.
        trained, unseen: domains.
        way, shot, query: of an episode.
        shots: of the experiment on shots.
        episodes: of a cell.
        steps, batch: of the router's training, and episodes of a step.
        noise: share of wrong labels that model and averages expect.
        metric, classifier: of the head of model and averages.
        most: the most sources that a routing mixes.
        per_class: only so many images of a class, for a try on a small machine; 0 for all.
    """

    data: Path = Path("data/suite")
    sources: Path = Path("data/suite/sources")
    network: str | Mapping[str, Any] = "mobilenet_v2"
    names: tuple[str, ...] = SOURCES
    trained: tuple[str, ...] = TRAINED
    unseen: tuple[str, ...] = UNSEEN
    way: int = 5
    shot: int = 5
    query: int = 7
    shots: tuple[int, ...] = (1, 2, 5, 10, 20)
    episodes: int = 100
    steps: int = 200
    batch: int = 16
    noise: float = 0.1
    metric: Metric = "bhattacharyya"
    classifier: Classifier = "mixture"
    most: int = 1
    per_class: int = 0

    @classmethod
    def shaped_like(cls, settings: Mapping[str, Any]) -> Options:
        """Options with the lists of domains, shots and sources of kept cells."""
        told = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in cls.__dataclass_fields__}
        return cls(**told)

    def files(self, seed: int) -> dict[str, Path]:
        """The checkpoints of a seed by name."""
        return {name: self.sources / f"seed{seed}" / f"{name}.safetensors" for name in self.names}

    def settings(self, seed: int) -> dict[str, Any]:
        """Everything that results of a seed depend on, as plain values: no paths, but digests of the sources.

        Raises:
            ValueError: for a source that is not there.
        """
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in PATHS}
        return plain | {"seed": seed, "digests": {name: _digest(path) for name, path in self.files(seed).items()}}

    @property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Of the experiments: options of a sampler by name."""
        return {
            f"{self.shot}-shot": {"shot": self.shot},
            "40% mislabelled": {"shot": self.shot, "corruptions": (NOISE,)},
            "1-shot": {"shot": 1},
        }

    @property
    def table_conditions(self) -> dict[str, dict[str, Any]]:
        """Of the main table: also marks that give the support's labels away and mislead in the queries."""
        return self.conditions | {"confounded": {"shot": self.shot, "corruptions": (MARKS,)}}


def _digest(path: Path) -> str:
    if not path.exists():
        raise ValueError(
            f"there is no source {path}; make it with `python benchmarks/evidence/sources.py --out {path.parents[1]}`"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
