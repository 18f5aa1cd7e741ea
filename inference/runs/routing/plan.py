"""The plan of a run: what is routed, with what, cut into which parts. Made once, then read by every process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from pyro_smat.episodes.readers.listing import by_name, hidden
from pyro_smat.files import locked, read_record, write_record
from pyro_smat.inference.runs.routing.folder import FolderTasks
from pyro_smat.inference.runs.routing.shards import TarTasks
from pyro_smat.inference.runs.routing.table import CSVTasks, ParquetTasks
from pyro_smat.inference.runs.routing.tasks import Listing, TaskSource

PLAN = "plan.json"


@dataclass(frozen=True)
class _Plan:
    job: dict[str, str]
    listing: Listing


_SCHEMA = TypeAdapter(_Plan)


def open_tasks(path: Path, root: Path | None = None, *, allow_outside: bool = False) -> TaskSource:
    """Tasks by what ``path`` is: a folder of tasks or of tar files, a tar file, a Parquet file, or else a CSV.

    Args:
        path: of the tasks.
        root: of an index, the folder that its paths start from.
        allow_outside: whether an index may list files outside of the root.

    Raises:
        ValueError: for a path that is not there.
    """
    if path.is_dir():
        shards = sorted((one for one in path.glob("*.tar") if not hidden(one)), key=by_name)
        return TarTasks(shards) if shards else FolderTasks(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there; expected a folder of tasks, an index (CSV or Parquet) or a tar file")
    if path.suffix.lower() == ".tar":
        return TarTasks([path])
    with path.open("rb") as file:
        kind = ParquetTasks if file.read(4) == b"PAR1" else CSVTasks
    return kind(path, root, allow_outside=allow_outside)


def make_plan(folder: Path, source: TaskSource, job: dict[str, str], *, size: int, most: int) -> Listing:
    """The plan that the folder has, or a new one that is written there; processes that ask at once get the same.

    Args:
        folder: of the output.
        source: the tasks.
        job: what else must not change between a run and its continuation, by name.
        size: tasks a part.
        most: distinct images that are worth listing.

    Raises:
        ValueError: when the folder has the plan of another run, says in what they differ.
    """
    asked = {"size": str(size), **job, **source.identity()}
    with locked(folder, wait=True, name=".plan.lock"):
        path = folder / PLAN
        if not path.exists():
            made = _Plan(asked, source.listing(size, most))
            write_record(path, {"format": 1, **_SCHEMA.dump_python(made, mode="json")})
            return made.listing
        known = read_record(path, _SCHEMA, format=1, writer="pyro-smat route")
    changed = [name for name in sorted(asked.keys() | known.job.keys()) if known.job.get(name) != asked.get(name)]
    if changed:
        raise ValueError(
            f"{folder}: holds a run that differs in {', '.join(changed)}; continue it as it was, or choose another "
            "--output"
        )
    return known.listing
