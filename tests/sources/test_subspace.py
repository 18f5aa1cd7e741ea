"""Feature subspaces: against scikit-learn's PCA, and that a file belongs to one checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from pyro_smat.sources import FeatureSubspace, SourceLibrary, fit_subspace, load_subspace, save_subspace


def features(seed: int = 0, count: int = 40) -> torch.Tensor:
    return (
        torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) * torch.tensor([4, 3, 2, 1, 0.5, 0.2]) + 1
    )


def test_it_is_principal_component_analysis() -> None:
    known, new = features(), features(1, 9)
    found = fit_subspace(known, rank=3)

    def residual(fitted: PCA, points: np.ndarray) -> np.ndarray:
        rest = points - fitted.inverse_transform(fitted.transform(points))
        return (rest**2).sum(1) / ((points - fitted.mean_) ** 2).sum(1)

    whole = PCA(3, svd_solver="full").fit(known.numpy())
    np.testing.assert_allclose(found.residual(new), residual(whole, new.numpy()), rtol=1e-4)
    even, odd = known[0::2].numpy(), known[1::2].numpy()
    held_out = [residual(PCA(3, svd_solver="full").fit(a), b) for a, b in ((even, odd), (odd, even))]
    assert found.usual == pytest.approx(np.concatenate(held_out).mean(), rel=1e-5)
    assert (found.rank, found.images) == (3, 40)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 6))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two checkpoints, a subspace beside the second."""
    paths = {}
    for seed, name in enumerate(("base", "other")):
        torch.manual_seed(seed)
        paths[name] = tmp_path / f"{name}.safetensors"
        save_file(network().state_dict(), paths[name])
    save_subspace(paths["other"], fit_subspace(features(), rank=2))
    return paths


def test_it_is_kept_beside_the_checkpoint_and_found_by_the_library(files: dict[str, Path]) -> None:
    assert files["other"].with_name("other.safetensors.subspace").is_file()
    library = SourceLibrary.from_files(network(), files)
    assert list(library.subspaces) == ["other"]
    expected = fit_subspace(features(), rank=2)
    found = library.subspaces["other"]
    assert torch.equal(found.directions, expected.directions)
    assert (found.images, found.usual) == (expected.images, expected.usual)
    assert library.without("base", fallback="other").subspaces["other"] is found
    assert list(library.with_source("third", network()).subspaces) == ["other"]
    assert load_subspace(network()) is None
    in_memory = SourceLibrary(library.names, library.basis, library.space)
    assert in_memory.subspaces == {}
    assert list(library.mapped(files["base"].parent / "basis.bin").subspaces) == ["other"]


def test_it_belongs_to_its_weights(files: dict[str, Path]) -> None:
    torch.manual_seed(7)
    save_file(network().state_dict(), files["other"])
    library = SourceLibrary.from_files(network(), files)
    with pytest.raises(ValueError, match=r"other\.safetensors\.subspace: was fitted under weights of digest"):
        _ = library.subspaces


def test_damage_is_seen(files: dict[str, Path]) -> None:
    path = files["other"].with_name("other.safetensors.subspace")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_subspace(files["other"])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is 20; expected 1 to 6"):
        fit_subspace(features(), rank=20)
    with pytest.raises(ValueError, match="expected finite ones"):
        fit_subspace(features() / 0)
    good = fit_subspace(features(), rank=2)
    with pytest.raises(ValueError, match="features have width 5; expected 6"):
        good.residual(torch.ones(2, 5))
    with pytest.raises(ValueError, match="orthonormal"):
        replace(good, directions=2 * good.directions)
    with pytest.raises(ValueError, match=r"usual residual is 0\.0"):
        replace(good, usual=0.0)
    with pytest.raises(ValueError, match="is no file"):
        save_subspace(network(), good)
    parts = good.tensors()
    assert torch.equal(FeatureSubspace.of_tensors(parts).mean, good.mean)
    with pytest.raises(ValueError, match=r"holds \['directions', 'mean'\]"):
        FeatureSubspace.of_tensors({k: v for k, v in parts.items() if k != "facts"})
