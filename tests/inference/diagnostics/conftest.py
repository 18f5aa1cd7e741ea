"""Four exact worlds: known truth, biased, too narrow, and what a guide that knows nothing says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_smat.models.finite_routes import FiniteRoutes

PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LAWS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)


@pytest.fixture(scope="session")
def world() -> FiniteRoutes:
    """Four routes that five observations tell apart a little."""
    return FiniteRoutes(PRIOR, LAWS)


@pytest.fixture(autouse=True)
def _agg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")


def sharpen(probabilities: np.ndarray, power: float) -> np.ndarray:
    """p^power, normalised."""
    raised = probabilities**power
    return raised / raised.sum(-1, keepdims=True)
