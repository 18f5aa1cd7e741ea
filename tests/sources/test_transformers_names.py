"""Files that save_pretrained writes are sources: of every type of encoder that can be made small, bit for bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyro_smat.networks import build_network
from pyro_smat.networks.outputs import as_features
from pyro_smat.networks.preprocessing import detach_preprocessing
from pyro_smat.sources import SourceLibrary, check_compatibility, compress, fit_subspace, save_subspace

transformers = pytest.importorskip("transformers")
modeling_auto = pytest.importorskip("transformers.models.auto.modeling_auto")

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 16,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "image_size": 32,
    "patch_size": 2,
    "window_size": 4,
}
PYRAMID: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}

TYPES: dict[str, dict[str, Any]] = {
    "aimv2_vision_model": VIT,
    "beit": VIT,
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 4},
    "chinese_clip_vision_model": VIT,
    "clip_vision_model": VIT,
    "convnext": {**STAGES, "num_stages": 2},
    "convnextv2": {**STAGES, "num_stages": 2},
    "clip": {"vision_config": VIT},
    "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": VIT,
    "dinov3_convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "dinov3_vit": VIT,
    "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "focalnet": {
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
        "image_size": 32,
    },
    "hiera": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "ijepa": VIT,
    "internvl_vision": VIT,
    "levit": {
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [1, 2, 2],
        "key_dim": [4, 4, 4],
        "depths": [1, 1, 1],
    },
    "metaclip_2": {"vision_config": VIT},
    "mlcd_vision_model": VIT,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "num_attention_heads": 2},
    "mobilevitv2": {"width_multiplier": 0.25},
    "pp_lcnet": {"scale": 0.25},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "pvt": PYRAMID,
    "pvt_v2": PYRAMID,
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "resnet": {**STAGES, "embedding_size": 8},
    "segformer": PYRAMID,
    "siglip": {"vision_config": VIT},
    "siglip_vision_model": VIT,
    "swiftformer": {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {},
    "tipsv2_vision_model": VIT,
    "vit": VIT,
    "vit_msn": VIT,
    "yolos": {**VIT, "image_size": [32, 32], "num_detection_tokens": 2},
}


LABELS = 5


def saved(
    kind: str, folder: Path, seed: int = 0, *, shards: str = "5GB", cls: str | None = None, **options: Any
) -> Any:
    """A classifier of that type, else the encoder, with random values everywhere, as from_pretrained reads it back."""
    config = transformers.CONFIG_MAPPING[kind](**TYPES[kind], **options, num_labels=LABELS)
    if cls is None:
        known = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        found = known.get(kind) or modeling_auto.MODEL_MAPPING_NAMES[kind]
        cls = found if isinstance(found, str) else found[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(transformers, cls)(config)
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor), alpha=0.1)
    module.save_pretrained(folder, max_shard_size=shards)
    return copy.deepcopy(type(module).from_pretrained(folder)).eval()  # no longer mapped: sums depend on alignment


def head_of(module: nn.Module) -> list[str]:
    """The parts of a classifier that make as many numbers as it has labels."""
    last = [name for name, part in module.named_modules() if getattr(part, "out_features", None) == LABELS]
    return sorted({name.partition(".")[0] for name in last})


def without(module: nn.Module, head: list[str]) -> nn.Module:
    for name in head:
        setattr(module, name, nn.Identity())
    return module


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_of_transformers_gives_the_features_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path, seed=1)
    head = head_of(theirs)
    network = build_network(f"transformers:{tmp_path}", generator=torch.Generator().manual_seed(0)).eval()
    library = SourceLibrary.from_files(network, {"only": tmp_path}, head=[f"{name}.*" for name in head])
    row = library.space.unflatten(library.basis[0])
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in row.items())
    integers = {name for name, value in theirs.state_dict().items() if not value.is_floating_point()}
    assert set(network.load_state_dict(row, strict=False).missing_keys) <= integers
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    features = network(images)
    prepared = detach_preprocessing(network)[0](images)
    assert torch.equal(features, as_features(without(theirs, head)(prepared)))


def rows_equal(library: SourceLibrary, number: int, theirs: Any) -> bool:
    row = library.space.unflatten(library.basis[number])
    return all(torch.equal(value, theirs.state_dict()[name]) for name, value in row.items())


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "tipsv2_vision_model"])
def test_tensors_that_transformers_splits_are_read_when_they_are_asked_for(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path, use_swiglu_ffn=True)
    head = [f"{name}.*" for name in head_of(theirs)]
    network = build_network(f"transformers:{tmp_path}")
    library = SourceLibrary.from_files(network, {"only": tmp_path}, head=head)
    (split,) = {
        name for name in library.space.names if "layer.0.mlp.gate_proj.weight" in name.replace("layers", "layer")
    }
    checkpoint = library.checkpoints["only"]
    stored = load_file(tmp_path / "model.safetensors")
    assert split not in stored
    assert checkpoint.shape(split) == theirs.state_dict()[split].shape
    assert checkpoint.dtype(split) == torch.float32
    assert rows_equal(library, 0, theirs)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(library)))
    assert torch.equal(copied.basis, library.basis)
    assert torch.equal(copied.checkpoints["only"].read(split), theirs.state_dict()[split])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="was written to since it was opened"):
        checkpoint.read(split)


def test_shards_halves_state_dicts_and_networks_mix(tmp_path: Path) -> None:
    """One library of what people have: shards, 16 bits, names of either kind, a live network."""
    theirs = [saved("vit", tmp_path / str(seed), seed, shards="8KB" if seed == 1 else "5GB") for seed in range(3)]
    assert (tmp_path / "1" / "model.safetensors.index.json").is_file()
    theirs[2].half().save_pretrained(tmp_path / "2")
    torch.save(theirs[0].state_dict(), tmp_path / "memory.pt")
    sources = {
        "file": tmp_path / "0" / "model.safetensors",
        "shards": tmp_path / "1",
        "half": tmp_path / "2",
        "memory": tmp_path / "memory.pt",
        "dict": load_file(tmp_path / "0" / "model.safetensors"),
        "live": theirs[1],
    }
    network = build_network(f"transformers:{tmp_path / '0'}")
    library = SourceLibrary.from_files(network, sources, head=["classifier.*"])
    for number, which in enumerate([0, 1, 2, 0, 0, 1]):
        assert rows_equal(library, number, theirs[which]), library.names[number]
    added = library.without("live").with_source("more", tmp_path / "1")
    assert rows_equal(added, 5, theirs[1])
    report = check_compatibility(network, {"x": tmp_path / "0"})
    found = {(issue.kind, issue.tensor) for issue in report.sources[0].issues}
    assert found == {("extra", "classifier.weight"), ("extra", "classifier.bias")}


def test_an_encoder_opens_the_file_of_a_classifier_and_the_other_way_round(tmp_path: Path) -> None:
    classifier, encoder = saved("vit", tmp_path / "c"), saved("vit", tmp_path / "e", 1, cls="ViTModel")
    of_encoder = SourceLibrary.from_files(
        build_network(f"transformers:{tmp_path / 'e'}"), {"c": tmp_path / "c"}, head=["classifier.*", "pooler.*"]
    )
    row = of_encoder.space.unflatten(of_encoder.basis[0])
    assert all(torch.equal(value, classifier.vit.state_dict()[name]) for name, value in row.items())
    of_classifier = SourceLibrary.from_files(
        build_network(f"transformers:{tmp_path / 'c'}"), {"e": tmp_path / "e"}, head=["pooler.*"]
    )
    row = of_classifier.space.unflatten(of_classifier.basis[0])
    assert all(torch.equal(value, encoder.state_dict()[name.removeprefix("vit.")]) for name, value in row.items())


def test_a_network_of_transformers_that_was_not_built_by_name(tmp_path: Path) -> None:
    theirs = saved("vit", tmp_path)
    with_its_head = SourceLibrary.from_files(theirs, {"only": tmp_path})
    assert rows_equal(with_its_head, 0, theirs)


def test_two_stored_tensors_for_one_of_the_network_are_refused(tmp_path: Path) -> None:
    theirs = saved("vit", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = "vit.layernorm.weight"
    save_file({**stored, "layernorm.weight": stored[name].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"'layernorm.weight' and '{name}' are both '{name}' of the network"):
        SourceLibrary.from_files(theirs, {"only": tmp_path})


def test_differences_and_subspaces_belong_to_the_file(tmp_path: Path) -> None:
    """A compressed file has the names of its base; a subspace is found whoever opens the file."""
    theirs = [saved("vit", tmp_path / str(seed), seed) for seed in range(2)]
    file = tmp_path / "1" / "model.safetensors"
    compress(file, tmp_path / "small.safetensors", base=tmp_path / "0", codec="sparse")
    network = build_network(f"transformers:{tmp_path / '0'}")
    sources = {"0": tmp_path / "0", "1": tmp_path / "small.safetensors"}
    library = SourceLibrary.from_files(network, sources, head=["classifier.*"])
    assert rows_equal(library, 1, theirs[1])
    assert torch.equal(library.without("1").with_source("1", sources["1"]).basis, library.basis)
    save_subspace(file, fit_subspace(torch.rand(20, 16), 2))
    again = SourceLibrary.from_files(network, {"0": tmp_path / "0", "1": file}, head=["classifier.*"])
    assert set(again.subspaces) == {"1"}
