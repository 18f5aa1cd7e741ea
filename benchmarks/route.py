"""Millions of tasks: `pyro-smat route` on generated tasks of one pool of glyphs. Rate, memory over time, and kills.

    python benchmarks/route.py --router runs/quickstart/router --tasks 100000 --processes 1 2 [--kills 10]

Without --router it trains the quickstart first. The images of the test letters are written once as PNG files, the
tasks as an index of paths (5-way, 5-shot, 5 queries a class, so 50 lines a task), and `pyro-smat route` is timed as a
command, under torchrun for several processes. Memory is the resident set of each process, read every few seconds. With
--kills a smaller run is killed by SIGKILL at random moments and started again until it ends; its parts have to be the
bytes of the run that was left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from doubt import trained

from pyro_smat.episodes.readers.folders import write_folder
from pyro_smat.episodes.readers.glyphs import ATTRIBUTES, glyph_pool

WAY, SHOT, QUERY = 5, 5, 5
SEED = 7_000_003
KILLED_LETTERS = 6  # few images, so that kills come while tasks are routed
EVERY = 2.0  # seconds between two looks at the memory
ROUTE = "from pyro_smat.cli import main; main()"


def write_index(folder: Path, count: int, letters: int | None = None) -> Path:
    """Tasks as lines: a random attribute, five of its classes, ten images of each; of the first letters alone."""
    pool = glyph_pool("test")
    if not (folder / "images").exists():
        write_folder(pool, folder / "images")
    names = pool.class_names[0]
    paths = [f"images/{names[k].replace(':', '-')}/{row}.png" for row, k in enumerate(pool.labels[:, 0].tolist())]
    labels = pool.labels.numpy()
    labels = labels[labels[:, 0] < (letters or len(names))]
    rows_of = [
        [np.flatnonzero(labels[:, a] == k) for k in range(labels[:, a].max() + 1)] for a in range(len(ATTRIBUTES))
    ]
    generator = np.random.default_rng(SEED)
    path = folder / f"{count}-{letters or 'all'}.csv"
    with path.open("w") as file:
        file.write("task,role,path,label\n")
        for task in range(count):
            a = int(generator.integers(len(ATTRIBUTES)))
            chosen = [
                (k, generator.choice(rows_of[a][k], SHOT + QUERY, replace=False))
                for k in generator.choice(len(rows_of[a]), WAY, replace=False).tolist()
            ]
            for role, part in (("support", slice(0, SHOT)), ("query", slice(SHOT, None))):
                for k, rows in chosen:
                    for row in rows[part].tolist():
                        file.write(f"task{task:07d},{role},{paths[row]},{pool.class_names[a][k]}\n")
    return path


def command(router: Path, index: Path, output: Path, processes: int = 1, *more: str) -> list[str]:
    """The words of the command line."""
    words = [sys.executable, "-c", ROUTE] if processes == 1 else [sys.executable, "-m", "torch.distributed.run"]
    if processes > 1:
        words += ["--standalone", f"--nproc-per-node={processes}", "-m", "pyro_smat"]
    return [
        *words,
        "route",
        str(router),
        str(index),
        "--output",
        str(output),
        "--device",
        "cpu",
        "--no-progress",
        *more,
    ]


def measured(words: list[str], output: Path, log: Path) -> tuple[float, float, pd.DataFrame]:
    """Seconds of a command, CPU seconds of all its processes, and a table of what was seen every few seconds.

    The table has the parts that were there and the resident memory of each process, in MiB.
    """
    started, before, looks = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), []
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(EVERY)
            parts = len(list((output / "parts").glob("part-*.parquet")))
            now = time.perf_counter() - started
            looks += [(now, parts, pid, _resident(pid)) for pid in _workers(process.pid)]
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {log.read_text()[-2000:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    table = pd.DataFrame(looks, columns=["seconds", "parts", "process", "MiB"])
    return time.perf_counter() - started, cpu, table


def _workers(pid: int) -> list[int]:
    """The processes that route: the command itself, or torchrun's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(one) for one in children.read_text().split()] if children.exists() else []
    return found or [pid]


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def contents(output: Path) -> dict[str, bytes]:
    """The parts of a run by name."""
    return {path.name: path.read_bytes() for path in (output / "parts").iterdir()}


def kill_again_and_again(
    words: list[str], output: Path, expected: dict[str, bytes], kills: int, seconds: float, seed: int = 0
) -> dict[str, object]:
    """Start, kill at a random moment, start again; a run that comes to its end is compared, and begun anew."""
    generator, moments, same, left = random.Random(seed), list[float](), list[bool](), list[str]()
    while True:
        last = len(moments) >= kills
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        after = generator.uniform(0.1 * seconds, seconds)
        try:
            _, errors = process.communicate(timeout=None if last else after)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            moments.append(round(after, 2))
            print(f"killed after {after:.2f} s with {len(list(output.glob('parts/part-*')))} parts", flush=True)
            continue
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {errors[-2000:]}")
        same.append(contents(output) == expected)
        left += [path.name for path in output.rglob(".*")]
        shutil.rmtree(output)
        if last:
            return {"kills": len(moments), "moments": moments, "runs that ended": same, "left over": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, help="folder of a trained glyph router")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--killed-tasks", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where images, indices and outputs go; default: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = asked.folder or Path(tempfile.mkdtemp())
    router = asked.router or trained(folder / "run")
    figures: dict[str, object] = {"tasks": asked.tasks}
    index = write_index(folder, asked.tasks)
    for processes in asked.processes:
        output = folder / f"output-{processes}"
        shutil.rmtree(output, ignore_errors=True)
        seconds, cpu, looks = measured(command(router, index, output, processes), output, folder / f"log-{processes}")
        steady = looks[looks["parts"] > 0]  # images and features are there
        half = steady["seconds"].median()
        memory = [steady[steady["seconds"] < half]["MiB"].max(), steady[steady["seconds"] >= half]["MiB"].max()]
        working = seconds - float(steady["seconds"].min())
        figures[f"{processes} processes"] = {
            "seconds": seconds,
            "CPU seconds of all processes": cpu,
            "tasks a second": asked.tasks / seconds,
            "seconds to the first part": float(steady["seconds"].min()),
            "tasks a second after that": asked.tasks / working,
            "largest MiB of a process, first and second half": memory,
        }
        print(json.dumps(figures[f"{processes} processes"], indent=2), flush=True)
        print((folder / f"log-{processes}").read_text(), flush=True)
        looks.to_csv(folder / f"memory-{processes}.csv", index=False)
    done = [contents(folder / f"output-{processes}") for processes in asked.processes]
    figures["same bytes for all numbers of processes"] = all(one == done[0] for one in done)
    if asked.kills:
        small, alone, killed = (
            write_index(folder, asked.killed_tasks, KILLED_LETTERS),
            folder / "alone",
            folder / "killed",
        )
        for output in (alone, killed):
            shutil.rmtree(output, ignore_errors=True)
        started = time.perf_counter()
        subprocess.run(command(router, small, alone, 1, "--size", "50"), check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - started
        words = command(router, small, killed, 1, "--size", "50")
        figures["kills"] = kill_again_and_again(words, killed, contents(alone), asked.kills, took)
    print(json.dumps(figures, indent=2))
    if asked.output is not None:
        asked.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
