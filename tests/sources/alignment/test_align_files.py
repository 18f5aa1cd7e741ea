"""Files in, aligned files and a table out; and the few-shot loss that the table's barriers use."""

from __future__ import annotations

import re

import pytest
import small_networks as networks
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks import Conv4
from pyro_smat.sources import compress
from pyro_smat.sources.alignment import FewShotLoss, align_files, find_groups, permute, random_permutations


class Features(nn.Module):
    """The little ResNet without its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = networks.Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _files(network: nn.Module, example: Tensor, folder) -> dict:
    """A reference, a permuted copy and a stranger."""
    spec = find_groups(network, example)
    reference = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copy = permute(reference, spec, random_permutations(spec, torch.Generator().manual_seed(1)))
    stranger = {n: torch.randn_like(t).abs() if t.is_floating_point() else t for n, t in reference.items()}
    files = {}
    for name, state in {"reference": reference, "copy": copy, "stranger": stranger}.items():
        files[name] = folder / f"{name}.safetensors"
        save_file(state, files[name])
    return files


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_aligned_files_are_written_and_described(method, tmp_path):
    torch.manual_seed(0)
    network = Conv4(1, 16, 16)
    images = torch.rand(12, 1, 16, 16)
    files = _files(network, images[:2], tmp_path)
    given = images if method == "activations" else None
    text = align_files(network, files, tmp_path / "aligned", method, given)

    written = {name: load_file(tmp_path / "aligned" / f"{name}.safetensors") for name in files}
    reference, stranger = load_file(files["reference"]), load_file(files["stranger"])
    for name in ("reference", "copy"):
        assert all(torch.equal(written[name][key], reference[key]) for key in reference)
    outputs = []
    for state in (stranger, written["stranger"]):
        network.load_state_dict(state)
        outputs.append(network(images))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    assert any(not torch.equal(written["stranger"][key], stranger[key]) for key in stranger)

    assert "copy aligned to reference" in text
    assert re.search(rf"blocks\.1\.0 +16 +\d+% +-?0\.\d+ +1\.000  {method}\n", text)
    assert re.search(r"distance to reference: \d+(\.\d+)? before, 0 after\n", text)
    assert "barrier" not in text


def test_compressed_sources_are_aligned_as_what_they_read_back_to(tmp_path):
    network = Conv4(1, 8, 16)
    files = _files(network, torch.rand(2, 1, 16, 16), tmp_path)
    small = tmp_path / "small.safetensors"
    assert compress(files["copy"], small, files["reference"]).codecs["sparse"]
    align_files(network, files | {"copy": small}, tmp_path / "aligned")
    written, reference = load_file(tmp_path / "aligned" / "copy.safetensors"), load_file(files["reference"])
    assert all(torch.equal(written[key], reference[key]) for key in reference)


def test_the_barrier_is_told_where_there_are_labelled_images(tmp_path):
    torch.manual_seed(0)
    network = Features()
    files = _files(network, torch.rand(2, 3, 8, 8), tmp_path)
    del files["stranger"]
    text = align_files(network, files, tmp_path / "aligned", pool=_pool())
    plain = re.search(r"copy, as mixed: (\d\.\d+) before, (\d\.\d+) after", text)
    anew = re.search(r"copy, batch normalisation measured anew: (\d\.\d+) before, (\d\.\d+) after", text)
    assert plain
    assert anew
    assert float(plain[1]) > 0.01
    assert float(plain[2]) == float(anew[2]) == 0


def test_bad_requests_write_nothing(tmp_path):
    network = Conv4(1, 8, 16)
    files = _files(network, torch.rand(2, 1, 16, 16), tmp_path)
    out = tmp_path / "aligned"
    with pytest.raises(ValueError, match="method is 'magic'; expected 'weights' or 'activations'"):
        align_files(network, files, out, "magic")
    with pytest.raises(ValueError, match="matching by activations needs images"):
        align_files(network, files, out, "activations")
    with pytest.raises(ValueError, match=r"reference\.safetensors would be overwritten; choose another output folder"):
        align_files(network, files, tmp_path)
    with pytest.raises(ValueError, match=r"'\.\./x' cannot name a file"):
        align_files(network, {"a": files["copy"], "../x": files["stranger"]}, out)
    with pytest.raises(ValueError, match="expected a reference and at least one more"):
        align_files(network, {"a": files["copy"]}, out)
    with pytest.raises(
        ValueError, match=r"copy: shape: blocks\.0\.0\.weight is \(8, 1, 3, 3\), expected \(8, 3, 3, 3\)"
    ):
        align_files(Conv4(3, 8, 16), files, out)
    with pytest.raises(ValueError, match="no such file"):
        align_files(network, {**files, "gone": tmp_path / "gone.safetensors"}, out)
    assert not out.exists()


def _pool() -> ImagePool:
    """Three domains of six classes, each a pattern with noise; domains differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 100, (6, 3, 8, 8), generator=generator)
    labels = torch.arange(6).repeat_interleave(12).repeat(2)
    domain = torch.arange(2).repeat_interleave(72)
    noise = torch.randint(0, 60, (144, 3, 8, 8), generator=generator)
    images = (patterns[labels] + noise + 80 * domain.view(-1, 1, 1, 1)).to(torch.uint8)
    names = tuple("abcdef")
    return ImagePool(images, labels[:, None], ("class",), (names,), domain, ("dark", "bright"))


def test_few_shot_scores_are_those_of_nearest_centroids():
    """Against plain Python over the same episodes, from pixels as features."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale).flatten(1)

    pool, network = _pool(), Pixels()
    loss = FewShotLoss(network, pool, way=3, shot=2, query=4, episodes=7, seed=3, scale=5.0)
    state = {"scale": torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1)}
    score = loss.score(state)
    batch = loss.episodes
    rows = torch.cat([batch.support.rows.flatten(), batch.query.rows.flatten()]).unique()
    features = ((pool.images.float() / 255) * state["scale"]).flatten(1)
    for d in (0, 1):
        own = rows[pool.domain[rows] == d]
        features[pool.domain == d] -= features[own].mean(0)
    for e in range(7):
        support, query = features[batch.support.rows[e]], features[batch.query.rows[e]]
        centres = torch.stack([support[batch.support.labels[e] == k].mean(0) for k in range(3)])
        logits = 5 * torch.cosine_similarity(query[:, None], centres[None], dim=-1)
        expected = torch.nn.functional.cross_entropy(logits, batch.query.labels[e])
        torch.testing.assert_close(score.losses[e], expected, atol=1e-5, rtol=1e-5)
        hits = (logits.argmax(1) == batch.query.labels[e]).float().mean()
        assert score.accuracies[e] == pytest.approx(hits.item())
    assert loss(state) == pytest.approx(score.losses.mean().item())
    with pytest.raises(ValueError, match=r"missing: scale \(3, 1, 1\)"):
        loss({})
