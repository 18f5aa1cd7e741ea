"""route_tasks: the answers of adapt and predict, from any form of tasks, once each, whatever happens on the way."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_run import tiny_config, tiny_router

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.routing import frozen, route_tasks, summarize_parts
from pyro_smat.inference.runs.routing import route as routing
from pyro_smat.inference.runs.routing.parts import whole_parts
from pyro_smat.networks.network_features import NetworkFeatures

pq = pytest.importorskip("pyarrow.parquet")
TASKS = 7
CLASSES = ("cat", "dog", "owl")
SIZE = 8
DEPLOYMENT = Deployment(
    threshold=0.9, score="entropy", reliability=Reliability(risk="support_loss", tolerance=1.0), fallback="b"
)


@pytest.fixture(scope="module", params=["catalog", "logistic_normal"])
def classifier(request: pytest.FixtureRequest) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config([f"guide.kind={request.param}"])), DEPLOYMENT, cache_size=0)


@pytest.fixture(scope="module")
def catalog() -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(["guide.kind=catalog"])), DEPLOYMENT, cache_size=0)


def pixels(task: int, role: str, k: int, n: int) -> np.ndarray:
    """Images come back: every third task has the same ones."""
    seed = [task % 3, role == "support", k, n]
    return np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)


def members(task: int) -> list[tuple[str, str, int, np.ndarray]]:
    """Role, class, number and pixels of the images of a task: 2 or 3 classes, 2 shots, 1 query of each class."""
    classes = CLASSES[: 2 + task % 2]
    shapes = [("support", k, n) for k in range(len(classes)) for n in range(2)]
    shapes += [("query", k, 0) for k in range(len(classes))]
    return [(role, classes[k], n, pixels(task, role, k, n)) for role, k, n in shapes]


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def as_folder(place: Path) -> Path:
    for task in range(TASKS):
        for role, name, n, image in members(task):
            folder = place / "tasks" / f"t{task}" / role / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{n}.png").write_bytes(png(image))
    return place / "tasks"


def index(place: Path) -> pd.DataFrame:
    """Lines of an index, and the images that it names: one file for each picture."""
    lines = []
    for task in range(TASKS):
        for role, name, n, image in members(task):
            file = place / "images" / f"{task % 3}-{role}-{name}-{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
            lines.append((f"t{task}", role, str(file.relative_to(place)), name))
    return pd.DataFrame(lines, columns=["task", "role", "path", "label"])


def as_csv(place: Path) -> Path:
    index(place).to_csv(place / "tasks.csv", index=False)
    return place / "tasks.csv"


def as_parquet(place: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pandas(index(place)), place / "tasks.parquet", row_group_size=10)
    return place / "tasks.parquet"


def as_shards(place: Path) -> Path:
    """The first shard has the names of WebDataset, the second those of a folder of tasks."""
    (place / "shards").mkdir(parents=True)
    for number, tasks in enumerate((range(4), range(4, TASKS))):
        with tarfile.open(place / "shards" / f"{number}.tar", "w") as archive:
            for task in tasks:
                for role, name, n, image in members(task):
                    path = f"t{task}.{role}.{name}.{n}.png" if number == 0 else f"./t{task}/{role}/{name}/{n}.png"
                    info, content = tarfile.TarInfo(path), png(image)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                archive.addfile(tarfile.TarInfo(f"t{task}.txt"))
    return place / "shards"


FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": as_folder,
    "csv": as_csv,
    "parquet": as_parquet,
    "tar": as_shards,
}


def routed(classifier: RoutedClassifier, tasks: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows of a run that is complete."""
    given = {"size": 3, "at_once": 2, "progress": False, "probabilities": True, **options}
    assert route_tasks(classifier, tasks, output, **given)
    return rows_of(output)


def rows_of(output: Path) -> list[dict[str, Any]]:
    found = whole_parts(output / "parts")
    return [row for number in sorted(found) for row in pq.read_table(found[number]).to_pylist()]


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "parts").iterdir()}


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("form", FORMS)
def test_the_answers_of_adapt_one_by_one(form: str, memory: int, classifier: RoutedClassifier, tmp_path: Path) -> None:
    rows = routed(classifier, FORMS[form](tmp_path), tmp_path / "out", memory=memory)
    assert [row["task"] for row in rows] == [f"t{task}" for task in range(TASKS)]
    for task, row in enumerate(rows):
        images = {role: [one for one in members(task) if one[0] == role] for role in ("support", "query")}
        support, query = (np.stack([one[3] for one in images[role]])[:, None] for role in ("support", "query"))
        alone = classifier.adapt(support, [one[1] for one in images["support"]])
        truth = [one[1] for one in images["query"]]
        expected = alone.predict_proba(query)
        assert row["failure"] is None
        assert row["classes"] == list(alone.classes)
        torch.testing.assert_close(torch.tensor(row["probabilities"]), expected, rtol=1e-4, atol=1e-5)
        assert row["predictions"] == alone.predict(query)
        assert row["weights"] == pytest.approx(alone.posterior.source_weights[0].tolist(), abs=1e-5)
        assert row["uncertainty"] == pytest.approx(alone.uncertainty, abs=1e-5)
        assert row["risk"] == pytest.approx(alone.risk, abs=1e-5)
        assert (row["reliable"], row["falls_back"]) == (alone.reliable, alone.falls_back)
        assert (row["queries"], row["labelled"], row["repeated"]) == (len(truth), len(truth), 0)
        wrong = [a != b for a, b in zip(alone.predict(query), truth, strict=True)]
        assert row["error"] == pytest.approx(np.mean(wrong))
        chosen = expected[range(len(truth)), [alone.classes.index(name) for name in truth]]
        assert row["nll"] == pytest.approx(float(-chosen.log().mean()), rel=1e-3)


def test_images_that_come_back_are_seen_once_by_every_network(
    catalog: RoutedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    network = catalog.router.model.network
    real = type(network).__call__
    monkeypatch.setattr(
        type(network), "__call__", lambda self, theta, x: seen.append(x.shape[-4]) or real(self, theta, x)
    )
    frame = index(tmp_path)
    many = pd.concat([frame.assign(task=frame["task"] + f"-{copy}") for copy in range(20)])
    many.sort_values("task", kind="stable").to_csv(tmp_path / "many.csv", index=False)
    routed(catalog, tmp_path / "many.csv", tmp_path / "out")
    images = frame["path"].nunique()
    networks = len(catalog.source_names) + len(catalog.router.catalog or ())
    assert len(many) > 10 * images
    assert sum(seen) <= (images + 1) * networks + 1  # and one to know how large features are
    seen.clear()
    routed(catalog, tmp_path / "many.csv", tmp_path / "alone", memory=0)
    assert sum(seen) > 5 * images * networks


def test_killed_between_and_within_parts_nothing_is_lost_or_done_twice(
    classifier: RoutedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = as_csv(tmp_path)
    routed(classifier, tasks, tmp_path / "whole")
    written: list[int] = []
    real = routing.write_part

    def dying(folder: Path, number: int, *rest: Any, **more: Any) -> Path:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(number)
        return real(folder, number, *rest, **more)

    monkeypatch.setattr(routing, "write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        routed(classifier, tasks, tmp_path / "killed")
    assert list(whole_parts(tmp_path / "killed" / "parts")) == [0]
    (tmp_path / "killed" / "parts" / f".part-000001-{'0' * 32}.parquet.tmp").write_bytes(b"half")
    written.clear()
    monkeypatch.setattr(routing, "write_part", lambda folder, n, *a, **o: (written.append(n), real(folder, n, *a, **o)))
    routed(classifier, tasks, tmp_path / "killed")
    assert written == [1, 2]
    killed = contents(tmp_path / "killed")
    assert {name: killed[name] for name in killed if not name.startswith(".")} == contents(tmp_path / "whole")


def test_a_damaged_part_is_made_again(classifier: RoutedClassifier, tmp_path: Path) -> None:
    tasks = as_folder(tmp_path)
    routed(classifier, tasks, tmp_path / "out")
    before = contents(tmp_path / "out")
    damaged = whole_parts(tmp_path / "out" / "parts")[1]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    missing = whole_parts(tmp_path / "out" / "parts")
    assert sorted(missing) == [0, 2]
    missing[2].unlink()
    with pytest.raises(FileNotFoundError):
        missing[2].read_bytes()
    routed(classifier, tasks, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_parts_by_number(classifier: RoutedClassifier, processes: int, tmp_path: Path) -> None:
    tasks = as_csv(tmp_path)
    routed(classifier, tasks, tmp_path / "one")
    options = {"size": 3, "at_once": 2, "probabilities": True, "progress": False}
    for rank in reversed(range(processes)):
        complete = route_tasks(
            classifier,
            tasks,
            tmp_path / "more",
            rank=rank,
            processes=processes,
            **options,  # type: ignore[arg-type]
        )
        assert complete == (rank == 0)
    assert contents(tmp_path / "more") == contents(tmp_path / "one")


def test_an_output_is_continued_only_as_it_was(catalog: RoutedClassifier, tmp_path: Path) -> None:
    tasks = as_csv(tmp_path)
    routed(catalog, tasks, tmp_path / "out")
    for changed, name in (({"size": 4}, "size"), ({"seed": 1}, "seed"), ({"router": "another"}, "router")):
        with pytest.raises(ValueError, match=f"differs in {name}; continue it as it was"):
            routed(catalog, tasks, tmp_path / "out", **changed)
    tasks.write_text(tasks.read_text().replace("cat", "cow"))
    with pytest.raises(ValueError, match="differs in sha256"):
        routed(catalog, tasks, tmp_path / "out")


@pytest.mark.parametrize("broken", [1, 1000], ids=["one", "all"])
def test_only_images_that_were_read_are_held_against_those_of_training(
    broken: int, catalog: RoutedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.Tensor] = []
    monkeypatch.setattr(frozen, "read_images", lambda images, form: held.append(images))
    tasks = as_csv(tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    for file in files[:broken]:
        file.write_bytes(b"no image")
    routed(catalog, tasks, tmp_path / "out")
    assert [len(images) for images in held] == ([len(files) - broken] if len(files) > broken else [])
    assert all(images.flatten(1).any(-1).all() for images in held)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_bad_tasks_are_rows_with_a_reason(memory: int, catalog: RoutedClassifier, tmp_path: Path) -> None:
    frame = index(tmp_path)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path.parent / "outside.png")
    path, task = frame["path"].copy(), frame["task"]
    path[task == "t1"] = "images/broken.png"
    path[task == "t2"] = "images/missing.png"
    path[task == "t3"] = "../outside.png"
    label = frame["label"].where(~((task == "t4") & (frame["role"] == "support")), "cat")
    label = label.where(~((task == "t5") & (frame["role"] == "query")), "bat")
    role = frame["role"].where(task != "t6", "neither")
    frame.assign(path=path, label=label, role=role).to_csv(tmp_path / "tasks.csv", index=False)
    rows = routed(catalog, tmp_path / "tasks.csv", tmp_path / "out", memory=memory)
    reasons = [row["failure"] for row in rows]
    assert reasons[0] is None
    for reason, expected in zip(
        reasons[1:],
        (
            "cannot be read as an image",
            "missing.png is not there",
            "outside of",
            "the support has the classes ['cat']; expected at least two",
            "of class 'bat', of which there is no support image",
            "role is 'neither'",
        ),
        strict=True,
    ):
        assert expected in reason
    assert all(row["predictions"] is None for row in rows[1:])
    summary = summarize_parts(tmp_path / "out")
    assert (summary.tasks, summary.failed, summary.labelled) == (7, 6, 1)


def test_a_task_that_breaks_its_batch_is_found(
    catalog: RoutedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = as_folder(tmp_path)
    real = catalog.adapt_many

    def breaking(supports: Any, **options: Any) -> Any:
        listed = list(supports)
        if any(len(labels) == 6 for _, labels in listed):
            raise RuntimeError("out of something")
        return real(listed, **options)

    monkeypatch.setattr(catalog, "adapt_many", breaking)
    rows = routed(catalog, tasks, tmp_path / "out")
    assert [row["failure"] for row in rows] == [None, "out of something"] * 3 + [None]


def test_a_task_whose_answers_are_no_numbers_fails_alone(
    catalog: RoutedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = as_csv(tmp_path)
    whole = routed(catalog, tasks, tmp_path / "whole", at_once=4)
    real, ruined = catalog.answer_many, catalog.adapt(*support_of(4)).posterior.mean

    def without_numbers(tasks: Any, queries: Any) -> Any:
        return [
            replace(one, probabilities=one.probabilities * torch.nan)
            if torch.allclose(task.posterior.mean, ruined, atol=1e-6)
            else one
            for task, one in zip(tasks, real(tasks, queries), strict=True)
        ]

    monkeypatch.setattr(catalog, "answer_many", without_numbers)
    rows = routed(catalog, tasks, tmp_path / "out", at_once=4)
    ruined_too = [task for task in range(TASKS) if task % 6 == 4]  # of the same images
    for task, (row, good) in enumerate(zip(rows, whole, strict=True)):
        if task in ruined_too:
            assert "probabilities of images [0, 1] are NaN or infinite" in row["failure"]
            assert row["predictions"] is None
        else:
            assert row == good


def support_of(task: int) -> tuple[np.ndarray, list[str]]:
    found = [one for one in members(task) if one[0] == "support"]
    return np.stack([one[3] for one in found])[:, None], [one[1] for one in found]


def test_a_restart_embeds_nothing_again(
    catalog: RoutedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = index(tmp_path)
    many = pd.concat([frame.assign(task=frame["task"] + f"-{copy}") for copy in range(20)])
    many.sort_values("task", kind="stable").to_csv(tmp_path / "many.csv", index=False)
    options = {"size": 70, "at_once": 5, "probabilities": True, "progress": False}
    assert not route_tasks(catalog, tmp_path / "many.csv", tmp_path / "out", processes=2, rank=0, **options)  # type: ignore[arg-type]
    seen: list[int] = []
    network = catalog.router.model.network
    real = type(network).__call__
    monkeypatch.setattr(
        type(network), "__call__", lambda self, theta, x: seen.append(x.shape[-4]) or real(self, theta, x)
    )
    assert list((tmp_path / "out" / "features").iterdir())
    assert route_tasks(catalog, tmp_path / "many.csv", tmp_path / "out", processes=2, rank=1, **options)  # type: ignore[arg-type]
    networks = len(catalog.source_names) + len(catalog.router.catalog or ())
    assert sum(seen) <= networks + 1  # an image each, to know that they are the same; and how large features are
    assert not (tmp_path / "out" / "features").exists()  # nobody needs them any more


def test_tasks_without_labels_or_queries_and_queries_of_the_support(catalog: RoutedClassifier, tmp_path: Path) -> None:
    tasks = as_folder(tmp_path)
    for file in list((tasks / "t0" / "query").rglob("*.png")):
        file.rename(tasks / "t0" / "query" / f"{file.parent.name}.png")
    for folder in (tasks / "t0" / "query").iterdir():
        if folder.is_dir():
            folder.rmdir()
    shutil.rmtree(tasks / "t1" / "query")
    shutil.copy(tasks / "t2" / "support" / "cat" / "0.png", tasks / "t2" / "query" / "cat" / "0.png")
    rows = routed(catalog, tasks, tmp_path / "out")
    assert (rows[0]["queries"], rows[0]["labelled"], rows[0]["error"]) == (2, 0, None)
    assert (rows[1]["queries"], rows[1]["predictions"]) == (0, [])
    assert rows[1]["weights"]
    assert [row["repeated"] for row in rows] == [0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,role,path\n", r"columns \['task', 'role', 'path'\], and not one each of \['label'\]"),
        ("task,role,path,label\n", "lists no tasks"),
        ("task,role,path,label\na,support,x.png,1\nb,query,y.png,1\na,query,z.png,1\n", "task 'a' is there more than"),
        ("task,role,path,label\n,support,x.png,1\n", "line 2 has nothing in column 'task'"),
        ("task,role,path,label\na,support,x.png\n", "line 2 has 3 fields; expected 4"),
        ('task,role,path,label\na,"support,x.png,1\n', "no CSV"),
    ],
)
def test_an_index_that_cannot_be_meant(text: str, message: str, catalog: RoutedClassifier, tmp_path: Path) -> None:
    (tmp_path / "tasks.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        routed(catalog, tmp_path / "tasks.csv", tmp_path / "out")


def test_other_things_that_are_no_tasks(catalog: RoutedClassifier, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shards = as_shards(tmp_path)
    whole = (shards / "1.tar").read_bytes()
    for tasks, message in (
        (tmp_path / "nowhere", "is not there"),
        (tmp_path / "empty", "has no folders in it"),
    ):
        with pytest.raises(ValueError, match=message):
            routed(catalog, tasks, tmp_path / "out")
    (shards / "1.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"1\.tar is damaged or cut off"):
        routed(catalog, shards, tmp_path / "out")
    (shards / "1.tar").write_bytes((shards / "0.tar").read_bytes())
    with pytest.raises(ValueError, match="task 't0' is there more than once"):
        routed(catalog, shards, tmp_path / "out")
    for options, message in (({"size": 0}, "size is 0"), ({"rank": 2, "processes": 2}, "rank is 2 of 2 processes")):
        with pytest.raises(ValueError, match=message):
            route_tasks(catalog, shards, tmp_path / "out", progress=False, **options)  # type: ignore[arg-type]


def test_quoted_lines_and_bytes_that_are_not_text(catalog: RoutedClassifier, tmp_path: Path) -> None:
    """A part starts at a byte, also where a label holds a line break; columns may stand elsewhere."""
    frame = index(tmp_path).assign(more="with\na break")[["more", "label", "path", "task", "role"]]
    frame = frame.assign(label=frame["label"].replace("dog", "a\nå dog")).rename(columns={"role": "Split"})
    tasks = tmp_path / "tasks.csv"
    tasks.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False).encode())
    rows = routed(catalog, tasks, tmp_path / "out", size=1)
    assert [row["failure"] for row in rows] == [None] * TASKS
    assert rows[5]["classes"] == ["a\nå dog", "cat", "owl"]
    tasks.write_bytes(tasks.read_bytes() + b"t9,\xff\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        routed(catalog, tasks, tmp_path / "other")


def test_features_of_shared_networks_are_those_of_the_network(catalog: RoutedClassifier) -> None:
    from tiny_run import tiny_pool

    pool, network = tiny_pool(), catalog.router.model.network
    shared, theta = NetworkFeatures(network, pool), catalog.bases[0].sources[1]
    rows = torch.tensor([5, -1, 3])
    images = torch.cat([pool.at(rows[:1]), torch.rand(1, 1, 8, 8), pool.at(rows[2:])])
    torch.testing.assert_close(shared.of("b", lambda: theta, images, rows), network(theta, images))


def test_the_plan_is_plain_json_with_the_images(catalog: RoutedClassifier, tmp_path: Path) -> None:
    routed(catalog, as_csv(tmp_path), tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [part["count"] for part in plan["listing"]["parts"]] == [3, 3, 1]
    assert len(plan["listing"]["distinct"]) == index(tmp_path)["path"].nunique()
