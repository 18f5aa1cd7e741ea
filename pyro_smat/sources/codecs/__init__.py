"""The codecs in which one tensor is stored small, one a file; each is a pair of pure functions."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pyro_smat.sources.codecs import int8, low_rank, sparse, truncated

__all__ = ["CODECS", "Codec", "Parts"]

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Codec:
    """How one tensor is stored.

    Attributes:
        encode: ``(tensor, base, tolerance) -> parts``: tensors to store, or None when the codec does not suit the
            tensor. ``base`` is the tensor that differences are taken to, zeros for a codec without; ``tolerance`` is
            relative to ``|tensor - base|``.
        decode: ``(parts, base) -> tensor``, float32 or in the stored values' dtype.
        relative: whether it stores differences, and so needs a base.
        lossless: whether decoding returns the tensor bit for bit.
    """

    encode: Callable[[Tensor, Tensor, float], Parts | None]
    decode: Callable[[Parts, Tensor], Tensor]
    relative: bool
    lossless: bool


CODECS = {
    "sparse": Codec(sparse.encode, sparse.decode, relative=True, lossless=True),
    "truncated": Codec(truncated.encode, sparse.decode, relative=True, lossless=False),
    "low_rank": Codec(low_rank.encode, low_rank.decode, relative=True, lossless=False),
    "int8": Codec(int8.encode, int8.decode, relative=False, lossless=False),
    "int8_delta": Codec(int8.encode, int8.decode, relative=True, lossless=False),
}
