"""The code of docs/moe.md runs as it is written, and what the page says of it is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES

from pyro_smat.moe import attachment_of, detach, generate, trajectories

PAGE = (Path(__file__).parents[2] / "docs" / "moe.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_block_runs_and_repeats_itself() -> None:
    assert len(BLOCKS) == 1
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    network, attachment, functions = names["network"], names["attachment"], names["functions"]
    information = names["prediction"].mutual_information
    assert (information > 0).all()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in names["guide"].parameters())
    assert attachment_of(network).routers == attachment.routers
    assert names["tokens"].shape == (3, 31)
    assert torch.equal(generate(attachment, names["prompts"], functions, max_new_tokens=20), names["tokens"])
    again = trajectories(attachment, functions, lambda: network(**names["batch"]).logits[:, -1])
    assert torch.equal(again.mutual_information, information)
    detach(network)
    with pytest.raises(RuntimeError, match="no longer attached"):
        trajectories(attachment, functions, lambda: network(**names["batch"]).logits[:, -1])


def test_the_number_of_families_is_that_of_the_tests() -> None:
    assert f"all {len(FAMILIES)} families tested" in PAGE
