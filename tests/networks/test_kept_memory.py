"""Large tensors live in memory that is used again, and never in memory that another tensor is on."""

from __future__ import annotations

import gc
import mmap
import os
import threading

import pytest
import torch

from pyro_smat.networks import kept_memory
from pyro_smat.networks.kept_memory import KeptMemory, large_empty

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="mappings of our own are for Linux")
PAGE = 4096
LIKE = torch.zeros(1)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptMemory:
    monkeypatch.setattr(kept_memory, "LARGE", PAGE)
    monkeypatch.setattr(kept_memory, "KEPT", KeptMemory())
    return kept_memory.KEPT


def test_memory_is_used_again_when_the_last_tensor_on_it_is_gone(kept: KeptMemory) -> None:
    first = large_empty((4, PAGE), LIKE).fill_(1.0)
    view, place = first[2:], first.data_ptr()
    del first
    second = large_empty((4, PAGE), LIKE).fill_(2.0)
    assert (view == 1).all()  # a view holds it
    assert (kept.in_use, kept.kept) == (2 * 16 * PAGE, 0)
    del view
    assert (kept.in_use, kept.kept) == (16 * PAGE, 16 * PAGE)
    third = large_empty((3, PAGE), LIKE)
    assert third.data_ptr() == place
    assert third.shape == (3, PAGE)
    assert (second == 2).all()


def test_a_quarter_more_is_kept_than_was_once_in_use_and_no_more(kept: KeptMemory) -> None:
    for size in (1, 2, 4, 8, 16):
        large_empty((size, 3 * PAGE), LIKE)
        assert kept.in_use == 0
        assert kept.kept <= 1.25 * kept.peak == 1.25 * size * 12 * PAGE
    large_empty((2, PAGE), LIKE)
    assert kept.in_use + kept.kept <= 1.25 * kept.peak


def test_sizes_that_take_turns_find_their_mappings(kept: KeptMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a training step: theta, its gradient, and that of the experts when theta is gone."""
    made = []
    monkeypatch.setattr(
        mmap, "mmap", lambda *args, _new=mmap.mmap, **options: made.append(args) or _new(*args, **options)
    )
    for _ in range(4):
        theta, gradient = large_empty((64, PAGE), LIKE), large_empty((64, PAGE), LIKE)
        del theta
        of_experts = large_empty((8, PAGE), LIKE)
        del gradient, of_experts
    assert len(made) == 3


def test_small_tensors_and_dtypes(kept: KeptMemory) -> None:
    small = large_empty((2, 3), LIKE)
    assert (small.shape, kept.peak) == ((2, 3), 0)
    half = large_empty((2, PAGE), torch.zeros(1, dtype=torch.bfloat16))
    assert (half.dtype, half.shape, kept.in_use) == (torch.bfloat16, (2, PAGE), 4 * PAGE)


def test_threads_never_share_a_mapping() -> None:
    size = kept_memory.LARGE // 4  # float32
    wrong: list[int] = []

    def fill(number: int) -> None:
        for turn in range(6):
            mine = large_empty((size,), torch.zeros(1)).fill_(float(10 * number + turn))
            other = large_empty((size + 1024 * number,), torch.zeros(1)).fill_(-1.0)
            if not bool((mine == 10 * number + turn).all()) or not bool((other == -1).all()):
                wrong.append(number)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert kept_memory.KEPT.kept <= 1.25 * kept_memory.KEPT.peak


def test_a_forked_process_has_memory_of_its_own() -> None:
    size = kept_memory.LARGE // 4
    ours = large_empty((size,), torch.zeros(1)).fill_(1.0)
    child = os.fork()
    if not child:
        ours.fill_(2.0)
        new = large_empty((size,), torch.zeros(1)).fill_(3.0)
        os._exit(0 if bool((ours == 2).all()) and bool((new == 3).all()) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert bool((ours == 1).all())


def test_no_memory_is_told_in_pytorchs_words_and_nothing_is_counted() -> None:
    kept = KeptMemory()
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        kept.take(2**62)
    assert kept.in_use == 0
