"""SourceLibrary: R frozen checkpoints of one network, read block by block when somebody asks.

Opened checkpoints come in; rows of the basis, single blocks, or composed task parameters go out. Training and routing
use ``basis``, which holds all sources in memory; ``compose`` never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources.checkpoint import Checkpoint, TensorsInMemory
from pyro_smat.sources.comparison import compare
from pyro_smat.sources.compatibility import examine, open_all, refuse_idle_patterns
from pyro_smat.sources.opening import Source
from pyro_smat.sources.streaming import composed, mapped_basis, rows_of
from pyro_smat.sources.subspace import FeatureSubspace, load_subspace
from pyro_smat.sources.template import Template, space_without
from pyro_smat.sources.transformers_names import as_stored


class SourceLibrary:
    """R frozen sources of one network.

    Args:
        names: R names; the first is theta_pre, the fallback.
        basis: ``(R, d)``, one source a row; or R checkpoints, which are read when asked for.
        space: the parameter space of the rows.
        template: what checkpoints must hold; default: what ``space`` says.
        dtype: of rows that are read from checkpoints; a basis has its own.
        subspaces: of training features, by source, where they are known; those that are stored beside checkpoints are
            found without.

    Attributes:
        names, space, dtype: as above.
        has_checkpoints: whether it was made of checkpoints, and not of a basis.

    Raises:
        ValueError: for a basis of another shape, names that repeat, or checkpoints that do not fit.

    Example:
        >>> from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources
        >>> library = SourceLibrary.from_files(glyph_network(), shipped_glyph_sources())
        >>> library.names
        ('generalist', 'letter', 'face', 'rotation', 'style')
        >>> tuple(library.basis.shape) == (5, library.space.dim)
        True
    """

    def __init__(
        self,
        names: Sequence[str],
        basis: Tensor | Sequence[Checkpoint],
        space: ParameterSpace,
        template: Template | None = None,
        dtype: torch.dtype = torch.float32,
        subspaces: Mapping[str, FeatureSubspace] | None = None,
    ) -> None:
        self.names, self.space = tuple(names), space
        self._template = template or Template.from_space(space)
        self._basis: Tensor | None = None
        self.has_checkpoints = not isinstance(basis, Tensor)
        self._subspaces = dict(subspaces or {})
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"source names {self.names} repeat; expected distinct names")
        if isinstance(basis, Tensor):
            self._basis, self.dtype = basis, basis.dtype
            if basis.shape != (len(self.names), space.dim) or not self.names:
                raise ValueError(
                    f"basis has shape {tuple(basis.shape)}; expected ({len(self.names)}, {space.dim}), at least one row"
                )
            return
        if len(basis) != len(self.names) or not self.names:
            raise ValueError(f"got {len(basis)} checkpoints and {len(self.names)} names; expected one name for each")
        self.dtype = dtype
        self.checkpoints = dict(zip(self.names, basis, strict=True))
        examine(self._template, self.checkpoints).raise_unless_fits()

    @classmethod
    def from_files(
        cls,
        module: nn.Module,
        files: Mapping[str, Source],
        blocks: Mapping[str, str] | None = None,
        *,
        head: Sequence[str] = (),
        base: Source | None = None,
    ) -> SourceLibrary:
        """Open checkpoints, ``{"name": path}``; the first is theta_pre. Headers are read and compared; weights are not.

        Args:
            module: the network; its values are used for nothing but the head, which stays with it.
            files: anything that :func:`~pyro_smat.sources.opening.open_checkpoint` takes.
            blocks: of the parameter space, name -> regular expression.
            head: patterns of names that are left out, such as ``("fc.*",)``: those tensors are constants of the
                network, they are not in ``space`` and not mixed. A head that the network's features pass through keeps
                the network's values: replace it by ``nn.Identity()`` first.
            base: of files that store differences; default: theta_pre.

        Raises:
            ValueError: for an unreadable file, or checkpoints that do not fit ``module``; missing, extra and
                misshapen tensors of every file are told at once, the first three of a kind by name.
        """
        template = Template.from_module(module, head)
        space = space_without(module, blocks, template.left_out)
        checkpoints = open_all(files, base, naming=template.naming)
        refuse_idle_patterns(template, checkpoints)
        return cls(tuple(checkpoints), tuple(checkpoints.values()), space, template)

    @classmethod
    def from_state_dicts(
        cls, module: nn.Module, states: Mapping[str, Mapping[str, Tensor]], blocks: Mapping[str, str] | None = None
    ) -> SourceLibrary:
        """Sources from state dicts in memory; they are not copied, and must not be trained any further."""
        return cls.from_files(module, states, blocks)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """The source of every row, by name; views of the basis in a library that was made of one."""
        assert self._basis is not None
        rows = zip(self.names, self._basis, strict=True)
        return {name: TensorsInMemory(self.space.unflatten(row), f"row {name!r} of a basis") for name, row in rows}

    @property
    def device(self) -> torch.device:
        """Where composing happens: where the basis is, the CPU for sources that are in files."""
        return torch.device("cpu") if self._basis is None else self._basis.device

    @property
    def stored_bytes(self) -> dict[str, int]:
        """What every source takes where it is stored: bytes of its files, or of its tensors in memory."""
        return {name: checkpoint.stored_bytes for name, checkpoint in self.checkpoints.items()}

    @cached_property
    def subspaces(self) -> dict[str, FeatureSubspace]:
        """Subspaces of the sources' training features by name, of those that have one; read on first use.

        Raises:
            ValueError: for a damaged file, or a subspace that was fitted under other weights.
        """
        stored = self.checkpoints if self.has_checkpoints else {}
        read = {name: load_subspace(checkpoint) for name, checkpoint in stored.items() if name not in self._subspaces}
        return self._subspaces | {name: subspace for name, subspace in read.items() if subspace is not None}

    @property
    def basis(self) -> Tensor:
        """``(R, d)``, one source a row; read on first use and kept.

        Raises:
            ValueError: for weights that are not finite; names the source and the tensor.
        """
        if self._basis is None:
            basis = torch.empty(len(self), self.space.dim, dtype=self.dtype)
            for start, rows in self.pieces():
                basis[:, start : start + rows.shape[1]] = rows
            self._basis = basis
        return self._basis

    def mapped(self, path: Path) -> SourceLibrary:
        """The same sources with a basis that stays on disk, for more of them than the memory holds.

        The basis is written to a file, a piece at a time, and mapped: composing and its gradient read it through, and
        the system drops what it has read when memory is short. All processes of a machine that map one file share what
        is in memory. The basis is a tensor on the CPU like any other, with the same values. What copies it needs the
        memory after all: moving it to a GPU, and another ``compute_dtype``.

        Args:
            path: of the file, R x d numbers; it is written anew, and must stay while the library is used.

        Raises:
            ValueError: for a file that cannot be written, or weights that are not finite.

        Example:
            >>> from tempfile import mkdtemp
            >>> from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources
            >>> library = SourceLibrary.from_files(glyph_network(), shipped_glyph_sources())
            >>> mapped = library.mapped(Path(mkdtemp()) / "basis.bin")
            >>> torch.equal(mapped.basis, library.basis)
            True
        """
        basis = mapped_basis(self, path)
        return SourceLibrary(self.names, basis, self.space, self._template, subspaces=self.subspaces)

    def block(self, index: int | str) -> Tensor:
        """``(R, d_l)``: one block of all sources, by number or name; nothing else is read.

        Raises:
            ValueError: for a block that the space does not have, or weights that are not finite.
        """
        names = self.space.block_names
        if index not in (names if isinstance(index, str) else range(len(names))):
            raise ValueError(f"block is {index!r}; expected one of {names} or a number in [0, {len(names)})")
        number = names.index(index) if isinstance(index, str) else index
        begin = sum(self.space.block_sizes[:number])
        columns = torch.empty(len(self), self.space.block_sizes[number], dtype=self.dtype)
        for start, rows in self.pieces(number):
            columns[:, start - begin : start - begin + rows.shape[1]] = rows
        return columns

    def pieces(self, block: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """All sources, a piece of one tensor at a time: first coordinate and rows ``(R, n)``.

        Args:
            block: only this block; None for all.
        """
        everyone = list(range(len(self)))
        for entry in self.space.entries:
            if block is None or entry.block == block:
                yield from rows_of(self, entry, everyone)

    def compose(self, coefficients: Tensor) -> Tensor:
        """Task parameters ``theta = c B`` straight from the checkpoints.

        What ``pyro_smat.networks.composition.compose(c, basis, space)`` gives, without a basis: beside the result there
        is never more in memory than one tensor of every source that has weight. Other sources are not read. One-hot
        coefficients reproduce their source bit for bit.

        Args:
            coefficients: ``(*b, R)``; or ``(*b, L, R)``, one mixture for each of the L blocks of the space.

        Returns:
            ``(*b, d)``, without gradient: compose with ``basis`` to differentiate.

        Raises:
            ValueError: for coefficients that are no tensor, of another shape, not finite or want a gradient, or for
                weights that are not finite.
        """
        if not isinstance(coefficients, Tensor):
            raise ValueError(
                f"coefficients are a {type(coefficients).__name__}; expected a tensor: torch.as_tensor(coefficients)"
            )
        return composed(self, coefficients)

    def with_source(self, name: str, source: Source, *, base: Source | None = None) -> SourceLibrary:
        """A library with one more source, as the last row; coefficients have one more column, after the old sources.

        Args:
            name: of the new source.
            source: anything that can be opened.
            base: of a file that stores differences; default: theta_pre.

        Raises:
            ValueError: for a name that is taken, or a checkpoint that cannot be read or does not fit.
        """
        if name in self.names:
            raise ValueError(f"source {name!r} is there already; expected a name other than {self.names}")
        reference = as_stored(self.checkpoints[self.names[0]]) if base is None else base
        opened = open_all({name: source}, reference, naming=self._template.naming)
        return self._over(self.checkpoints | opened)

    def without(self, name: str, *, fallback: str | None = None) -> SourceLibrary:
        """A library without a source; the order of the others stays.

        The fallback itself, source 0, goes only when ``fallback`` names the source that takes its place in front: the
        other sources are not interchangeable with it.

        Raises:
            ValueError: for a source that is not there, the last one, or the fallback without another one.
        """
        if name not in self.names:
            raise ValueError(f"source is {name!r}; expected one of {self.names}")
        rest = [other for other in self.names if other != name]
        if not rest:
            raise ValueError(f"{name!r} is the only source; expected at least one to stay")
        if name == self.names[0] and fallback is None:
            raise ValueError(f"{name!r} is theta_pre, the fallback; expected fallback= one of {tuple(rest)} beside it")
        if fallback is not None and fallback not in rest:
            raise ValueError(f"fallback is {fallback!r}; expected one of {tuple(rest)}")
        first = rest[0] if fallback is None else fallback
        return self._over({other: self.checkpoints[other] for other in [first, *(o for o in rest if o != first)]})

    def one_hot(self, source: int | str, experts: int = 0) -> Tensor:
        """Coefficients ``(R + M,)`` that reproduce one source, by name or row; experts closed.

        Raises:
            ValueError: for a source that the library does not have.
        """
        if source not in (self.names if isinstance(source, str) else range(len(self))):
            raise ValueError(f"source is {source!r}; expected one of {self.names} or a row in [0, {len(self)})")
        row = self.names.index(source) if isinstance(source, str) else source
        coefficients = torch.zeros(len(self) + experts)
        coefficients[row] = 1.0
        return coefficients

    @property
    def report(self) -> str:
        """A table: for every source its norm, its distance to theta_pre relative to |theta_pre|, and the cosine
        between its task vector (theta - theta_pre) and the nearest other task vector. Reads all weights once."""
        return compare(self).summary(self.space)

    def _over(self, checkpoints: dict[str, Checkpoint]) -> SourceLibrary:
        known = {name: subspace for name, subspace in self.subspaces.items() if name in checkpoints}
        values = tuple(checkpoints.values())
        return SourceLibrary(tuple(checkpoints), values, self.space, self._template, self.dtype, subspaces=known)
