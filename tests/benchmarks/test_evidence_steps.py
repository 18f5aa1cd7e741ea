"""benchmarks/evidence/steps.py: a row of times for each catalog."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evidence_suite import made_options

# isort: split
import steps
from bench import Bench


@pytest.mark.filterwarnings("ignore:rho x B")
def test_a_row_tells_routings_images_and_steps(tmp_path: Path) -> None:
    made = made_options(tmp_path, most=2)
    told = [cell.strip() for cell in steps.row(Bench(made, 0, torch.device("cpu"))).strip("|").split("|")]
    assert told[:2] == ["6", "64"]
    assert told[3] == str(made.steps)
    assert float(told[5]) > 0
