"""Files of transformers, opened as transformers opens them: under the names of the network in memory.

Since version 5 some networks of transformers (ViT, DeiT, BEiT, DINOv2, Swin, SegFormer, ...) have other names in memory
than in the files that ``save_pretrained`` writes, and a few split tensors when they are loaded (``qkv`` into three).
transformers knows for every network how its files are read; that is applied here to headers at once, and to values when
they are asked for. Stands between an opened file and the library.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.sources.checkpoint import Checkpoint


@dataclass(frozen=True)
class TransformersNames:
    """How the files of one network of transformers are read.

    Attributes:
        renamings, converters: of transformers, in the order in which they apply.
        prefix: of the encoder inside a classifier, such as "vit".
        names: of the network in memory.
        config: of the network.
    """

    renamings: tuple[Any, ...]
    converters: tuple[Any, ...]
    prefix: str
    names: frozenset[str]
    config: Any

    @classmethod
    def of(cls, module: nn.Module) -> TransformersNames | None:
        """The names of a network of transformers; None for any other."""
        modeling = sys.modules.get("transformers.modeling_utils")  # whoever has such a network has imported it
        if modeling is None or not isinstance(module, modeling.PreTrainedModel):
            return None
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        transforms = get_model_conversion_mapping(module)
        return cls(
            tuple(t for t in transforms if not isinstance(t, WeightConverter)),
            tuple(t for t in transforms if isinstance(t, WeightConverter)),
            module.base_model_prefix,
            frozenset(module.state_dict(keep_vars=True)),
            module.config,
        )

    def opened(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint under the network's names in memory; the checkpoint itself where it has these already.

        Tensors that the network has not (of a head) keep the names that they have in the file.

        Raises:
            ValueError: when two tensors of the file become one of the network.
        """
        if self.names <= set(checkpoint.names):
            return checkpoint
        plain: dict[str, str] = {}
        groups: dict[str, _Converted] = {}
        known = dict.fromkeys(self.names, True)
        for stored in checkpoint.names:
            name, pattern = self._in_memory(stored, known)
            if pattern is not None:
                group = groups.setdefault(name, _Converted(name, self._converter(pattern), self.config))
                group.stored[stored] = pattern
                continue
            if name in plain:
                raise ValueError(
                    f"{checkpoint.origin}: {plain[name]!r} and {stored!r} are both {name!r} of the network; expected "
                    "one of the two: save it again with save_pretrained"
                )
            plain[name] = stored
        unchanged = not groups and all(name == stored for name, stored in plain.items())
        return checkpoint if unchanged else _InMemory(checkpoint, plain, list(groups.values()))

    def _in_memory(self, stored: str, known: dict[str, bool]) -> tuple[str, str | None]:
        """The network's name of a stored tensor, and the pattern of the converter that makes it, None for none."""
        from transformers.core_model_loading import rename_source_key

        name, pattern = rename_source_key(stored, list(self.renamings), list(self.converters), self.prefix, known)
        if name not in known:  # it should perhaps not have been renamed
            name, pattern = rename_source_key(stored, [], [], self.prefix, known)
        return name, pattern

    def _converter(self, pattern: str) -> Any:
        return next(converter for converter in self.converters if pattern in converter.source_patterns)


def as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint under the names that its file has."""
    return checkpoint.checkpoint if isinstance(checkpoint, _InMemory) else checkpoint


@dataclass
class _Converted:
    """Tensors of a file that one operation of transformers makes into tensors of the network.

    Attributes:
        first: name of the first tensor that is made.
        converter: of transformers; it is copied for every use, since it collects what it converts.
        config: of the network.
        stored: names in the file, each with the pattern of the converter that it matches.
    """

    first: str
    converter: Any
    config: Any
    stored: dict[str, str] = field(default_factory=dict)

    def made_of(self, read: Callable[[str], Tensor]) -> Mapping[str, Tensor]:
        """The network's tensors by name, of stored ones that ``read`` gives."""
        converter = copy.deepcopy(self.converter)
        for stored, pattern in self.stored.items():
            converter.add_tensor(self.first, stored, pattern, read(stored))
        made = converter.convert(self.first, config=self.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


class _InMemory:
    """A file's checkpoint under the names that the network has in memory."""

    def __init__(self, checkpoint: Checkpoint, plain: Mapping[str, str], groups: list[_Converted]) -> None:
        def header(name: str) -> Tensor:
            return torch.empty(checkpoint.shape(name), dtype=checkpoint.dtype(name), device="meta")

        self.checkpoint, self._plain = checkpoint, dict(plain)
        self.origin, self.format = checkpoint.origin, checkpoint.format
        made = {name: (group, tensor) for group in groups for name, tensor in group.made_of(header).items()}
        self._group = {name: group for name, (group, _) in made.items()}
        self._header = {name: header(stored) for name, stored in plain.items()}
        self._header |= {name: tensor for name, (_, tensor) in made.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._header)

    @property
    def stored_bytes(self) -> int:
        return self.checkpoint.stored_bytes

    def shape(self, name: str) -> torch.Size:
        return self._header[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._header[name].dtype

    def read(self, name: str) -> Tensor:
        if name in self._group:
            return self._group[name].made_of(self.checkpoint.read)[name]
        return self.checkpoint.read(self._plain[name])
