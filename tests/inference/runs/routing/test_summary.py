"""summarize_parts: counts, means and CVaRs by hand; certificates as the certificates room makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyro_smat.certificates import cvar_upper_bound, mean_upper_bound
from pyro_smat.inference.evaluation.certification import CERTIFICATE_SEED
from pyro_smat.inference.runs.routing import summarize_parts
from pyro_smat.inference.runs.routing.parts import write_part

pytest.importorskip("pyarrow")


@pytest.fixture
def output(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Five parts of ten tasks, written out of order: 45 with losses, three without labels, two that failed."""
    error = np.random.default_rng(0).random(50)
    for number in (3, 0, 4, 1, 2):
        rows = []
        for i in range(10 * number, 10 * number + 10):
            row = {"task": f"t{i}", "reliable": i % 2 == 0, "falls_back": False, "repeated": int(i == 7)}
            if i < 45:
                row |= {"error": error[i], "brier": error[i] / 2, "nll": 3 * error[i]}
            rows.append(row if i < 48 else {"task": f"t{i}", "failure": "no images"})
        write_part(tmp_path / "parts", number, rows, sources=("a", "b"), probabilities=False)
    return tmp_path, error[:45]


def test_counts_and_losses(output: tuple[Path, np.ndarray]) -> None:
    folder, error = output
    found = summarize_parts(folder, rho=0.2)
    assert (found.tasks, found.failed, found.labelled, found.repeated) == (50, 2, 45, 1)
    assert found.reasons == {"no images": 2}
    assert (found.reliable, found.falls_back) == (0.5, 0.0)
    worst = np.sort(error)[-9:]
    assert found.losses["error"].mean == pytest.approx(error.mean())
    assert found.losses["error"].cvar == pytest.approx(worst.mean())
    assert found.losses["nll"].cvar == pytest.approx(3 * worst.mean())


@pytest.mark.parametrize("loss", ["error", "brier"])
def test_certificates(loss: str, output: tuple[Path, np.ndarray]) -> None:
    folder, error = output
    values = error if loss == "error" else error / 2
    found = summarize_parts(folder, loss=loss, rho=0.2, delta=0.1)  # type: ignore[arg-type]
    bounds = [one.bound for one in found.certificates]
    assert bounds[0] == mean_upper_bound(values, 0.05, seed=CERTIFICATE_SEED).bound
    assert bounds[1] == cvar_upper_bound(values, 0.2, 0.05, seed=CERTIFICATE_SEED).bound
    assert "45" in found.certificates[0].population
    assert "they share delta = 0.1" in str(found)


def test_no_labels_no_certificates_and_no_parts_no_summary(tmp_path: Path) -> None:
    write_part(tmp_path / "parts", 0, [{"task": "a", "reliable": True}], sources=("a",), probabilities=False)
    found = summarize_parts(tmp_path)
    assert (found.certificates, dict(found.losses), found.labelled) == ((), {}, 0)
    with pytest.raises(ValueError, match="no whole parts"):
        summarize_parts(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="loss is 'nll'"):
        summarize_parts(tmp_path, loss="nll")  # type: ignore[arg-type]
