"""Damaged inputs for every reader: valid files, mutated by a random generator, and what a reader makes of them.

``outcome(kind, folder, random)`` writes one input and reads it: "error" is a ValueError that names what is wrong,
"answer" a result that is right by an independent look; anything else raises :class:`Undocumented`.
"""

from __future__ import annotations

import csv
import random
import shutil
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_world import classifier_of, task_of, write_world

from pyro_smat.cost import Calibration
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.episodes.readers.table import read_csv
from pyro_smat.files import load_state, save_state
from pyro_smat.files.records import write_record
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.monitoring import RoutingMonitor
from pyro_smat.sources import load_weights

INTERESTING = (
    b"", b"0", b"-1", b"NaN", b"Infinity", b"1e999", b"9" * 400, b"null", b"true", b"[]", b"{}", b'""', b"\x00",
    b"\xff", b"\xef\xbb\xbf", b"../../etc/passwd", b"x.py:Y", "\u00e9".encode("latin-1"), "n\u0303\u202e".encode(),
    b'"', b",",
    b"\n", b"[[", b"=", b"18446744073709551616", b"-9223372036854775809",
)  # fmt: skip


class Undocumented(AssertionError):
    """A reader that neither refused by name nor answered rightly."""


def mutate(content: bytes, choose: random.Random) -> bytes:
    """A few random changes."""
    for _ in range(choose.choice((1, 1, 2, 4))):
        start = choose.randrange(len(content) + 1)
        end = min(len(content), start + choose.choice((1, 2, 8, 64)))
        way = choose.randrange(7)
        if way == 0 and content:
            start = min(start, len(content) - 1)
            content = content[:start] + bytes([content[start] ^ 1 << choose.randrange(8)]) + content[start + 1 :]
        elif way == 1:
            content = content[:start]
        elif way == 2:
            content = content[:start] + content[end:]
        elif way == 3:
            content = content[:start] + choose.choice(INTERESTING) + content[end:]
        elif way == 4:
            content = content[:start] + content[start:end] * 3 + content[end:]
        elif way == 5:
            content = content[:start] + choose.randbytes(8) + content[start:]
        else:
            content = _encoded(content, choose.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7")))
    return content


def _encoded(content: bytes, encoding: str) -> bytes:
    return content.decode("utf-8", errors="replace")[:100_000].encode(encoding)


def prepare(folder: Path) -> None:
    """The valid inputs, once."""
    config = write_world(folder)
    router = classifier_of(config)
    router.save(folder / "router")
    RoutingMonitor.from_validation({"kl": [0.1, 0.2, 0.3], "entropy": [0.5, 0.6]}).save(folder / "monitor.json")
    save_state(folder / "state.safetensors", {"step": 3, "weights": [torch.arange(6.0)], "names": {"a": None}})
    block = {"slope": 0.1, "intercept": 0.2, "r_squared": None, "error": 0.1}
    price = {"mix": [0.1], "residual": [0.1], "entry": 0.0, "fixed": 1.0, "unit": "ms"}
    values = {"format": 2, "latency": price, "traffic": price, "forward": 0.5, "images": 2}
    values["blocks"] = [{"name": "b", "coordinates": 2, "sources": block, "residual": 0.1, "residual_error": None}]
    values["machine"] = {"processor": "p", "device": "cpu", "torch": "2", "threads": 1}
    write_record(folder / "cost.json", values)
    rows = [[f"images/test/stripe{k}/{n}.png", f"stripe{k}", "test"] for k in range(2) for n in range(3)]
    table = "\n".join(",".join(row) for row in [["path", "label", "split"], *rows])
    (folder / "table.csv").write_text(table)


def outcome(kind: str, folder: Path, content: bytes | random.Random) -> str:
    """ "error" or "answer", of a prepared folder.

    Args:
        kind: a key of KINDS.
        folder: of :func:`prepare`; the damaged copy is written inside it.
        content: the damaged file, or what draws one.

    Raises:
        Undocumented: for anything else.
    """
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    name, read = KINDS[kind]
    if isinstance(content, random.Random):
        content = mutate((folder / name).read_bytes(), content)
    path = place / Path(name).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder, path, content)
    except ValueError as error:
        if path.name not in str(error) and place.name not in str(error):
            raise Undocumented(f"{kind}: does not name the file: {error!r:.300}") from error
        return "error"
    except Undocumented:
        raise
    except Exception as error:
        raise Undocumented(f"{kind}: {type(error).__name__}: {error!s:.300}") from error
    return "answer"


def _expect(right: bool, what: str) -> None:
    if not right:
        raise Undocumented(what)


def _folder(folder: Path, path: Path, content: bytes) -> None:
    root = path.parent / "root"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((16, 16), 60 * number + 20 * (name == "a"), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "a" / path.name).write_bytes(content)
    if len(content) % 3 == 0:  # a name of arbitrary characters
        text = content[40:60].decode("utf-8", errors="ignore").replace("/", "").replace("\x00", "").strip(".") or "c"
        shutil.copytree(root / "b", root / text[:40], dirs_exist_ok=True)
    pool = read_folder(root, size=16, channels=1)
    _expect(len(pool.images) == len(pool.labels) >= 4, f"{len(pool.images)} images of at least 4")
    _expect(tuple(pool.images.shape[1:]) == (1, 16, 16), f"shape {pool.images.shape}")


def _csv(folder: Path, path: Path, content: bytes) -> None:
    (path.parent / "images").symlink_to(folder / "images", target_is_directory=True)
    path.write_bytes(content)
    pool = read_csv(path, size=16, channels=1, allow_outside=True)
    marks = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8-sig")
    rows = [row for row in csv.reader(content.decode(encoding).splitlines()) if any(row)]
    _expect(len(pool) <= len(rows) - 1, f"{len(pool)} images of {len(rows)} rows")


def _toml(folder: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    config = load_config(path)
    asked = tomllib.loads(content.decode()).get("episodes", {})
    _expect(all(getattr(config.episodes, key) == value for key, value in asked.items() if key != "way"), "episodes")


def _router_json(folder: Path, path: Path, content: bytes) -> None:
    shutil.copy(folder / "router" / "router.safetensors", path.parent)
    path.write_bytes(content)
    _same_router(folder, path.parent)


def _router_weights(folder: Path, path: Path, content: bytes) -> None:
    shutil.copy(folder / "router" / "router.json", path.parent)
    path.write_bytes(content)
    _same_router(folder, path.parent)


def _same_router(folder: Path, other: Path) -> None:
    support, labels, queries = task_of(0)
    found = RoutedClassifier.load(other).adapt(support, labels).predict_proba(queries)
    expected = RoutedClassifier.load(folder / "router").adapt(support, labels).predict_proba(queries)
    _expect(torch.equal(found, expected), "loaded with other answers")


def _monitor(folder: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    found, expected = RoutingMonitor.load(path), RoutingMonitor.load(folder / "monitor.json")
    _expect(found.martingales == expected.martingales and found.alpha == expected.alpha, "loaded with other values")


def _cost(folder: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _expect(str(Calibration.load(path)) == str(Calibration.load(folder / "cost.json")), "loaded with other values")


def _state(folder: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    found = load_state(path)
    same = found["step"] == 3 and torch.equal(found["weights"][0], torch.arange(6.0)) and found["names"] == {"a": None}
    _expect(same, "loaded with other values")


def _weights(folder: Path, path: Path, content: bytes) -> None:
    """A checkpoint of someone else has no digest: what is read has to be what safetensors reads."""
    path.write_bytes(content)
    found = load_weights(path)
    try:
        expected = load_file(path)
    except SafetensorError as error:
        raise Undocumented("read what safetensors refuses") from error
    _expect(set(found) <= set(expected), "other names")
    _expect(all(torch.equal(found[k].nan_to_num(), expected[k].nan_to_num()) for k in found), "other values")


Reader = Callable[[Path, Path, bytes], None]
KINDS: dict[str, tuple[str, Reader]] = {
    "image in a folder": ("images/test/stripe0/0.png", _folder),
    "CSV table": ("table.csv", _csv),
    "TOML config": ("config.toml", _toml),
    "router.json": ("router/router.json", _router_json),
    "monitor.json": ("monitor.json", _monitor),
    "cost.json": ("cost.json", _cost),
    "router.safetensors": ("router/router.safetensors", _router_weights),
    "checkpoint of a run": ("state.safetensors", _state),
    "source checkpoint": ("base.safetensors", _weights),
}
