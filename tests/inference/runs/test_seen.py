"""data.seen: classes that sources have seen are left out for the router, named in evaluations, checked by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import quick_config, tiny_pool, tiny_sources, trained

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.folders import write_folder
from pyro_smat.inference.assembly import router as assembly
from pyro_smat.inference.assembly.seen import SeenClassWarning, classes_left_out
from pyro_smat.inference.evaluation.router import evaluate_router
from pyro_smat.inference.runs.evaluate import metrics_of

pytestmark = pytest.mark.filterwarnings("ignore:rho x B")
SEEN = "data.seen={a=['colour0', 'colour1'], b=['shape5', 'colour1']}"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the classes of every episode that any sampler draws."""
    found: set[str] = set()
    real = EpisodeSampler.sample

    def sample(self: EpisodeSampler, count: int) -> Any:
        batch = real(self, count)
        found.update(name for names in batch.class_names for name in names)
        return batch

    monkeypatch.setattr(EpisodeSampler, "sample", sample)
    return found


@pytest.fixture(autouse=True)
def _opens_tiny_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "open_library", tiny_sources)


ALL = {f"{attribute}{i}" for attribute in ("colour", "shape") for i in range(6)}


def test_no_episode_of_training_or_choosing_has_a_seen_class(drawn: set[str]) -> None:
    classifier = trained(quick_config([SEEN, "training.episodes=16"]))
    assert drawn == ALL - {"colour0", "colour1", "shape5"}
    assert classifier.router.config.data.seen == {"a": ("colour0", "colour1"), "b": ("shape5", "colour1")}


def test_kept_with_a_warning_that_names_the_sources(drawn: set[str]) -> None:
    with pytest.warns(SeenClassWarning, match=r"a 2 \(colour0, colour1\), b 2 \(shape5, colour1\)"):
        trained(quick_config([SEEN, "data.keep_seen=true", "training.episodes=16"]))
    assert drawn == ALL


def test_an_evaluation_names_the_test_classes_that_a_source_has_seen() -> None:
    classifier = trained(quick_config([SEEN]))
    with pytest.warns(SeenClassWarning, match="b 2"):
        evaluation = evaluate_router(classifier, tiny_pool(3), episodes=2, progress=False)
    assert evaluation.seen == {"a": ("colour0", "colour1"), "b": ("shape5", "colour1")}
    assert metrics_of(classifier, evaluation)["seen_by_sources"]["a"] == ["colour0", "colour1"]
    pool = tiny_pool(3)
    rows = (pool.labels[:, 0] > 1) & (pool.labels[:, 1] < 5)
    unseen = ImagePool(
        pool.images[rows],
        torch.stack([pool.labels[rows, 0] - 2, pool.labels[rows, 1]], 1),
        pool.attributes,
        (pool.class_names[0][2:], pool.class_names[1][:5]),
        pool.domain[rows],
    )
    evaluation = evaluate_router(classifier, unseen, episodes=2, progress=False)  # a warning would be an error
    assert evaluation.seen == {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("data.seen={A=['colour0']}", r"source 'A', which is not there; expected some of 'a', 'b', 'c'"),
        ("data.seen={a=['color0']}", r"data\.seen\.a names the class 'color0'.*did you mean 'colour0'"),
        ("data.seen={a='sources'}", r"data\.seen\.a is the split 'sources', which cannot be read"),
        (
            "data.seen={a=['colour0', 'colour1', 'colour2', 'colour3', 'colour4']}",
            r"seen 5 of the 6 classes of attribute 'colour'.*no episode is left.*keep_seen",
        ),
    ],
)
def test_what_is_said_wrongly_is_named(said: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(quick_config([said]))


def test_a_split_stands_for_its_classes(tmp_path: Path) -> None:
    pool = tiny_pool()
    rows = pool.labels[:, 0] < 2
    mine = ImagePool(pool.images[rows], pool.labels[rows, :1], ("class",), (("colour0", "colour1"),), pool.domain[rows])
    write_folder(mine, tmp_path / "sources", each=2)
    config = quick_config(["data.kind=folder", f"data.path='{tmp_path}'", "data.seen={c='sources'}"])
    assert trained(config).router.config.data.seen == {"c": ("colour0", "colour1")}


def test_only_attributes_that_may_be_the_label_count() -> None:
    seen = {"a": [f"shape{i}" for i in range(6)]}
    assert classes_left_out(seen, tiny_pool(), ("colour",)) is None
    assert classes_left_out({"a": ["colour3"]}, tiny_pool(), ("colour", "size")) == {"colour": ["colour3"]}
