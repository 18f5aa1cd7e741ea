"""An encoder by its name, as configurations and saved routers write it."""

from __future__ import annotations

from typing import Literal, get_args

from pyro_smat.encoders.attention import PrototypeAttentionEncoder
from pyro_smat.encoders.deep_sets import DeepSetsEncoder
from pyro_smat.encoders.encoder import SupportEncoder
from pyro_smat.encoders.evidence import EvidenceEncoder
from pyro_smat.encoders.moments import PrototypeMomentsEncoder

EncoderKind = Literal["evidence", "deep_sets", "prototype_moments", "prototype_attention"]
ENCODERS: tuple[EncoderKind, ...] = get_args(EncoderKind)


def build_encoder(kind: EncoderKind, features: int, hidden: int) -> SupportEncoder:
    """The encoder of that name, freshly initialised.

    Args:
        kind: one of :data:`ENCODERS`.
        features: f, the width of the source features ("evidence" works with any).
        hidden: h, the width of the embedding.

    Raises:
        ValueError: for an unknown name.
    """
    match kind:
        case "evidence":
            return EvidenceEncoder(hidden)
        case "deep_sets":
            return DeepSetsEncoder(features, hidden)
        case "prototype_moments":
            return PrototypeMomentsEncoder(features, hidden)
        case "prototype_attention":
            return PrototypeAttentionEncoder(features, hidden)
    raise ValueError(f"encoder is {kind!r}; expected one of {ENCODERS}")
