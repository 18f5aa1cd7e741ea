"""SIGKILL at random moments of a command, and whether its result is that of one that nobody killed.

``python benchmarks/kills.py --kills 50`` makes a short run of random images, and the result of every command of
:data:`COMMANDS` on it; then again and again: started, killed at a random moment, started anew (``--resume`` where there
is something to resume), killed again, and at last let to its end. Prints one line for each run and a Markdown table
(docs/reliability.md). The files of the result have to be the same bytes, but for measured seconds; nothing half-written
may be left.

Commands are forked from a server that has imported the package, so that kills fall into their work and not into
imports. To add a command, add its words and what it writes to :data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from pyro_smat.networks import build_network

METRICS, SECONDS = "metrics.json", "seconds_per_episode"
CONFIG = """
seed = 3
[data]
kind = "folder"
path = "images"
size = 16
[episodes]
way = 3
shot = 2
query = 2
[sources]
network = {kind = "conv4", channels = 4, image_size = 16}
files = {base = "base.safetensors", other = "other.safetensors"}
[experts]
count = 1
[training]
steps = 30
episodes = 4
validate_every = 10
validation_episodes = 8
checkpoint_every = 2
"""


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        words: of the command line, from the folder with config.toml and the output folder.
        files: of the output that have to be the same bytes; without measured seconds in them.
        resumed: words more when the output folder holds ``begun``.
        begun: a file that a run writes before anything can be resumed.
    """

    words: Callable[[Path, Path], list[str]]
    files: tuple[str, ...]
    resumed: tuple[str, ...] = ()
    begun: str = ""


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "train": Command(
            lambda folder, output: [str(folder / "config.toml"), "--output", str(output)],
            ("router/router.safetensors", "router/router.json", "monitor.json"),
            ("--resume",),
            "config.json",
        ),
        "evaluate": Command(
            lambda folder, output: [str(folder / "left-alone-train"), "--episodes", "12", "--output", str(output)],
            (METRICS, "episodes.csv"),
        ),
        "diagnose": Command(
            lambda folder, output: [
                *(str(folder / "left-alone-train"), "--episodes", "12", "--draws", "20", "--shots", "1,2"),
                *("--output", str(output)),
            ],
            ("diagnostics.json",),
        ),
    }
)
IMPORTED = ["kills", "pyro_smat.cli.app", "pyro_smat.inference.runs.train", "pyro_smat.inference.evaluation.router"]
IMPORTED += ["pyro_smat.inference.diagnostics.run", "pyro_smat.report.examples", "pyro_smat.report.summary"]


@dataclass
class Kills:
    """What came of killing one command again and again, until it was let to its end.

    Attributes:
        command: its name.
        same: whether the files of the final result are those of the command that was left alone.
        left: temporary files that are still there at the end.
        after: seconds after the start of each kill.
        seconds: that the last start took, which was let to its end.
    """

    command: str
    same: bool = True
    left: list[str] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return len(self.after)


@dataclass(frozen=True)
class LeftAlone:
    """The result of a command that nobody disturbed: its files, and how many seconds it took."""

    files: Mapping[str, bytes]
    seconds: float


def prepare(folder: Path, names: tuple[str, ...] = tuple(COMMANDS)) -> dict[str, LeftAlone]:
    """Images, checkpoints, a config, and the results of the commands on them, training first."""
    (folder / "config.toml").write_text(CONFIG)
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for name in "abcd":
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(6):
                Image.fromarray(generator.integers(0, 255, (16, 16), dtype=np.uint8)).save(place / f"{number}.png")
    for seed, name in enumerate(("base", "other")):
        network = build_network("conv4", generator=torch.Generator().manual_seed(seed), channels=4, image_size=16)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    found = {}
    _start(_nothing).join()  # the server imports now, and no command is charged for it
    for name in dict.fromkeys(("train", *names)):
        output, started = folder / f"left-alone-{name}", time.perf_counter()
        run(name, folder, output)
        found[name] = LeftAlone(files_of(name, output), time.perf_counter() - started)
    return found


def run(name: str, folder: Path, output: Path, kill_after: float | None = None) -> bool:
    """Run a command to its end, or until it is killed; whether it was killed.

    Raises:
        RuntimeError: when it fails by itself.
    """
    command, said = COMMANDS[name], folder / f"said-{name}"
    more = command.resumed if command.begun and (output / command.begun).exists() else ()
    words = [name, *command.words(folder, output), *more, "--no-progress", "--device", "cpu"]
    process = _start(_call, words, str(said))
    process.join(kill_after)
    killed = process.is_alive()
    if killed:
        process.kill()
        process.join()
    elif process.exitcode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.exitcode}: {said.read_text()[-2000:]}")
    return killed


def _start(call: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=call, args=arguments)
    process.start()
    return process


def _nothing() -> None:
    pass


def _call(words: list[str], said: str) -> None:
    from pyro_smat.cli import main

    sys.argv = ["pyro-smat", *words]
    with Path(said).open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main()


def files_of(name: str, output: Path) -> dict[str, bytes]:
    """What has to be the same: files as they are, metrics without the seconds that they took."""
    found = {file: (output / file).read_bytes() for file in COMMANDS[name].files}
    if (metrics := found.get(METRICS)) is not None:
        found[METRICS] = json.dumps({k: v for k, v in json.loads(metrics).items() if k != SECONDS}).encode()
    return found


def trial(name: str, folder: Path, left_alone: LeftAlone, generator: random.Random, starts: int = 4) -> Kills:
    """Start a command, kill it at random moments, and let the last start run to its end."""
    found, output = Kills(name), folder / f"killed-{name}"
    shutil.rmtree(output, ignore_errors=True)
    for _ in range(starts - 1):
        after = generator.uniform(0, left_alone.seconds)
        if run(name, folder, output, after):
            found.after.append(after)
    started = time.perf_counter()
    run(name, folder, output)
    found.seconds = time.perf_counter() - started
    found.same = files_of(name, output) == left_alone.files
    found.left = [path.name for path in output.rglob(".*")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    generator, done = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        left_alone = prepare(folder, tuple(arguments.commands))
        while sum(one.kills for one in done) < arguments.kills:
            name = arguments.commands[len(done) % len(arguments.commands)]
            one = trial(name, folder, left_alone[name], generator)
            done.append(one)
            shorter = min(left_alone[name].seconds, one.seconds)  # the machine may have been busy before
            left_alone[name] = replace(left_alone[name], seconds=shorter)
            moments = ", ".join(f"{after:.2f}" for after in one.after)
            print(f"{name}: killed after {moments or 'nothing'} s; same: {one.same}, left: {one.left}", flush=True)
    print("\n| command | runs | kills | same result | files left | alone (s) |\n|---|---|---|---|---|---|")
    for name in arguments.commands:
        ours = [one for one in done if one.command == name]
        kills, same, left = (sum(f(one) for one in ours) for f in (lambda o: o.kills, lambda o: o.same, _left))
        print(f"| {name} | {len(ours)} | {kills} | {same} | {left} | {left_alone[name].seconds:.1f} |")
    sys.exit(any(not one.same or one.left for one in done))


def _left(one: Kills) -> int:
    return len(one.left)


if __name__ == "__main__":
    main()
