"""Encoders by their registered names, for tests over all of them."""

from __future__ import annotations

from pyro_smat.encoders import SupportEncoder
from pyro_smat.registry import build, choose, names

ENCODERS = names("encoder")


def build_encoder(kind: str, feature_width: int, hidden: int) -> SupportEncoder:
    return build(choose("encoder", {"kind": kind, "hidden": hidden}), {"feature_width": feature_width})
