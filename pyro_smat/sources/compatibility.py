"""The compatibility report: do these checkpoints fit this network and each other, before anything is computed.

Only headers are read, so the report on gigabytes takes a moment; ``values=True`` also looks for NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pyro_smat.sources.checkpoint import Checkpoint
from pyro_smat.sources.issues import (
    Issue,
    constant_issues,
    network_issues,
    source_issues,
    suggested_head,
    value_issues,
)
from pyro_smat.sources.layout import columns, readable_bytes
from pyro_smat.sources.opening import Source, open_checkpoint
from pyro_smat.sources.template import Template, matches
from pyro_smat.sources.transformers_names import TransformersNames

_SHOWN = 3  # tensors of one kind of issue that a table names


@dataclass(frozen=True)
class SourceVerdict:
    """What was found about one source.

    Attributes:
        name: of the source.
        checkpoint: the opened checkpoint.
        issues: all of them.
        left_out: patterns of the head that match a tensor of the network or of this source.
        suggestion: patterns without which a source that does not fit would fit; () otherwise.
    """

    name: str
    checkpoint: Checkpoint
    issues: tuple[Issue, ...]
    left_out: tuple[str, ...] = ()
    suggestion: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it can be mixed, the head left out as was asked."""
        return not any(issue.fatal for issue in self.issues)

    @property
    def verdict(self) -> str:
        """ "fits", "fits without <patterns>" (left out, or that would have to be) or "does not fit"."""
        patterns = (*self.left_out, *self.suggestion)
        if patterns and (self.fits or self.suggestion):
            return f"fits without {', '.join(patterns)}"
        return "fits" if self.fits else "does not fit"


@dataclass(frozen=True)
class CompatibilityReport:
    """Verdicts on sources of one network; ``str`` gives a table.

    Attributes:
        template: what the network expects.
        network: issues about the network itself.
        sources: a verdict for every source, in order.
    """

    template: Template
    network: tuple[Issue, ...]
    sources: tuple[SourceVerdict, ...]

    @property
    def fits(self) -> bool:
        """Whether a library can be made of all these sources, with the same head left out."""
        return not self.network and all(source.fits for source in self.sources)

    def __str__(self) -> str:
        template = self.template
        weights = sum(shape.numel() for shape in template.tensors.values())
        lines = [
            f"{template.title}: {len(template.tensors)} tensors are mixed, {weights:,} weights; "
            f"{len(template.constants)} are constants of the network",
            *_grouped(self.network),
            _table(self.sources),
        ]
        alike: dict[tuple[tuple[Issue, ...], tuple[str, ...]], list[str]] = {}
        for source in self.sources:
            alike.setdefault((source.issues, source.suggestion), []).append(source.name)
        for (issues, suggestion), names in alike.items():
            if issues:
                lines += [f"{', '.join(names)}:", *_grouped(issues)]
            if suggestion:
                lines.append(f"  -> to leave out the head: {self._how_to_leave_out(suggestion)}")
        return "\n".join(lines)

    def raise_unless_fits(self) -> None:
        """Raises:
        ValueError: when a source does not fit; it says all that keeps one from fitting, of many tensors of
            one kind the first few by name.
        """
        if self.fits:
            return
        lines = [f"{self.template.title} cannot be composed:"] if self.network else []
        lines += _grouped(self.network)
        for source in (s for s in self.sources if not s.fits):
            known = set(source.checkpoint.names) & self.template.tensors.keys()
            prefixed = any(issue.kind == "prefix" for issue in source.issues)
            other = "" if known or prefixed else " - another architecture?"
            lines.append(
                f"source {source.name!r} ({source.checkpoint.origin}) does not fit {self.template.title}{other}:"
            )
            lines += _grouped([f for f in source.issues if f.fatal])
            if source.suggestion:
                lines.append(f"  -> it fits without its head: {self._how_to_leave_out(source.suggestion)}")
        raise ValueError("\n".join(lines))

    def _how_to_leave_out(self, suggestion: tuple[str, ...]) -> str:
        """A head of the network becomes the identity; patterns are for what sources have."""
        modules = [
            pattern.removesuffix(".*")
            for pattern in suggestion
            if pattern.endswith(".*") and any(matches(name, pattern) for name in self.template.tensors)
        ]
        stored = {name for source in self.sources for name in source.checkpoint.names}
        head = tuple(
            pattern
            for pattern in suggestion
            if pattern.removesuffix(".*") not in modules or any(matches(name, pattern) for name in stored)
        )
        steps = [f"network.set_submodule({module!r}, torch.nn.Identity())" for module in modules]
        return " and ".join(steps + [f"head={head}"] * bool(head))


def check_compatibility(
    module: nn.Module,
    checkpoints: Mapping[str, Source],
    ignore: Sequence[str] = (),
    *,
    base: Source | None = None,
    values: bool = False,
) -> CompatibilityReport:
    """Compare checkpoints with a network, by their headers.

    Args:
        module: the network; its values are not used, it may be on the meta device.
        checkpoints: name -> source, theta_pre first.
        ignore: patterns of names that are left out, such as ``("fc.*",)``: tensors of the network that match are not
            mixed and keep its values, tensors of a source that match are not looked at (``head=`` of
            :meth:`~pyro_smat.sources.SourceLibrary.from_files`).
        base: of files that store differences; default: the first checkpoint.
        values: also read all weights, a tensor at a time, to find NaN and infinite ones.

    Raises:
        ValueError: for no checkpoints, an unreadable one, or a pattern that matches nothing.

    Example:
        >>> import torch
        >>> module = nn.Linear(2, 1)
        >>> check_compatibility(module, {"pre": {"weight": torch.ones(1, 2)}}).sources[0].verdict
        'does not fit'
    """
    template = Template.from_module(module, ignore)
    opened = open_all(checkpoints, base, naming=template.naming)
    refuse_idle_patterns(template, opened)
    return examine(template, opened, values)


def open_all(
    checkpoints: Mapping[str, Source], base: Source | None = None, *, naming: TransformersNames | None = None
) -> dict[str, Checkpoint]:
    """Open sources by name; the first is the base of those that store differences, unless there is another.

    Args:
        checkpoints: name -> source.
        base: of files that store differences.
        naming: of a network of transformers, whose files may have other names than the network.
    """
    if not isinstance(checkpoints, Mapping):
        raise ValueError(
            f"sources are a {type(checkpoints).__name__}; expected a mapping of names to checkpoints, the fallback "
            'first: {"first": ..., "second": ...}'
        )
    if not checkpoints:
        raise ValueError("got no sources; expected at least one checkpoint")
    reference = None if base is None else open_checkpoint(base)
    opened: dict[str, Checkpoint] = {}
    for name, source in checkpoints.items():
        stored = open_checkpoint(source, reference)
        reference = reference or stored
        opened[name] = stored if naming is None else naming.opened(stored)
    return opened


def examine(template: Template, checkpoints: Mapping[str, Checkpoint], values: bool = False) -> CompatibilityReport:
    """The report on opened checkpoints."""
    verdicts = []
    for name, checkpoint in checkpoints.items():
        issues = source_issues(template, checkpoint) + tuple(constant_issues(template, checkpoint))
        suggestion = suggested_head(template, checkpoint, issues)
        if values:
            issues += tuple(value_issues(template, checkpoint))
        seen = (*checkpoint.names, *template.constants)
        left_out = tuple(pattern for pattern in template.head if any(matches(other, pattern) for other in seen))
        verdicts.append(SourceVerdict(name, checkpoint, issues, left_out, suggestion))
    return CompatibilityReport(template, network_issues(template), tuple(verdicts))


def refuse_idle_patterns(template: Template, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raises:
    ValueError: for a pattern of the head that matches nothing, which is misspelt.
    """
    everything = {name for checkpoint in checkpoints.values() for name in checkpoint.names} | template.constants
    for pattern in template.head:
        if not any(matches(name, pattern) for name in everything):
            raise ValueError(
                f"pattern {pattern!r} matches no tensor of the network or of a source; expected names such as "
                f"{list(template.tensors)[-1]!r}"
            )


def _table(sources: Sequence[SourceVerdict]) -> str:
    rows = [("source", "from", "format", "dtype", "tensors", "stored", "verdict")]
    for source in sources:
        checkpoint = source.checkpoint
        dtypes = Counter(str(checkpoint.dtype(name)).removeprefix("torch.") for name in checkpoint.names)
        rows.append(
            (
                source.name,
                Path(checkpoint.origin).name,
                checkpoint.format,
                ", ".join(dtype for dtype, _ in dtypes.most_common()),
                f"{len(checkpoint.names)}",
                readable_bytes(checkpoint.stored_bytes),
                source.verdict,
            )
        )
    return columns(rows, right=(4, 5))


def _grouped(issues: Sequence[Issue], shown: int = _SHOWN) -> list[str]:
    """Lines: issues of one kind and remedy together, the first few by name, the remedy once."""
    groups: dict[tuple[str, str], list[Issue]] = {}
    for issue in issues:
        groups.setdefault((issue.kind, issue.remedy), []).append(issue)
    lines = []
    for (kind, remedy), alike in groups.items():
        named = alike[:shown] if alike[0].fatal else alike[:1]
        lines += [f"  {issue}" for issue in named]
        if len(alike) > len(named):
            lines.append(f"  {kind}: and {len(alike) - len(named)} more")
        lines.append(f"    -> {remedy}")
    return lines
