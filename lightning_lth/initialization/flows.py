"""What a tensor carries from layer to layer, and how functions change it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

from lightning_lth.initialization.functions import (
    AVERAGES,
    DISTORTING,
    FORGETFUL,
    composed_kind,
    gated_kind,
    is_constant,
    is_first_power,
)


class Source(NamedTuple):
    """An output of a layer, or a part of it, behind which no nonlinearity has come yet."""

    layer: str
    fed: object  # the same for layers that were fed the same tensor
    part: tuple[str, ...] = ()
    unknown: str = ""  # an elementwise function on the way that has no name as an activation


@final
@dataclass(eq=False)
class Finding:
    """A nonlinearity behind some layers; what is seen later may change it."""

    layers: frozenset[str]
    kind: str
    is_used: bool = False  # by a layer or as an output, with nothing on top of it
    on_top: str | None = None  # what it becomes with an elementwise function on top of it

    @property
    def kinds(self) -> list[str]:
        """What to report."""
        if self.on_top is None:
            return [self.kind]
        return [self.kind, self.on_top] if self.is_used else [self.on_top]


@final
@dataclass(frozen=True)
class Activated:
    """The output of a nonlinearity, up to scale and shift."""

    sources: frozenset[Source]
    kind: str
    finding: Finding
    unknown: str = ""  # an elementwise function on top of it


@final
@dataclass(frozen=True, eq=False)
class Trace:
    """What is known of one tensor."""

    pending: frozenset[Source] = frozenset()
    activated: Activated | None = None
    gate: str | None = None  # of which gated linear unit this is the product
    norm: str | None = None  # the normalization layer that it comes out of
    upstream: int = 0  # bits of the layer calls and the inputs that it depends on; 0: a constant
    trunk: int = 0  # the same for the oldest tensor that was only added to since
    owners: tuple[str, ...] = ()  # modules with the parameter that this constant comes from
    identity: object = field(default_factory=object)


def merged(traces: Iterable[Trace]) -> Trace:
    """The trace of what is computed from several tensors, linearly as far as we know."""
    traces = list(traces)
    upstream = 0
    for trace in traces:
        upstream |= trace.upstream
    return Trace(
        pending=frozenset().union(*(trace.pending for trace in traces)),
        upstream=upstream,
        trunk=upstream,
        owners=next((t.owners for t in traces if t.owners), ()) if not upstream else (),
    )


def carried(traces: Iterable[Trace]) -> Trace:
    """The same for a function that keeps what is known, such as dropout, reshape or scaling."""
    traces = list(traces)
    live = [trace for trace in traces if trace.upstream]
    if len(live) == 1:
        return live[0]
    telling = [t for t in live if t.pending or t.activated or t.gate or t.norm]
    if len(telling) != 1:
        return merged(traces)
    only = telling[0]
    return replace(merged(traces), activated=only.activated, gate=only.gate, norm=only.norm)


def passed(name: str, args: tuple[Any, ...], traces: list[Trace]) -> Trace:
    """The trace behind any function that is no layer, no sum or product and no activation."""
    if is_constant(name):
        return Trace()
    if name in FORGETFUL:
        return replace(merged(traces), pending=frozenset())
    if name in AVERAGES:
        is_average = len(traces) == 1 or name not in ("max", "min")
        return _averaged(merged(traces)) if is_average else distorted(merged(traces), name)
    if name == "div" and len(traces) > 1:
        return carried([traces[0], distorted(traces[1], name)])
    if name in DISTORTING and not is_first_power(name, args):
        return distorted(carried(traces), name)
    return merged(traces) if "pool" in name else carried(traces)


def _averaged(trace: Trace) -> Trace:
    """A hand-written normalization divides by a mean of squares, which then is only a scale."""
    bent = {source._replace(unknown="") for source in trace.pending if source.unknown}
    kept = (source for source in trace.pending if source._replace(unknown="") not in bent)
    return replace(trace, pending=frozenset(kept))


def distorted(trace: Trace, name: str) -> Trace:
    """The trace behind an elementwise function that has no name as an activation."""
    if not (trace.pending or trace.activated):
        return replace(trace, gate=None, norm=None, trunk=trace.upstream, identity=object())
    activated = trace.activated
    return Trace(
        pending=frozenset(s._replace(unknown=s.unknown or name) for s in trace.pending),
        activated=activated and replace(activated, unknown=activated.unknown or name),
        upstream=trace.upstream,
        trunk=trace.upstream,
    )


def part_of(trace: Trace, label: str) -> Trace:
    """The trace of a chunk or a slice."""
    activated = trace.activated
    return replace(
        trace,
        pending=_part_of(trace.pending, label),
        activated=activated and replace(activated, sources=_part_of(activated.sources, label)),
        identity=object(),
    )


def _part_of(sources: frozenset[Source], label: str) -> frozenset[Source]:
    return frozenset(source._replace(part=(*source.part, label)) for source in sources)


def known(sources: Iterable[Source]) -> frozenset[Source]:
    """The sources without the distortions on the way."""
    return frozenset(source._replace(unknown="") for source in sources)


def ends(pending: Iterable[Source]) -> list[tuple[str, str]]:
    """The layers that go on without a nonlinearity, each with ``"linear"`` or ``"unknown: ..."``.

    Examples:
        >>> ends({Source("a", 0), Source("b", 0), Source("b", 0, (), "pow")})
        [('a', 'linear'), ('b', 'unknown: pow')]
    """
    kinds: dict[tuple[str, tuple[str, ...]], str] = {}
    for source in sorted(pending, key=lambda source: (source.layer, source.part, source.unknown)):
        kinds[source.layer, source.part] = source.unknown  # the empty one comes first
    return [(layer, f"unknown: {u}" if u else "linear") for (layer, _), u in kinds.items()]


def unit_kind(left: Trace, right: Trace) -> str | None:
    """The gated linear unit that their product is, if it is one.

    That takes outputs of layers with the same input, or two parts of one output, not more than one
    of them activated. In squeeze-and-excitation the inputs differ: that is none.
    """
    for gate, other in ((left, right), (right, left)):
        activated = gate.activated
        if activated and _are_siblings(activated.sources, other.pending):
            kind, unknown = activated.kind, activated.unknown
            return gated_kind(composed_kind(unknown, kind) if unknown else kind)
    is_plain = not any(source.unknown for source in left.pending | right.pending)
    return "bilinear" if is_plain and _are_siblings(left.pending, right.pending) else None


def _are_siblings(left: frozenset[Source], right: frozenset[Source]) -> bool:
    same_input = {source.fed for source in left} == {source.fed for source in right}
    return bool(left) and same_input and not known(left) & known(right)


def sources_of(trace: Trace) -> frozenset[Source]:
    """The layers that it comes from, be it through a nonlinearity or not."""
    return trace.activated.sources if trace.activated else trace.pending
