"""SIGKILL at random moments of training and evaluating, and whether the result is that of a run that nobody killed.

``python benchmarks/kills.py --kills 30`` makes a short run of random images once, then again and again: started,
killed at a random moment, and started anew (``--resume``) until it ends. Prints one line for each kill and the counts.
The router, its monitor, and the metrics of an evaluation have to be the same bytes; nothing half-written may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from pyro_smat.networks import build_network

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
COMPARED = ("router/router.safetensors", "router/router.json", "monitor.json")
EVALUATED = ("metrics.json", "episodes.csv")


@dataclass
class Kills:
    """What came of the kills.

    Attributes:
        command: "train" or "evaluate".
        kills: how often the process was killed before it ended.
        same: whether the files of the final result are those of the run that was left alone.
        left: temporary files that are still there at the end.
        after: seconds after the start of each kill.
    """

    command: str
    same: bool = True
    left: list[str] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return len(self.after)


def command(name: str, folder: Path, output: Path, *, resume: bool = False) -> list[str]:
    """The words of a command line on the folder with config.toml."""
    start = [sys.executable, "-c", "from pyro_smat.cli import main; main()", name]
    if name == "train":
        more = [str(folder / "config.toml"), "--output", str(output), *(["--resume"] if resume else [])]
    else:
        more = [str(folder / "reference"), "--episodes", "12", "--output", str(output)]
    return [*start, *more, "--no-progress", "--device", "cpu"]


def run(words: list[str], kill_after: float | None = None) -> bool:
    """Run a command to its end, or until it is killed; whether it was killed.

    Raises:
        RuntimeError: when it fails by itself.
    """
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {errors[-2000:]}")
    return False


def files_of(name: str, output: Path) -> dict[str, bytes]:
    """The result of a command, without the measured seconds."""
    return {file: (output / file).read_bytes() for file in (COMPARED if name == "train" else EVALUATED)}


def trial(name: str, folder: Path, expected: dict[str, bytes], seconds: float, generator: random.Random) -> Kills:
    """Start a command until it has been let to its end; kill it at random moments before."""
    found, output = Kills(name), folder / f"killed-{name}"
    shutil.rmtree(output, ignore_errors=True)
    for last in (False, False, False, True):
        after = None if last else generator.uniform(0.25 * seconds, seconds)
        if run(command(name, folder, output, resume=output.joinpath("config.json").exists()), after):
            assert after is not None
            found.after.append(after)
    found.same = files_of(name, output) == expected
    found.left = [path.name for path in output.rglob(".*")]
    return found


def prepare(folder: Path) -> dict[str, tuple[dict[str, bytes], float]]:
    """The results that nobody disturbed, and how long they took."""
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
    for name, output in (("train", "reference"), ("evaluate", "reference-evaluation")):
        started = time.perf_counter()
        run(command(name, folder, folder / output))
        found[name] = (files_of(name, folder / output), time.perf_counter() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    generator, done = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected = prepare(folder)
        while sum(one.kills for one in done) < arguments.kills:
            name = ("train", "evaluate")[len(done) % 2]
            one = trial(name, folder, *expected[name], generator)
            done.append(one)
            moments = ", ".join(f"{after:.2f}" for after in one.after)
            print(f"{name}: killed after {moments or 'nothing'} s; same: {one.same}, left: {one.left}", flush=True)
    counts = {
        name: {
            "kills": sum(one.kills for one in done if one.command == name),
            "runs": sum(one.command == name for one in done),
            "same": sum(one.same for one in done if one.command == name),
            "left": sum(len(one.left) for one in done if one.command == name),
        }
        for name in ("train", "evaluate")
    }
    print(json.dumps(counts, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(counts, indent=2))
    sys.exit(any(not one.same or one.left for one in done))


if __name__ == "__main__":
    main()
