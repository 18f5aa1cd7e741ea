"""Encoders: support set -> what the router knows, invariant to the order of shots and to relabelling of classes."""

from pyro_smat.encoders.attention import PrototypeAttentionEncoder
from pyro_smat.encoders.build import ENCODERS, EncoderKind, build_encoder
from pyro_smat.encoders.deep_sets import DeepSetsEncoder
from pyro_smat.encoders.described import DescribedEncoder
from pyro_smat.encoders.encoder import Encoding, SourceContext, SupportEncoder
from pyro_smat.encoders.evidence import EVIDENCE, EvidenceEncoder, source_evidence
from pyro_smat.encoders.moments import PrototypeMomentsEncoder

__all__ = [
    "ENCODERS",
    "EVIDENCE",
    "DeepSetsEncoder",
    "DescribedEncoder",
    "EncoderKind",
    "Encoding",
    "EvidenceEncoder",
    "PrototypeAttentionEncoder",
    "PrototypeMomentsEncoder",
    "SourceContext",
    "SupportEncoder",
    "build_encoder",
    "source_evidence",
]
