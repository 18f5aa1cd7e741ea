"""Tests of routing in mixture-of-experts transformers need transformers (pip install 'pyro-smat[moe]')."""

import pytest

pytest.importorskip("transformers")
