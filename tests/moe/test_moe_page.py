"""The example of docs/moe.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from families import tiny, tokens

from pyro_smat.moe import attachment_of, detach


def test_the_pages_example_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "moe.md").read_text()
    match = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert match is not None
    network = tiny("mixtral", output_router_logits=False).requires_grad_(False)
    data = tokens(2, 6)
    batch = {**data, "attention_mask": torch.ones(2, 6), "labels": data["input_ids"]}
    names = {"network": network, "batch": batch, "prompts": data["input_ids"]}
    exec(match.group(1).replace("max_new_tokens=20", "max_new_tokens=2"), names)
    assert (names["prediction"].mutual_information > 0).all()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in names["guide"].parameters())
    assert attachment_of(network).routers == names["attachment"].routers
    detach(network)
