"""Tables of sources: their numbers against numpy, their lines for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_sources import network, weights

from pyro_smat.sources import SourceLibrary, check_compatibility, compress, streaming
from pyro_smat.sources.comparison import compare
from pyro_smat.sources.layout import readable_bytes
from pyro_smat.sources.tables import comparison_table, compression_table

BLOCKS = {"body": r"[01]\.", "head": ".*"}


def library_of_four() -> SourceLibrary:
    states = {name: weights(seed) for seed, name in enumerate(("pre", "a", "b"))}
    states["c"] = {k: v.clone() for k, v in states["a"].items()}
    states["c"]["3.bias"] += 1.0  # as a, but for three weights
    return SourceLibrary.from_state_dicts(network(), states, BLOCKS)


@pytest.mark.parametrize("piece", [5, 2**16])
def test_comparison_is_that_of_the_rows(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(streaming, "PIECE", piece)
    library = library_of_four()
    found = compare(library)
    basis = library.basis.double().numpy()
    size = library.space.block_sizes[0]
    distances, cosines, differing = (t.numpy() for t in (found.distance, found.cosine, found.differing))
    np.testing.assert_allclose(found.norm.numpy(), np.linalg.norm(basis, axis=1), rtol=1e-12)
    for number, rows in enumerate((basis[:, :size], basis[:, size:], basis)):
        vectors = rows - rows[0]
        for a in range(4):
            for b in range(4):
                distance = np.linalg.norm(rows[a] - rows[b])
                np.testing.assert_allclose(distances[number, a, b], distance, rtol=1e-12)
                assert differing[number, a, b] == pytest.approx(np.mean(rows[a] != rows[b]))
                if a and b:
                    lengths = np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b])
                    np.testing.assert_allclose(cosines[number, a, b], vectors[a] @ vectors[b] / lengths, rtol=1e-9)
                else:
                    assert np.isnan(cosines[number, a, b])
    assert distances[0, 1, 3] == 0.0
    assert differing[1, 1, 3] == pytest.approx(3 / (basis.shape[1] - size))


def test_comparison_table_has_a_line_for_every_pair_and_block() -> None:
    lines = comparison_table(library_of_four()).splitlines()
    assert lines[0].startswith("4 sources, d = 55")
    assert len(lines) == 2 + 6 * 3
    cells = [line.split() for line in lines[2:]]
    assert ["a", "c", "body", "0", "+1.000", "0.0%"] in cells
    assert next(line for line in cells if line[:3] == ["a", "c", "all"])[3] == f"{3**0.5:.4g}"
    assert next(line for line in cells if line[:3] == ["pre", "a", "all"])[4] == "-"
    single = SourceLibrary.from_state_dicts(network(), {"pre": weights(0), "a": weights(1)})
    assert len(comparison_table(single).splitlines()) == 3


def test_inspection_and_compression_tables(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "pre.safetensors")
    tuned = weights(0) | {"3.bias": torch.ones(3)}
    torch.save(tuned, tmp_path / "tuned.pt")
    results = {
        "tuned": compress(tmp_path / "tuned.pt", tmp_path / "small.safetensors", tmp_path / "pre.safetensors"),
        "rough": compress(tmp_path / "tuned.pt", tmp_path / "int8.safetensors", codec="int8", tolerance=0.02),
    }
    text = compression_table(results)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:2] == ["source", "codec"]
    assert "lossless" in lines[1]
    assert "lossless" not in lines[2]
    assert "the base is not counted" in text
    files = {
        "pre": tmp_path / "pre.safetensors",
        "tuned": tmp_path / "tuned.pt",
        "small": tmp_path / "small.safetensors",
    }
    table = str(check_compatibility(network(), files)).splitlines()
    assert table[1].split()[:3] == ["source", "from", "format"]
    for line, (name, path), kind in zip(
        table[2:5], files.items(), ("safetensors", "torch", "auto, lossless"), strict=True
    ):
        assert line.startswith(name)
        assert path.name in line
        assert kind in line
        assert readable_bytes(path.stat().st_size) in line
        assert line.endswith("fits")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (9_061_704, "9.1 MB"), (2_500, "2.5 kB"), (3e12, "3.0 TB")]
)
def test_readable_bytes(count: float, text: str) -> None:
    assert readable_bytes(count) == text
