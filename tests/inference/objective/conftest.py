"""Fixtures for the tests of the objective."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch
from scored_choices import Script


@pytest.fixture
def double_precision() -> Iterator[None]:
    """New tensors are float64, so that gradients can be compared to nine digits; the parameter store is empty."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(before)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)
