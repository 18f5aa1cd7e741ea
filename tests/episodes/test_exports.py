"""What the room exports, and that it loads no more than is used."""

from __future__ import annotations

import pytest
from other_process import run_python

import pyro_smat.episodes as room


def test_every_export_is_there():
    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'EpisodeSample'"):
        room.EpisodeSample  # noqa: B018


def test_readers_and_corruptions_load_on_first_use():
    code = (
        "import sys; from pyro_smat.episodes import Episode, EpisodeBatch, ImagePool, Labelled; "
        "print([m for m in ('matplotlib', 'scipy', 'pydantic', 'PIL') if m in sys.modules])"
    )
    assert run_python("-c", code).strip() == "[]"
