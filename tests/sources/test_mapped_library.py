"""A mapped basis: the same numbers as in memory, where the memory does not hold it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from other_process import run_python

from pyro_smat.inference.assembly.router import build_router

PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from pyro_smat import ParameterSpace, SourceLibrary, TaskNetwork, compose
from pyro_smat.models.priors import DirichletPrior
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.experts import ExpertBank

folder, how = Path(sys.argv[1]), sys.argv[2]
module = torch.nn.Linear(1000, 300)
SOURCES = 100  # 120 MB in all
for seed in range(SOURCES):
    path = folder / f"{seed}.safetensors"
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        save_file({"weight": torch.randn(300, 1000, generator=generator), "bias": torch.zeros(300)}, path)
library = SourceLibrary.from_files(module, {str(i): folder / f"{i}.safetensors" for i in range(SOURCES)})
bank = ExpertBank(library.space, 2, sparsity=0.5, delta_scale=1.0, generator=torch.Generator().manual_seed(0))
c = torch.rand(2, SOURCES + 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
compose(torch.rand(2, 4), torch.rand(4, 300), None).sum()  # buffers of the matrix product
status = Path("/proc/self/status").read_text().splitlines()
used = int(next(line for line in status if line.startswith("VmData")).split()[1]) * 1024
if how == "mapped":
    resource.setrlimit(resource.RLIMIT_DATA, (used + 60 * 2**20,) * 2)
    try:
        print(library.basis)
    except (RuntimeError, MemoryError) as error:
        print(type(error).__name__, error)
    library = library.mapped(folder / f"{how}.bin")
found = []
for experts in (None, bank):
    rows = SOURCES + (0 if experts is None else 2)
    prior = DirichletPrior(SOURCES, rows - SOURCES)
    model = RoutedModel(TaskNetwork(module, library.space), library, prior=prior, experts=experts)
    torch.manual_seed(0)  # of the gates
    theta = compose(c[:, :rows], model.basis())
    theta.square().sum().backward()
    found += [theta.detach(), c.grad.clone()]
torch.save([*found, *(parameter.grad for parameter in bank.parameters())], folder / f"{how}.pt")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process as Linux does")
def test_sources_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 MB of sources, without and with experts, in a process that may have 60 MB more: the same gradients too."""

    said = run_python("-c", PROGRAM, tmp_path, "mapped")
    assert "can't allocate memory" in said or "MemoryError" in said, said
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "free"])  # here there is memory for the basis
    with torch.random.fork_rng(devices=[]):
        exec(PROGRAM, {})
    for found, expected in zip(torch.load(tmp_path / "mapped.pt"), torch.load(tmp_path / "free.pt"), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("experts", [0, 2])
def test_training_over_a_mapped_library_is_the_same(experts: int, tmp_path: Path) -> None:
    config = tiny_run.quick_config([f"experts.count={experts}"])
    network, library = tiny_run.tiny_sources(config)
    histories = []
    for own in (library, library.mapped(tmp_path / "basis.bin")):
        router = build_router(config, opened=(network, own))
        assert router.model.basis().sources.data_ptr() == own.basis.data_ptr()  # nothing is copied
        folder = tmp_path / str(len(histories))
        tiny_run.trained(config, router, folder=folder)
        histories.append((folder / "history.csv").read_text().splitlines())
    columns = [[row.split(",")[:6] for row in history] for history in histories]
    assert columns[0] == columns[1]
