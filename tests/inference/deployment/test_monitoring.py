"""RoutingMonitor on routed episodes: alarms, the file that it is saved in, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyro_smat.inference.deployment.monitoring import RoutingMonitor, routing_scores


def test_scores_of_a_router(make_router: Callable) -> None:
    router = make_router("catalog", episodes=4)
    posterior = router.guide.posterior(router.batch)
    scores = routing_scores(posterior, router.model.prior)
    assert set(scores) == {"kl", "entropy"}
    assert scores["kl"].shape == scores["entropy"].shape == (4,)
    assert (scores["kl"] >= 0).all()


def test_alarm_level_is_shared_and_stays_raised(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    reference = {"kl": generator.gamma(2, size=300), "entropy": generator.random(300)}
    monitor = RoutingMonitor.from_validation(reference, alpha=0.01)
    for _ in range(50):
        reading = monitor.update({"kl": generator.gamma(2), "entropy": generator.random(), "other": 1.0})
    assert not reading.alarm
    assert reading.needed == 200
    assert "no alarm" in str(reading)
    while not reading.alarm:  # the entropies collapse
        reading = monitor.update({"kl": generator.gamma(2), "entropy": 0.1 * generator.random()})
        assert reading.steps < 150
    assert reading.evidence["entropy"] >= 200 > reading.evidence["kl"]
    monitor.save(tmp_path / "monitor.json")
    again = RoutingMonitor.load(tmp_path / "monitor.json")
    for _ in range(5):
        scores = {"kl": generator.gamma(2), "entropy": generator.random()}
        assert again.update(scores) == monitor.update(scores)
    assert again.reading.alarm
    assert "DRIFT" in str(again.reading)


def test_bad_input_is_named(tmp_path: Path) -> None:
    monitor = RoutingMonitor.from_validation({"kl": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"missing .'kl'."):
        monitor.update({"entropy": 0.3})
    with pytest.raises(ValueError, match="NaN"):
        monitor.update({"kl": float("nan")})
    with pytest.raises(ValueError, match="alpha is 0"):
        RoutingMonitor.from_validation({"kl": [0.1]}, alpha=0)
    with pytest.raises(ValueError, match="no score"):
        RoutingMonitor({})
    (tmp_path / "bad.json").write_text(json.dumps({"alpha": 0.1}))
    with pytest.raises(ValueError, match=r"bad\.json: martingales: Field required"):
        RoutingMonitor.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"absent\.json"):
        RoutingMonitor.load(tmp_path / "absent.json")
