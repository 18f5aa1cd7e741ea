"""Is what a task says of itself true? Stated misrouting and doubts of a glyph router, condition by condition.

    python benchmarks/doubt.py [--router runs/quickstart/router] [--episodes 200]

Without --router the quickstart's router is trained first. Conditions: clean, confounded and 40% mislabelled supports of
unseen letters from the test and ood alphabets; and two controls on which every task should be doubted, supports with
shuffled labels and supports of pure noise. Nothing was chosen on these episodes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import pandas as pd
import torch

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation import DoubtOutcome, EvaluationSettings, doubt_outcome, evaluate
from pyro_smat.inference.evaluation.router import sources_of_routes
from pyro_smat.inference.runs.folder import prepare_folder
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import train_router

SEED = 6_000_011
CONDITIONS: dict[str, list[object]] = {
    "clean": [],
    "confounded": ["confounding"],
    "40% mislabelled": [{"kind": "label_noise", "fraction": 0.4}],
}
CONTROLS = ("shuffled labels", "noise")
SPLITS = ("test", "ood")


@dataclass
class Control:
    """Episodes whose supports say nothing: with permuted labels, or with noise in place of images."""

    sampler: EpisodeSampler
    kind: str
    generator: torch.Generator

    @property
    def pool(self) -> ImagePool:
        return self.sampler.pool

    def sample(self, count: int) -> EpisodeBatch:
        batch = self.sampler.sample(count)
        support = batch.support
        if self.kind == "noise":
            images = torch.rand(support.images.shape, generator=self.generator)
            support = replace(support, images=images, rows=torch.full_like(support.rows, -1))
        else:
            labels = support.labels.clone()
            for own, mask in zip(labels, support.mask, strict=True):
                own[mask] = own[mask][torch.randperm(int(mask.sum()), generator=self.generator)]
            support = replace(support, labels=labels)
        return replace(batch, support=support, route=torch.full_like(batch.route, -1))


def outcomes(
    classifier: RoutedClassifier, episodes: int, splits: Sequence[str] = SPLITS
) -> dict[tuple[str, str], DoubtOutcome]:
    """(split, condition) -> what was stated and what happened."""
    router, found = classifier.router, {}
    for split in splits:
        pool = build_pool(router.config, split)
        features = router.features(pool)
        samplers: dict[str, EpisodeSampler | Control] = {
            name: router.config.episodes.sampler(pool, seed=SEED, corruptions=wrong)
            for name, wrong in CONDITIONS.items()
        }
        for kind in CONTROLS:
            clean = router.config.episodes.sampler(pool, seed=SEED + 1, corruptions=())
            samplers[kind] = Control(clean, kind, torch.Generator().manual_seed(SEED))
        for name, sampler in samplers.items():
            evaluation = evaluate(
                router.model,
                router.guide,
                sampler,
                features,
                deployment=classifier.deployment,
                settings=EvaluationSettings.bare(),
                episodes=episodes,
                source_of_route=sources_of_routes(pool, router.library),
                device=router.device,
            )
            found[split, name] = doubt_outcome(evaluation, classifier.deployment)
    return found


def table(found: dict[tuple[str, str], DoubtOutcome]) -> pd.DataFrame:
    """One row a condition, shares in %."""
    rows = []
    for (split, condition), outcome in found.items():
        interval = outcome.misrouting
        rows.append(
            {
                "pool": split,
                "supports": condition,
                "misrouting stated": 100 * outcome.stated_misrouting,
                "actual": 100 * interval.value,
                "interval": f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]",
                "calibrated": "yes" if outcome.misrouting_is_calibrated else "no",
                "errors stated": 100 * outcome.stated_error,
                "of reliable": 100 * outcome.reliable_error,
                "of doubted": 100 * outcome.doubted_error,
                "doubted": 100 * outcome.doubted,
            }
        )
    return pd.DataFrame(rows)


def trained(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """The folder of the quickstart's router, trained; without its baseline and its evaluations."""
    config = load_config(Path(str(files("pyro_smat.cli") / "quickstart.toml")), overrides)
    prepare_folder(folder / "run", config)
    train_router(config, "cpu", folder=folder / "run", progress=False)
    return folder / "run" / "router"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, help="folder of a trained glyph router")
    parser.add_argument("--episodes", type=int, default=200, help="of each condition")
    asked = parser.parse_args()
    classifier = RoutedClassifier.load(asked.router or trained(Path(tempfile.mkdtemp())))
    print(table(outcomes(classifier, asked.episodes)).to_string(index=False, float_format=lambda x: f"{x:.1f}"))


if __name__ == "__main__":
    main()
