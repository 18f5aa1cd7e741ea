"""What composing costs in memory: straight from the files, against holding all sources.

    python benchmarks/library.py                          # 8 sources of a 100 MB network, plain and as 8-bit deltas
    python benchmarks/library.py --sources 16 --megabytes 400

Random checkpoints of one transformer-like network are written to a temporary folder, which is deleted at the end. Every
row of the table is a process of its own that opens the library and mixes all sources evenly:

- **floor**: only a result of d float32 values: no method takes less;
- **streamed**: ``library.compose(c)``;
- **basis**: ``compose(c, library.basis)``, which is what training does;
- **state dicts**: every checkpoint is loaded, and their tensors are summed, as merging scripts do.

*private* is the peak of memory that is the process's own (RssAnon, sampled every millisecond, above what it was before
the library was opened); *resident* is the peak of all its pages (VmHWM, above the same moment's), with those of mapped
files, which the system can take back at any time. Seconds are those of composing, files in the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_smat.networks.composition import compose
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary, compress, load_weights

WIDTH = 512
METHODS = ("floor", "streamed", "basis", "state dicts")


def network(megabytes: int) -> nn.Module:
    """Layers of attention and MLP matrices, about so many million bytes of float32, on the meta device."""
    with torch.device("meta"):
        layer = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
        count = max(1, round(megabytes * 1e6 / (4 * sum(i * o for i, o in layer))))
        return nn.Sequential(*(nn.Linear(i, o) for _ in range(count) for i, o in layer))


def write_sources(folder: Path, megabytes: int, count: int) -> dict[str, dict[str, str]]:
    """``count`` checkpoints, plain and with all but the first as 8-bit deltas: {storage: {name: path}}."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in network(megabytes).state_dict().items()}
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    files = {storage: {"source0": str(folder / "source0.safetensors")} for storage in ("float32", "int8_delta")}
    save_file(base, folder / "source0.safetensors")
    for r in range(1, count):
        tuned = {name: t + 0.001 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        for storage, paths in files.items():
            paths[f"source{r}"] = str(folder / f"source{r}-{storage}.safetensors")
        save_file(tuned, files["float32"][f"source{r}"])
        compress(tuned, files["int8_delta"][f"source{r}"], base, "int8_delta", tolerance=0.05)
        print(f"  source {r} of {count - 1} written", file=sys.stderr, flush=True)
    return files


def status(field: str) -> int:
    """Bytes that /proc says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


class Peak:
    """Peak of RssAnon while a thread watches."""

    def __init__(self) -> None:
        self.before = self.highest = status("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.highest = max(self.highest, status("RssAnon"))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return max(self.highest, status("RssAnon")) - self.before


def run_once(method: str, files: dict[str, str], megabytes: int) -> dict[str, float]:
    """One method, in this process."""
    torch.set_num_threads(1)
    module = network(megabytes)
    space = ParameterSpace.from_module(module)
    weights = torch.full((len(files),), 1 / len(files))
    tiny = SourceLibrary.from_state_dicts(nn.Linear(9, 9), {name: nn.Linear(9, 9).state_dict() for name in files})
    compose(weights, tiny.basis) + tiny.compose(weights)  # loads what a first call loads
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    resident, peak, start = status("VmRSS"), Peak(), time.perf_counter()
    theta: Tensor
    if method == "floor":
        theta = torch.ones(space.dim)
    elif method == "state dicts":
        states = [{k: v.clone() for k, v in load_weights(path).items()} for path in files.values()]
        theta = space.flatten({name: sum(s[name] for s in states) / len(states) for name in states[0]})
    else:
        library = SourceLibrary.from_files(module, files)
        theta = library.compose(weights) if method == "streamed" else compose(weights, library.basis)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "private": peak.stop(),
        "resident": status("VmHWM") - resident,
        "sum": float(theta.double().sum()),
    }


def main(
    sources: Annotated[int, typer.Option(min=2, help="R.")] = 8,
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the network in float32.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Processes a row; the fastest counts.")] = 3,
    one: Annotated[str | None, typer.Option(hidden=True, help="Run one method here and print JSON.")] = None,
    files: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print the table."""
    if one is not None:
        print(json.dumps(run_once(one, json.loads(files), megabytes)))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise typer.BadParameter("memory is read from /proc, which this system does not have; expected Linux")
    space = ParameterSpace.from_module(network(megabytes))
    largest = max(entry.numel for entry in space.entries)
    print(
        f"R = {sources} sources, d = {space.dim:,} ({4 * space.dim / 1e6:.0f} MB), torch {torch.__version__}, 1 thread"
    )
    print(f"floor: {4 * space.dim / 1e6:.0f} MB of result; largest tensor {4 * largest / 1e6:.1f} MB of a source\n")
    print("| storage | method | private MB | x floor | resident MB | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        stored = write_sources(Path(folder), megabytes, sources)
        for storage, paths in stored.items():
            sums = []
            for method in METHODS if storage == "float32" else METHODS[1:3]:
                command = [sys.executable, __file__, "--one", method, "--files", json.dumps(paths)]
                command += ["--megabytes", str(megabytes)]
                outputs = [
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for _ in range(repeats)
                ]
                best = min(outputs, key=lambda output: output["seconds"])
                sums += [best["sum"]] if method != "floor" else []
                private, resident = (max(output[key] for output in outputs) for key in ("private", "resident"))
                ratio = private / (4 * space.dim)
                cells = (storage, method, f"{private / 1e6:.0f}", f"{ratio:.2f}", f"{resident / 1e6:.0f}")
                print(f"| {' | '.join(cells)} | {best['seconds']:.2f} |", flush=True)
            assert max(sums) - min(sums) < 1e-3 * max(1.0, abs(sums[0])), f"methods disagree: {sums}"


if __name__ == "__main__":
    typer.run(main)
