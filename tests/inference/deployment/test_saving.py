"""A saved router is the router; damaged, foreign and incomplete folders are refused, and say what is wrong."""

from __future__ import annotations

import copy
import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from router_files import read_description, write_description, write_tensors
from safetensors.torch import load_file
from tiny_run import ENCODING_GUIDES, predictions, quick_config, reopened, tiny_config, tiny_pool, tiny_router, trained
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.files import write_atomically, write_record
from pyro_smat.guides import LogisticNormalGuide
from pyro_smat.inference.assembly.config import build_config
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.deployment.changing_sources import add_source
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.registry import names
from pyro_smat.sources import SourceLibrary, compress

CATALOG_GUIDES = ("catalog", "hierarchical")
MIXTURES = {
    True: '{kind="mixture", components=[{kind="uniform"}, {kind="cost_aware", beta=3.0}]}',
    False: '{kind="mixture", components=[{kind="dirichlet", concentration=2.0}, {kind="simplex_cost", beta=3.0}]}',
}


def tiny_classifier(*overrides: str) -> RoutedClassifier:
    router = tiny_router(tiny_config(overrides))
    generator = torch.Generator().manual_seed(1)
    for parameter in (*router.model.parameters(), *router.guide.parameters()):  # as if trained
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return RoutedClassifier(router, Deployment(rule={"kind": "posterior_predictive", "num_samples": 3}, threshold=0.1))


@pytest.mark.parametrize("blocks", [[], ['sources.blocks={weight=".*weight", bias=".*bias"}']])
@pytest.mark.parametrize("guide", ENCODING_GUIDES)
def test_every_guide_is_saved_and_predicts_the_same_bits(guide: str, blocks: list[str], tmp_path: Path) -> None:
    prior = f"prior={MIXTURES[guide in CATALOG_GUIDES]}"
    classifier = tiny_classifier(f"guide.kind={guide}", prior, *blocks)
    again = reopened(classifier, tmp_path)
    for rule in (None, *names("decision_rule")):
        assert torch.equal(predictions(again, rule), predictions(classifier, rule)), rule
    assert again.deployment == classifier.deployment
    assert again.router.config == classifier.router.config
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert str(again.adapt(images, ["a", "b"] * 3).explain()) == str(classifier.adapt(images, ["a", "b"] * 3).explain())


class Permuted(torch.nn.Module):
    """Features in an order that is drawn when the network is made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6))
        self.register_buffer("order", torch.randperm(6))
        self.register_buffer("scale", torch.arange(1.0, 7.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, self.order] * self.scale


def test_tables_of_integers_are_saved(tmp_path: Path) -> None:
    first, second = Permuted().eval(), Permuted().eval()
    second.order.copy_(first.order)
    sources = {"pre": first, "other": second}
    classifier = RoutedClassifier.from_sources(sources, network=first, image_shape=(1, 8, 8))
    classifier.save(tmp_path)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    fresh = Permuted()
    fresh.order.copy_(first.order.roll(1))
    again = RoutedClassifier.load(tmp_path, network=fresh)
    found, expected = (made.adapt(images, [0, 1] * 3).predict_proba(images) for made in (again, classifier))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("killed_at", ["router.json.new", "router.safetensors", "router.json"])
@pytest.mark.parametrize("first", [True, False])
def test_saving_that_is_killed_leaves_the_old_router_or_the_new_one(
    killed_at: str, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tiny_classifier("guide.kind=catalog"), tiny_classifier("guide.kind=point")
    if not first:
        old.save(tmp_path)
    rename = os.replace

    def killed(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name == killed_at:
            raise KeyboardInterrupt  # nothing that comes later is done

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    monkeypatch.setattr(os, "replace", rename)
    if killed_at == "router.json.new":
        if first:
            with pytest.raises(ValueError, match=r"router\.json: no such file"):
                RoutedClassifier.load(tmp_path, network=old.router.network)
        else:
            assert torch.equal(
                predictions(RoutedClassifier.load(tmp_path, network=old.router.network)), predictions(old)
            )
    else:
        assert torch.equal(predictions(RoutedClassifier.load(tmp_path, network=old.router.network)), predictions(new))
    old.save(tmp_path)  # over what was left
    assert torch.equal(predictions(RoutedClassifier.load(tmp_path, network=old.router.network)), predictions(old))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.json", "router.safetensors"]


def test_weights_that_are_damaged_are_refused_whatever_lies_beside_them(tmp_path: Path) -> None:
    classifier = tiny_classifier("guide.kind=catalog")
    classifier.save(tmp_path)
    weights = tmp_path / "router.safetensors"
    content = weights.read_bytes()
    (tmp_path / "router.safetensors.new").write_bytes(content)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged, or of another router"):
        RoutedClassifier.load(tmp_path, network=classifier.router.network)


def test_a_disk_that_is_full_leaves_the_old_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny_classifier("guide.kind=catalog")
    old.save(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, content: bytes) -> None:
        if path.name == "router.safetensors":
            raise ValueError(f"{path.parent}: {path.name} cannot be written (No space left on device)")
        write_atomically(path, content)

    monkeypatch.setattr("pyro_smat.inference.deployment.files_together.write_atomically", full)
    with pytest.raises(ValueError, match="No space left"):
        tiny_classifier("guide.kind=point").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"router\.json: no such file; expected what RoutedClassifier.save"):
        RoutedClassifier.load(tmp_path)
    classifier = tiny_classifier()
    classifier.save(tmp_path)
    (tmp_path / "router.safetensors").unlink()
    with pytest.raises(ValueError, match=r"router\.safetensors: no such file"):
        RoutedClassifier.load(tmp_path, network=classifier.router.network)


def test_tensors_that_are_missing_are_named(tmp_path: Path) -> None:
    classifier = tiny_classifier("guide.kind=catalog", "guide.catalog={kind='k_hot', max_sources=2}")
    classifier.save(tmp_path)
    tensors = load_file(tmp_path / "router.safetensors")

    def load_without(start: str) -> RoutedClassifier:
        write_tensors(tmp_path, {k: v for k, v in tensors.items() if not k.startswith(start)})
        return RoutedClassifier.load(tmp_path, network=classifier.router.network)

    with pytest.raises(ValueError, match="the saved guide does not fit its config"):
        load_without("guide.")
    with pytest.raises(ValueError, match=r"router.safetensors: sources are missing; expected \(3, 325\)"):
        load_without("sources")
    with pytest.raises(ValueError, match="the catalog of 12 routings is missing"):
        load_without("catalog")
    assert torch.equal(predictions(load_without("nothing")), predictions(classifier))


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In each tensor of the weights, in their header, and in the description."""
    classifier = tiny_classifier()
    classifier.save(tmp_path)
    path = tmp_path / "router.safetensors"
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    starts = [8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"]
    for place in (3, 20, *(start + 3 for start in starts)):
        damaged = bytearray(raw)
        damaged[place] ^= 0x40
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"router\.safetensors: is damaged, or of another router"):
            RoutedClassifier.load(tmp_path, network=classifier.router.network)
    path.write_bytes(raw)
    description = tmp_path / "router.json"
    text = description.read_bytes()
    changes = [bytearray(text) for _ in range(0, len(text), 37)]
    for number, damaged in enumerate(changes):
        damaged[37 * number] ^= 0x02
    for damaged in changes:
        if _same_json(bytes(damaged), text):  # one white space for another
            continue
        description.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"router\.json: "):
            RoutedClassifier.load(tmp_path, network=classifier.router.network)


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"router\.json: format is 99; this version reads formats 3 and 4: save the router again"),
        ({"format": 2}, r"format is 2; this version reads"),
        ({"wieghts": "x"}, r"router\.json: wieghts: Extra inputs are not permitted"),
        ({"source_names": 3}, r"router\.json: source_names: .*found 3"),
        ({"deployment": {"rule": "bset"}}, r"deployment: .*there is no decision_rule 'bset'"),
        ({"config": {"gude": {}}}, r"unknown key 'gude'; did you mean 'guide'"),
    ],
)
def test_descriptions_that_say_something_else(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    classifier = tiny_classifier()
    classifier.save(tmp_path)
    write_description(tmp_path, read_description(tmp_path) | change)
    with pytest.raises(ValueError, match=message):
        RoutedClassifier.load(tmp_path, network=classifier.router.network)


@pytest.mark.parametrize("text", ["", "[]", "3", "not json", '{"format": 4}', "\udcff"])
def test_descriptions_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "router.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"router\.json: "):
        RoutedClassifier.load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="file"):
        tiny_classifier().save(tmp_path / "file" / "router")


class MyModel(RoutedModel):
    """The library's, with a flatter likelihood."""

    def logits(self, coefficients: Tensor, batch: EpisodeBatch, basis: Tensor | None = None) -> Tensor:
        return super().logits(coefficients, batch, basis) / 4


class MyGuide(LogisticNormalGuide):
    pass


class MyPrior(LogisticNormalPrior):
    pass


@pytest.mark.parametrize(("what", "given"), [("model", MyModel), ("guide", MyGuide), ("prior", MyPrior)])
def test_a_router_with_a_class_of_ones_own_asks_for_it_at_load(what: str, given: type, tmp_path: Path) -> None:
    """The library's class would fit its tensors, and be another."""
    config = build_config(
        quick_config().model_dump(mode="json") | {what: {"kind": f"my_{what}.py:{given.__name__}"}}, own={what: given}
    )
    classifier = trained(config, tiny_router(config))
    classifier.save(tmp_path)
    network = classifier.router.network
    told = (
        rf"with a {what} of your own, my_{what}.py:{given.__name__}; pass own={{'{what}': {given.__name__}}} \(command"
    )
    with pytest.raises(ValueError, match=told):
        RoutedClassifier.load(tmp_path, network=network)
    again = RoutedClassifier.load(tmp_path, network=network, own={what: given})
    found = again.router.model.prior if what == "prior" else getattr(again.router, what)
    assert type(found) is given
    assert torch.equal(predictions(again), predictions(classifier))


def test_a_network_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    with pytest.raises(ValueError, match=r"a network of your own; pass own={'network': build} \(command line: --own n"):
        RoutedClassifier.load(tmp_path)
    with pytest.raises(ValueError, match=r"sources are \(3, 325\); expected \(3, 650\)"):
        RoutedClassifier.load(tmp_path, network=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))


def test_a_head_that_is_left_out_and_the_descriptors_are_saved_with_the_router(tmp_path: Path) -> None:
    config = tiny_config(["sources.head=['3.*']"])
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Tanh()
    )
    states = {name: {"1.weight": torch.randn(5, 64), "1.bias": torch.randn(5)} for name in "ab"}
    library = SourceLibrary.from_files(network, states, head=config.sources.head)
    router = build_router(config, opened=(network, library))
    folder = RoutedClassifier(router).save(tmp_path / "router")
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[3].weight.zero_()
    loaded = RoutedClassifier.load(folder, network=other)
    assert not other[3].weight.any()  # the template that was passed is left as it is
    assert torch.equal(loaded.router.network.state_dict()["3.weight"], network[3].weight)
    assert torch.equal(loaded.router.descriptors, router.descriptors)
    x, y = torch.rand(6, 1, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(
        loaded.adapt(x, y).predict_proba(x), RoutedClassifier(router).adapt(x, y).predict_proba(x)
    )
    whole = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    assert add_source(loaded, "c", whole).source_names == ("a", "b", "c")  # its head is not looked at

    base = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    small = compress(base | {"1.bias": whole["1.bias"]}, tmp_path / "small.safetensors", base).path
    with pytest.raises(ValueError, match=r"row 'a' of a basis is not: tensor '3\.weight' is missing there"):
        add_source(loaded, "c", small)
    added = add_source(loaded, "c", small, base=base).router.library
    assert torch.equal(added.basis[2], torch.cat([torch.zeros(320), whole["1.bias"]]))


def test_statistics_of_the_training_pixels_are_saved(tmp_path: Path) -> None:
    """They come back as they were; a router that was saved before there were any has none."""
    pool = tiny_pool()
    pixels = PixelStatistics.of(pool)
    values = pool.images.double() / 255
    assert pixels.mean == pytest.approx(float(values.mean()))
    assert pixels.std == pytest.approx(float(values.std(correction=0)))
    assert pixels.image_std == pytest.approx(float(values.flatten(1).mean(1).std(correction=0)))
    router = replace(tiny_router(tiny_config(())), pixels=pixels)
    assert reopened(RoutedClassifier(router), tmp_path).router.pixels == pixels
    record = json.loads((tmp_path / "router.json").read_text())
    del record["pixels"], record["digest"]
    write_record(tmp_path / "router.json", record)
    assert RoutedClassifier.load(tmp_path, network=router.network).image_form.pixels is None


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("bfloat16", 0.05), ("float16", 0.01)])
def test_a_router_is_loaded_in_another_precision(precision: Any, tolerance: float, tmp_path: Path) -> None:
    classifier = trained(config := quick_config(["training.precision=float32"]), tiny_router(config))
    other = reopened(classifier, tmp_path, precision=precision)
    assert other.bases.dtype == getattr(torch, precision)
    found, expected = predictions(other), predictions(classifier)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance
    assert torch.equal(found, expected) == (precision == "float32")
    again = reopened(other, tmp_path / "again")
    assert torch.equal(predictions(again), found)
    with pytest.raises(ValueError, match="precision is 'half'; expected one of"):
        reopened(classifier, tmp_path, precision="half")
