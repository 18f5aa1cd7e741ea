"""MPS, without one: training, evaluation and deployment on a device that has no float64 and is not CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretended_mps import WrongDevice, pretended_mps
from tiny_run import CASES, ENCODING_GUIDES, build_trainer, quick_config, tiny_router, trained
from torch import Tensor

from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.training.checkpoint import CHECKPOINT
from pyro_smat.registry import names

OF_CATALOGS = ("top_k",)
SCORES = tuple(name for name in names("uncertainty_score") if name not in ("auto", "learned", "novelty"))  # no fits
SHORT = {"steps": 2, "validate_every": 1, "kl_warmup": 0}


def test_the_pretended_device_refuses_what_the_real_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_mps(monkeypatch) as mps:
        there = torch.ones(2, 3, device=mps)
        assert there.device.type == "mps"
        assert (there + 1)[0].device.type == "mps"
        assert there.cpu().device.type == "cpu"
        assert there.cpu().double().sum() == 6
        assert there.to("cpu").device.type == "cpu"
        assert torch.ones(2).to(there).device.type == "mps"
        assert torch.nn.Linear(3, 2).to(mps)(there).device.type == "mps"
        for refused in (there.double, lambda: there + torch.ones(3), lambda: torch.ones(3) * there):
            with pytest.raises(WrongDevice):
                refused()
        with pytest.raises(WrongDevice, match="cuda"):
            torch.cuda.synchronize()


def test_mps_is_chosen_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_mps(monkeypatch) as mps:
        assert choose_device("auto") == choose_device("mps") == mps


@pytest.mark.parametrize("case", CASES)
def test_training_on_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build_trainer(None, case, **SHORT).fit(progress=False)
    with pretended_mps(monkeypatch) as mps:
        trainer = build_trainer(None, case, **SHORT, device=mps)
        found = trainer.fit(progress=False)
    assert {p.device.type for p in trainer.model.parameters()} == {"cpu"}
    losses = (torch.tensor(one["loss"].tolist()) for one in (found, expected))
    torch.testing.assert_close(*losses)  # in float32, as they were computed


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_mps(monkeypatch) as mps:
        build_trainer(tmp_path, **SHORT, device=mps).fit(progress=False)
        torch.mps.set_rng_state(torch.ones(4, dtype=torch.uint8))
        resumed = build_trainer(tmp_path, **SHORT, device=mps)
        resumed.load(tmp_path / CHECKPOINT)
        assert resumed.step == 2
        assert not torch.mps.get_rng_state().any()
        assert {p.device.type for p in resumed.guide.parameters()} == {"mps"}


@pytest.mark.parametrize("guide", ENCODING_GUIDES)
def test_a_run_and_its_deployment_on_it(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """train_router evaluates and chooses too; then every score, rule and refinement gives the numbers of the CPU."""
    config = quick_config([f"guide.kind={guide}", "training.validate_every=1"])
    expected = answers(trained(config, tiny_router(config)))
    with pretended_mps(monkeypatch) as mps:
        found = answers(trained(config, tiny_router(config, device=mps), device=mps))
    assert found.keys() == expected.keys()
    assert len(found) > 15
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def answers(classifier: RoutedClassifier) -> dict[str, Tensor]:
    """What a classifier says of four images on a support of three classes, by rule, score and refinement."""
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    support, queries = (images[:6], ["a", "b", "c"] * 2), images[6:]
    rules = [name for name in names("decision_rule") if name not in OF_CATALOGS or classifier.router.catalog]
    task = classifier.adapt(*support)
    found = {rule: task.predict_proba(queries, rule) for rule in rules}
    for score in SCORES:
        other = RoutedClassifier(classifier.router, Deployment.model_validate({"score": score, "threshold": 0.5}))
        found[score] = torch.tensor(other.adapt(*support).uncertainty_on(queries))
    for mode in names("refinement"):
        found[f"refined: {mode}"] = classifier.adapt(*support, refine=mode).predict_proba(queries)
    return found
