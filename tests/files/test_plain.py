"""Plain values: strict JSON, whatever numbers went in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pyro_smat.files import plain, write_json


def test_json_reads_back_what_it_can_say(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, math.nan], "b": {"c": (math.inf, "NaN", None, True)}, "d": -math.inf}

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    write_json(tmp_path / "values.json", value)
    found = json.loads((tmp_path / "values.json").read_text(), parse_constant=refuse)
    assert found == {"a": [1, 2.5, None], "b": {"c": [None, "NaN", None, True]}, "d": None}
    assert math.isnan(value["a"][2])  # type: ignore[index]


@pytest.mark.parametrize("value", [0.0, -1, "inf", None, False, [], {}])
def test_what_is_plain_stays(value: object) -> None:
    assert plain(value) == value
    assert type(plain(value)) is type(value)
