"""What the quickstart's router, half trained, says of itself is true in every condition, on letters that nothing was
chosen on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyro_smat.inference.deployment.classifier import RoutedClassifier

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from doubt import CONDITIONS, CONTROLS, SPLITS, outcomes, table, trained


@pytest.mark.slow
def test_stated_misrouting_and_doubts(tmp_path_factory: pytest.TempPathFactory) -> None:
    classifier = RoutedClassifier.load(trained(tmp_path_factory.mktemp("quickstart"), ["training.steps=50"]))
    found = outcomes(classifier, 40)
    print(table(found))
    for split in SPLITS:
        for condition in CONDITIONS:
            assert found[split, condition].misrouting_is_calibrated, (split, condition)
        assert found[split, "clean"].doubted <= 0.1
        assert found[split, "confounded"].doubted >= 0.7
        for control in CONTROLS:
            assert found[split, control].doubted >= 0.9, (split, control)
