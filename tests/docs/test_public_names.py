"""``from pyro_smat import ...``: every name is there, and importing the package alone loads nothing heavy."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
from other_process import run_python

import pyro_smat

HEAVY = ("torch", "numpy", "pydantic", "pyro", "scipy", "pandas", "matplotlib", "arviz", "PIL")
DESIGNED = {
    "SourceLibrary",
    "ParameterSpace",
    "TaskNetwork",
    "compose",
    "Episode",
    "EpisodeBatch",
    "EpisodeSampler",
    "read_folder",
    "read_csv",
    "RoutedClassifier",
    "RoutedModel",
    "CVaR_ELBO",
    "MetaTrainer",
    "evaluate",
    "diagnose",
    "Labelled",
    "TrainingSettings",
    "build_network",
}


def test_names_are_there_and_lazy_ones_are_known_to_type_checkers() -> None:
    assert DESIGNED <= set(pyro_smat.__all__) <= set(dir(pyro_smat))
    checked = Path(pyro_smat.__file__).read_text().split("if TYPE_CHECKING:")[1].split("__version__")[0]
    for name in set(pyro_smat.__all__) - {"__version__"}:
        assert getattr(pyro_smat, name).__module__.startswith("pyro_smat.")
        assert re.search(rf"\b{name}\b", checked), f"{name} is not imported for type checkers"


def test_every_guide_and_prior_of_its_room_is_there() -> None:
    from pyro_smat import guides
    from pyro_smat.models import priors

    shipped = {name for name in guides.__all__ if name.endswith("Guide")} | {
        name for name in priors.__all__ if name.endswith("Prior")
    }
    abstract = {"RoutingGuide", "RoutingPrior", "SimplexPrior"}
    assert shipped - abstract <= set(pyro_smat.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Routed'"):
        _ = pyro_smat.Routed


def test_import_is_light_and_takes_at_most_a_tenth_of_a_second() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import pyro_smat; "
        f"print(time.perf_counter() - start, [m for m in {HEAVY} if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        found = run_python("-c", program)
        taken, loaded = found.split(maxsplit=1)
        assert loaded.strip() == "[]"
        seconds.append(float(taken))
    assert statistics.median(seconds) <= 0.1
