"""The Python of the README runs as it stands, from top to bottom, with short training on the built-in images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyro_smat import RoutedClassifier, build_network, glyph_pool, write_folder
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import build_router

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
SHORT = {  # what a block that has the first word would spend minutes on
    "MetaTrainer": {
        "steps=300, episodes=25": "steps=2, episodes=25",
        "trainer.fit()": "trainer.fit(progress=False)",
        "validation=EpisodeSampler(held_out)": "validation=EpisodeSampler(held_out, 3, 2, 2)",
    },
    "diagnose_router": {"episodes=60, num_samples=100": "episodes=8, num_samples=100"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snippets open: the quickstart's router (untrained), two checkpoints, and class folders."""
    folder = tmp_path_factory.mktemp("readme")
    router = build_router(RunConfig.model_validate({"guide": "catalog", "experts": {"count": 1}}))
    RoutedClassifier(router).save(folder / "runs" / "quickstart" / "router")
    for seed, name in enumerate(("base", "birds")):
        torch.manual_seed(seed)
        save_file(build_network("conv4", channels=8, image_size=32).state_dict(), folder / f"{name}.safetensors")
    for split in ("train", "validation"):
        write_folder(glyph_pool("validation"), folder / "images" / split, each=15)
    return folder


def given(block: str) -> dict[str, object]:
    """What the text around a block says that the reader has: predictions, losses and scores of their own."""
    rng = np.random.default_rng(0)
    if "minimize_on_simplex" in block:
        predictions, features = rng.standard_normal((40, 3)), rng.standard_normal((40, 6))
        sources = rng.standard_normal((3, 6))
        return {"predictions": predictions, "targets": predictions[:, 0], "features": features, "sources": sources}
    if "cvar_upper_bound" in block:
        return {"losses": rng.uniform(size=400), "scores": rng.uniform(size=400), "others": rng.uniform(size=100)}
    return {}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = BLOCKS[number]
    for word, replacements in SHORT.items():
        for long, short in replacements.items() if word in text else ():
            assert long in text
            text = text.replace(long, short)
    names = given(text)
    exec(compile(text, f"README.md, block {number}", "exec"), names)
    if "from_trained" in text:
        assert isinstance(names["task"].posterior.mean, torch.Tensor)  # type: ignore[attr-defined]
        assert (folder / "router" / "router.json").is_file()


def test_training_imports_from_pyro_smat_alone() -> None:
    training = next(block for block in BLOCKS if "from_trained" in block)
    assert set(re.findall(r"^(?:from|import) (\S+)", training, re.MULTILINE)) == {"pyro_smat"}


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", page.read_text()):
            target = page.parent / (link[0] or link[1])
            assert target.exists(), f"{page.name} leads to {target}, which is not there"
