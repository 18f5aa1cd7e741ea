"""Routing all tasks of a folder, an index or tar shards: part after part, each written when it is done.

Kill it anywhere and start it again: parts that are there and whole are passed over. Any number of processes (torchrun,
or rank and number by hand) share the parts by their numbers and need not know of each other.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from shutil import rmtree

from tqdm.auto import tqdm

from pyro_smat.files import locked
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.routing.answers import Answers
from pyro_smat.inference.runs.routing.frozen import FrozenImages, most_images
from pyro_smat.inference.runs.routing.parts import PARTS, parquet, whole_parts, write_part
from pyro_smat.inference.runs.routing.plan import make_plan, open_tasks

MEMORY = 2**30  # bytes of images and features that are held
FEATURES = "features"


def route_tasks(
    classifier: RoutedClassifier,
    tasks: str | Path,
    output: str | Path,
    *,
    size: int = 1000,
    at_once: int = 32,
    seed: int = 0,
    probabilities: bool = False,
    root: Path | None = None,
    allow_outside: bool = False,
    memory: int = MEMORY,
    router: str = "",
    rank: int = 0,
    processes: int = 1,
    progress: bool = True,
    wait: bool = False,
) -> bool:
    """Route tasks into ``output/parts/``.

    Args:
        classifier: the router.
        tasks: a folder of tasks, an index (CSV or Parquet), a tar shard or a folder of them; see the modules of this
            package for their forms.
        output: of the run; one that was begun is continued.
        size: tasks a part. A tar shard is one part.
        at_once: tasks that are decoded and routed together.
        seed: of the routings that a posterior predictive draws.
        probabilities: keep the class probabilities of all queries.
        root: of an index, the folder that its paths start from; default: its own.
        allow_outside: whether an index may list files outside of the root.
        memory: bytes that the images of an index and their features may take. Where all of its images fit, each is
            decoded and seen by each network once; otherwise each task decodes its own.
        router: what the router is, so that a run is continued with the same one; e.g. a digest of its files.
        rank: this process's number among the ``processes``; it does the parts rank, rank + processes, ...
        processes: how many share the work.
        progress: show a bar with the time that is left.
        wait: for a process that has this rank's share already, instead of giving up.

    Returns:
        Whether all parts are there now, those of other processes too.

    Raises:
        ValueError: for numbers that are not usable, tasks that cannot be listed, an output that holds another run, or a
            missing pyarrow. What is wrong with one task is a row of its part.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pyro_smat import glyph_pool, write_folder
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> classifier, place = RoutedClassifier(build_router(RunConfig(experts={"count": 0}))), Path(mkdtemp())
        >>> for role in ("support", "query"):
        ...     _ = write_folder(glyph_pool("validation"), place / "tasks/first" / role, attribute="style", each=2)
        >>> route_tasks(classifier, place / "tasks", place / "output", progress=False)
        True
        >>> from pyro_smat.inference.runs.routing import summarize_parts
        >>> summarize_parts(place / "output").tasks
        1
    """
    for name, value, least in (("size", size, 1), ("at_once", at_once, 1), ("processes", processes, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    if not 0 <= rank < processes:
        raise ValueError(f"rank is {rank} of {processes} processes; expected a number from 0 to {processes - 1}")
    parquet()
    output, source = Path(output), open_tasks(Path(tasks), root, allow_outside=allow_outside)
    job = {"router": router, "seed": str(seed), "at_once": str(at_once), "probabilities": str(probabilities)}
    job |= {"memory": str(memory)}  # decides how images are batched, and so on the last bits
    parts = output / PARTS
    with locked(output, wait=wait, name=f".process-{rank}-of-{processes}.lock"):
        plan = make_plan(output, source, job, size=size, most=most_images(classifier, memory))
        there = whole_parts(parts)
        own = range(rank, len(plan.parts), processes)
        todo = [number for number in own if number not in there]
        total, left = (sum(plan.parts[number].count for number in numbers) for numbers in (own, todo))
        if todo:
            frozen = None
            if plan.distinct is not None:
                frozen = FrozenImages(
                    classifier, plan.distinct, source, plan.images, folder=output / FEATURES, progress=progress
                )
            answers = Answers(classifier, source, frozen, seed=seed, at_once=at_once, probabilities=probabilities)
            name = f"routing, process {rank} of {processes}" if processes > 1 else "routing"
            with tqdm(
                total=total, initial=total - left, desc=name, unit="task", position=rank, disable=not progress
            ) as bar:
                for number in todo:
                    rows = []
                    for batch in answers(islice(source.read(plan.parts[number]), plan.parts[number].count)):
                        rows += batch
                        bar.update(len(batch))
                    if len(rows) != plan.parts[number].count:
                        raise ValueError(
                            f"{tasks}: part {number} has {len(rows)} tasks where the plan has "
                            f"{plan.parts[number].count}; the tasks have changed: choose another --output"
                        )
                    write_part(parts, number, rows, sources=classifier.source_names, probabilities=probabilities)
    complete = len(whole_parts(parts)) == len(plan.parts)
    if complete:  # nobody needs them any more
        rmtree(output / FEATURES, ignore_errors=True)
    return complete
