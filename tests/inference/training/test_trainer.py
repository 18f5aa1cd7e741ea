"""Meta-training: resuming is bit for bit, other settings are refused, broken losses are said."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from other_process import start_python
from tiny_run import CASES, CHECKPOINT_EVERY, STEPS, VALIDATE_EVERY, build_trainer

from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.files import load_state, save_state
from pyro_smat.inference.training.checkpoint import CHECKPOINT
from pyro_smat.inference.training.trainer import INITIAL_SCALE, MetaTrainer


def stop_after(trainer: MetaTrainer, step: int) -> None:
    """An interruption that the trainer knows nothing of."""
    original: Callable[[], dict[str, float]] = trainer.training_step

    def training_step() -> dict[str, float]:
        if trainer.step == step:
            raise KeyboardInterrupt
        return original()

    trainer.training_step = training_step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(progress=False)


def assert_same_run(found: MetaTrainer, expected: MetaTrainer) -> None:
    """Every parameter, buffer and optimizer state bit for bit, and the history but for the speed."""
    for a, b in ((found.model, expected.model), (found.guide, expected.guide)):
        states = a.state_dict(), b.state_dict()
        assert list(states[0]) == list(states[1])
        for name in states[0]:
            assert torch.equal(states[0][name], states[1][name]), name
    moments = found.optimizer.state_dict()["state"], expected.optimizer.state_dict()["state"]
    assert moments[0].keys() == moments[1].keys()
    for key, state in moments[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[1][key][name])), (key, name)
    assert found.sampler.state_dict() == expected.sampler.state_dict()
    assert_same_state(found.elbo.state_dict(), expected.elbo.state_dict())
    assert_same_state(found.schedule.state_dict(), expected.schedule.state_dict())
    frames = [pd.DataFrame(t.history).drop(columns="images_per_second") for t in (found, expected)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert found.step == expected.step == STEPS


def assert_same_state(found: Any, expected: Any) -> None:
    """Nested dicts of tensors and numbers, bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_state(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, MetaTrainer]:
    runs = {}
    for case in CASES:
        runs[case] = build_trainer(None, case)
        runs[case].fit(progress=False)
    return runs


@pytest.mark.parametrize(
    ("case", "step"), [(case, 5) for case in CASES] + [("logistic_normal", 3), ("learned_threshold", 8)]
)
def test_resumed_run_is_the_uninterrupted_one(
    case: str, step: int, tmp_path: Path, uninterrupted: dict[str, MetaTrainer]
) -> None:
    stop_after(build_trainer(tmp_path, case), step)
    assert load_state(tmp_path / CHECKPOINT)["step"] == step // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    torch.manual_seed(12345)  # the process that resumes has drawn other numbers
    resumed = build_trainer(tmp_path, case)
    torch.rand(17)
    history = resumed.fit(resume=True, progress=False)
    assert history["step"].tolist() == list(range(1, STEPS + 1))
    assert_same_run(resumed, uninterrupted[case])


def test_thresholds_baselines_and_temperatures_are_in_the_checkpoint(
    tmp_path: Path, uninterrupted: dict[str, MetaTrainer]
) -> None:
    """What a resumed run must not start anew is there, and is no constant."""
    states = {}
    for case, trainer in uninterrupted.items():
        trainer.save(tmp_path / case)
        states[case] = load_state(tmp_path / case)
    assert len(states["score_function"]["elbo"]["threshold"]["recent"]) == 10 * STEPS
    assert states["score_function"]["elbo"]["baselines"]["routing"].abs().sum() > 0
    assert states["learned_threshold"]["elbo"]["threshold"]["seen"] == 10 * STEPS
    assert states["learned_threshold"]["model"]["experts.multipliers"].abs().sum() > 0
    assert states["concrete"]["guide"]["temperature"].item() == pytest.approx(0.3)
    assert states["concrete"]["model"]["experts.progress"].item() == 1.0


def test_run_killed_by_the_system_resumes(tmp_path: Path, uninterrupted: dict[str, MetaTrainer]) -> None:
    """SIGKILL after step 7 leaves the checkpoint of step 6."""
    with start_python(tiny_run.__file__, tmp_path, 7) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert load_state(tmp_path / CHECKPOINT)["step"] == 6
    resumed = build_trainer(tmp_path)
    resumed.fit(resume=True, progress=False)
    assert_same_run(resumed, uninterrupted["logistic_normal"])


def test_twice_interrupted(tmp_path: Path, uninterrupted: dict[str, MetaTrainer]) -> None:
    stop_after(build_trainer(tmp_path), 4)
    again = build_trainer(tmp_path)
    again.load(tmp_path / CHECKPOINT)
    stop_after(again, 7)
    last = build_trainer(tmp_path)
    last.fit(resume=True, progress=False)
    assert_same_run(last, uninterrupted["logistic_normal"])


def test_finished_run_resumes_to_itself(tmp_path: Path, uninterrupted: dict[str, MetaTrainer]) -> None:
    build_trainer(tmp_path).fit(progress=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    resumed = build_trainer(tmp_path)
    resumed.fit(resume=True, progress=False)
    assert_same_run(resumed, uninterrupted["logistic_normal"])
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_without_a_checkpoint_resume_starts(tmp_path: Path, uninterrupted: dict[str, MetaTrainer]) -> None:
    trainer = build_trainer(tmp_path / "new" / "folder")
    trainer.fit(resume=True, progress=False)
    assert_same_run(trainer, uninterrupted["logistic_normal"])


def test_without_resume_the_checkpoint_is_not_read(tmp_path: Path, uninterrupted: dict[str, MetaTrainer]) -> None:
    stop_after(build_trainer(tmp_path), 4)
    trainer = build_trainer(tmp_path)
    trainer.fit(progress=False)
    assert_same_run(trainer, uninterrupted["logistic_normal"])


def test_crash_while_writing_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build_trainer(tmp_path)
    replace, calls = os.replace, []

    def dying_replace(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying_replace)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(progress=False)
    assert load_state(tmp_path / CHECKPOINT)["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_history(uninterrupted: dict[str, MetaTrainer]) -> None:
    for trainer in uninterrupted.values():
        frame = pd.DataFrame(trainer.history)
        assert frame["step"].tolist() == list(range(1, STEPS + 1))
        columns = {"loss", "episode_loss", "cvar", "threshold", "kl", "negative_elbo", "sparsity", "images_per_second"}
        assert columns | {"entropy", "variance", "mutual_information"} <= set(frame)
        assert frame.drop(columns=[c for c in frame if c.startswith("validation")]).notna().all(axis=None)
        validated = frame["validation_accuracy"].notna()
        expected = [s % VALIDATE_EVERY == 0 or s == STEPS for s in range(1, STEPS + 1)]
        assert validated.tolist() == expected
        assert frame["validation_accuracy"].dropna().between(0, 1).all()
        assert (frame["validation_cvar"].dropna() >= frame["validation_loss"].dropna() - 1e-6).all()
    for case in ("logistic_normal", "catalog"):  # in the others the KL counts less, or is split
        # per-episode units: the tail over regret and the KL add up to the loss
        frame = pd.DataFrame(uninterrupted[case].history)
        np.testing.assert_allclose(frame["loss"], frame["cvar"] + frame["kl"], rtol=1e-5)
        assert (frame["kl"] >= 0).all()


@pytest.mark.parametrize("announces", [True, False])
def test_the_history_tells_of_the_posterior_before_the_update(announces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the losses and the KL of the row are of, at no second pass of a guide that announces it."""
    trainer = build_trainer(None, "catalog")
    before, stream, runs = copy.deepcopy(trainer.guide), trainer.sampler.state_dict(), []
    guide, posterior = type(trainer.guide), type(trainer.guide).posterior
    monkeypatch.setattr(guide, "posterior", lambda self, batch: runs.append(batch) or posterior(self, batch))
    if not announces:  # as a guide with a forward of its own does not
        monkeypatch.setattr("pyro_smat.guides.router.announce", lambda posterior: posterior)
    row = trainer.training_step()
    assert len(runs) == (1 if announces else 2)  # for both vectorised particles
    trainer.sampler.load_state_dict(stream)
    batch = trainer.features.attach(trainer.sampler.sample(trainer.settings.episodes))
    assert row["entropy"] == pytest.approx(before.posterior(batch).entropy().mean().item(), rel=1e-5)
    assert row["entropy"] != pytest.approx(trainer.guide.posterior(batch).entropy().mean().item(), rel=1e-5)


@pytest.mark.parametrize("case", ["logistic_normal", "catalog"])
def test_training_lowers_the_loss_of_new_episodes(case: str) -> None:
    mean = ("objective.rho=1.0", "objective.reference=none", "objective.kl_weight=0.01")
    rates = {"learning_rate": 3e-2, "delta_learning_rate": 3e-2}
    trainer = build_trainer(None, case, mean, steps=25, validate_every=0, **rates)
    assert trainer.features.pool is not None
    fixed = EpisodeSampler(trainer.features.pool, 3, 3, 3, seed=5).sample(40)
    trainer.validation = [trainer.features.attach(fixed)]
    before = trainer.validate()["validation_loss"]
    history = trainer.fit(progress=False)
    assert "validation_loss" not in history
    assert trainer.validate()["validation_loss"] < 0.975 * before


def test_learning_rates_warm_up_and_fall() -> None:
    trainer = build_trainer(None, steps=12, warmup=4, learning_rate=1e-3)
    rates = []
    for _ in range(12):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.training_step()
    factors = [row[0] / 1e-3 for row in rates]
    expected = [0.25, 0.5, 0.75, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert factors == pytest.approx(expected)
    base = (1e-3, 1e-3, 1e-3, 5e-2)
    assert all(row == pytest.approx([b * f for b in base]) for row, f in zip(rates, factors, strict=True))


def test_every_parameter_is_in_one_group() -> None:
    for case in CASES:
        trainer = build_trainer(None, case)
        grouped = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
        everything = [id(p) for module in (trainer.model, trainer.guide) for p in module.parameters()]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == set(everything)
        decaying = [p for g in trainer.optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]]
        assert all(p.ndim > 1 for p in decaying)
        assert all(p is not trainer.model.experts.delta for p in decaying)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "names"), [({"learning_rate": 0.5}, "learning_rate"), ({"steps": 20, "warmup": 7}, "steps, warmup")]
)
def test_other_settings_are_refused_by_name(changed: dict, names: str, tmp_path: Path) -> None:
    build_trainer(tmp_path, steps=3).save(tmp_path / CHECKPOINT)
    trainer = build_trainer(tmp_path, **{"steps": 3, **changed})
    with pytest.raises(
        ValueError, match=rf"{CHECKPOINT}: written with other settings \({names}\); resume with the same"
    ):
        trainer.fit(resume=True, progress=False)


def test_another_guide_is_refused(tmp_path: Path) -> None:
    build_trainer(tmp_path).save(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"does not fit this model and guide (.|\n)*resume with the same config"):
        build_trainer(tmp_path, "catalog").fit(resume=True, progress=False)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    build_trainer(tmp_path).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        build_trainer(tmp_path).fit(resume=True, progress=False)
    save_state(path, {"step": 3})
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: .*expected a checkpoint of MetaTrainer"):
        build_trainer(tmp_path).fit(resume=True, progress=False)


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        trainer = build_trainer(tmp_path)
        trainer.fit(progress=False)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.elbo.episode_loss = lambda fn, labels, mask, value=value: fn.log_prob(labels) * value  # type: ignore[misc]
        with pytest.raises(ValueError, match=rf"the loss is (nan|-?inf) at step {STEPS + 1}; .* lower learning_rate"):
            trainer.training_step()
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_gradient_that_is_nan_stops_before_the_step_though_the_loss_is_finite(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, steps=2, validate_every=0)
    before = [p.detach().clone() for p in (*trainer.model.parameters(), *trainer.guide.parameters())]

    def rooted(fn: Any, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = fn.log_prob(labels)
        return found + (found - found).sqrt()  # 0, with the slope of a root at 0

    trainer.elbo.episode_loss = rooted  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the gradient is not finite at step 1, though the loss is"):
        trainer.training_step()
    after = (*trainer.model.parameters(), *trainer.guide.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, steps=6, validate_every=0, precision="float16")
    assert trainer.scaler.get_scale() == INITIAL_SCALE
    trainer.scaler.scale(torch.zeros(()))  # or it has no scale yet to be changed
    trainer.scaler.update(2.0**60)  # of which float16 knows nothing: all gradients are infinite
    before = {name: p.clone() for name, p in trainer.guide.named_parameters()}
    trainer.training_step()
    assert all(torch.equal(p, before[name]) for name, p in trainer.guide.named_parameters())
    assert trainer.scaler.get_scale() == 2.0**59
    trainer.scaler.update(1024.0)
    trainer.training_step()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.guide.named_parameters())
    trainer.save(tmp_path / CHECKPOINT)
    scaler, row = trainer.scaler.state_dict(), trainer.training_step()
    other = build_trainer(tmp_path, steps=6, validate_every=0, precision="float16")
    other.load(tmp_path / CHECKPOINT)
    assert other.scaler.state_dict() == scaler
    assert other.training_step()["loss"] == row["loss"]


def test_cuda_graphs_are_on_while_training_and_change_no_step_where_there_is_no_gpu(
    uninterrupted: dict[str, MetaTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(None, "concrete")
    trainer.settings = trainer.settings.model_copy(update={"cuda_graphs": True})
    network = trainer.model.network
    before, during = network.graphs, []
    step = trainer.training_step

    def training_step() -> dict[str, float]:
        row = step()
        during.append((network.cuda_graphs, network.graphs, dict(network.graphs.fallbacks)))
        return row

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.fit(progress=False)
    assert_same_run(trainer, uninterrupted["concrete"])
    assert all(on and graphs is not before for on, graphs, _ in during)
    assert list(during[-1][2]) == ["theta is on cpu; expected a CUDA device"]
    assert caplog.text.count("running without a CUDA graph: theta is on cpu") == 1
    assert not network.cuda_graphs
    assert network.graphs is before
