"""Encoders: support features under all sources in; one vector and one score for each source out.

The answer does not change with the order of shots or the names of classes. Add one by one file here: a
:class:`SupportEncoder` under ``@register("encoder", name)``.
"""

from pyro_smat.encoders.attention import PrototypeAttentionEncoder
from pyro_smat.encoders.deep_sets import DeepSetsEncoder
from pyro_smat.encoders.described import DescribedEncoder
from pyro_smat.encoders.encoder import Encoding, SourceContext, SupportEncoder
from pyro_smat.encoders.evidence import EVIDENCE, EvidenceEncoder, source_evidence
from pyro_smat.encoders.moments import PrototypeMomentsEncoder

__all__ = [
    "EVIDENCE",
    "DeepSetsEncoder",
    "DescribedEncoder",
    "Encoding",
    "EvidenceEncoder",
    "PrototypeAttentionEncoder",
    "PrototypeMomentsEncoder",
    "SourceContext",
    "SupportEncoder",
    "source_evidence",
]
