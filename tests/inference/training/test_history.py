"""What a progress bar shows of a training's rows."""

from __future__ import annotations

import io
from math import nan

import pytest
from tqdm import tqdm

from pyro_smat.inference.training.history import show


@pytest.mark.parametrize(("information", "shown"), [(0.5, "MI=0.50"), (nan, "")], ids=["drawn", "point"])
def test_a_bar_leaves_out_what_a_posterior_has_not(information: float, shown: str) -> None:
    row = {"loss": 1.0, "cvar": 2.0, "kl": 0.25, "mutual_information": information, "images_per_second": 9.0}
    written = io.StringIO()
    with tqdm(total=1, file=written) as bar:
        show(bar, row)
    said = written.getvalue()
    assert "KL=0.25" in said
    assert shown in said
    assert "nan" not in said
