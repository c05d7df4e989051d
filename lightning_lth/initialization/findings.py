"""What the tensors of one forward pass show about its layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from torch import Tensor

from lightning_lth.initialization.flows import (
    Activated,
    Finding,
    Source,
    Trace,
    carried,
    distorted,
    ends,
    known,
    merged,
    sources_of,
    unit_kind,
)
from lightning_lth.initialization.functions import composed_kind, self_gated_kind


@final
@dataclass
class Log:
    """What was found so far.

    Attributes:
        bits: What each bit of ``Trace.upstream`` stands for: a layer call with its upstream;
            None for inputs, and for layers that do not count for branches.
        inputs: The bits of inputs.
        branches: Layers and last normalization layer of each residual branch.
        outputs: Layers that an output or a loss is made from.
        forgotten: Layers of which only a norm, an index or the like was used, at least once.
    """

    findings: list[Finding] = field(default_factory=list)
    gated_by: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    bits: list[tuple[str | None, int]] = field(default_factory=list)
    inputs: int = 0
    branches: list[tuple[tuple[str, ...], str | None]] = field(default_factory=list)
    outputs: dict[str, None] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    def new_input(self) -> Trace:
        """The trace of a tensor that no function made."""
        bit = self._new_bit(None, 0)
        self.inputs |= bit
        return Trace(upstream=bit, trunk=bit)

    def _new_bit(self, layer: str | None, upstream: int) -> int:
        self.bits.append((layer, upstream))
        return 1 << (len(self.bits) - 1)

    def has_layer(self, trace: Trace) -> bool:
        """Whether it depends on a layer, and not on inputs only."""
        return bool(trace.upstream & ~self.inputs)

    def _find(self, sources: Iterable[Source], kind: str) -> Finding:
        """Note a nonlinearity."""
        finding = Finding(frozenset(source.layer for source in sources), kind)
        self.findings.append(finding)
        return finding

    def _consume(self, trace: Trace) -> None:
        """A tensor reaches a layer or the output as it is."""
        for layer, kind in ends(trace.pending):
            self.findings.append(Finding(frozenset([layer]), kind))
        activated = trace.activated
        if activated and activated.unknown:
            activated.finding.on_top = composed_kind(activated.unknown, activated.kind)
        elif activated:
            activated.finding.is_used = True

    def end(self, traces: Iterable[Trace]) -> Trace:
        """The output of attention, a softmax or a loss."""
        traces = list(traces)
        for trace in traces:
            self._consume(trace)
        return replace(merged(traces), pending=frozenset())

    def forget(self, before: Iterable[Trace], after: Trace) -> Trace:
        """What a function gives; a norm, an index or a mean square forgets the layers before it."""
        layers = {source.layer for trace in before for source in trace.pending}
        self.forgotten |= layers - {source.layer for source in after.pending}
        return after

    def without_finding(self, layer: str) -> str:
        """What follows a layer behind which nothing was noted: its output was lost from view."""
        return "linear" if layer in self.forgotten else "unknown: not seen"

    def end_in_output(self, traces: Iterable[Trace]) -> Trace:
        """What a loss is made from, or the output itself: the last layer before it is noted."""
        traces = list(traces)
        for trace in traces:
            layers = [source.layer for source in trace.pending]
            if layers:
                self.outputs[max(layers, key=self._last_run)] = None
        return self.end(traces)

    def _last_run(self, layer: str) -> int:
        return max(index for index, name in enumerate(self.order) if name == layer)

    def run(self, layer: str, inputs: Sequence[Trace], *, counts: bool = True) -> Trace:
        """The output of a layer; ``counts`` is whether it can be on a residual branch."""
        for trace in inputs:
            self._consume(trace)
            if trace.gate:
                self.gated_by.setdefault(layer, trace.gate)
        self.order.append(layer)
        fed = next((trace for trace in inputs if trace.upstream), inputs[0])
        upstream = merged(inputs).upstream
        upstream |= self._new_bit(layer if counts else None, upstream)
        pending = frozenset([Source(layer, fed.identity)])
        return Trace(pending=pending, upstream=upstream, trunk=upstream)

    def activate(self, inputs: Trace, kind: str) -> Trace:
        """The output of a nonlinearity."""
        sources, activated = known(inputs.pending), inputs.activated
        if sources:
            activated = Activated(sources, kind, self._find(sources, kind))
        elif activated:
            activated = replace(activated, kind=composed_kind(kind, activated.kind))
        gate = kind if kind == "glu" else None
        activated = None if gate else activated
        return replace(merged([inputs]), pending=frozenset(), activated=activated, gate=gate)

    def multiply(self, traces: Sequence[Trace], tensors: Sequence[Tensor]) -> Trace:
        """The product of two tensors, neither constant."""
        left, right = traces
        if right.activated and right.activated.sources == known(left.pending):
            return self._multiply_by_own_gate(right.activated, traces, tensors)
        if left.activated and left.activated.sources == known(right.pending):
            return self._multiply_by_own_gate(left.activated, traces, tensors[::-1])
        kind = unit_kind(left, right) if tensors[0].shape == tensors[1].shape else None
        if kind:
            return self._multiply_by_sibling(kind, traces)
        if known(sources_of(left)) & known(sources_of(right)):
            return distorted(merged(traces), "mul")
        return carried(traces)

    def _multiply_by_own_gate(
        self, gate: Activated, traces: Sequence[Trace], tensors: Sequence[Tensor]
    ) -> Trace:
        kind = self_gated_kind(gate.kind, *tensors)
        gate.finding.kind = kind
        activated = Activated(gate.sources, kind, gate.finding)
        return replace(merged(traces), pending=frozenset(), activated=activated)

    def _multiply_by_sibling(self, kind: str, traces: Sequence[Trace]) -> Trace:
        sources = frozenset().union(*map(sources_of, traces))
        finding = next((t.activated.finding for t in traces if t.activated), None)
        finding = finding or self._find(sources, kind)
        finding.kind = kind
        finding.layers |= {source.layer for source in sources}
        return replace(merged(traces), pending=frozenset(), gate=kind)

    def add(self, left: Trace, right: Trace) -> Trace:
        """The sum of two tensors of the same shape, neither constant."""
        total = merged([left, right])
        for branch, skip in ((left, right), (right, left)):
            layers = self._residual_layers(branch, skip)
            if layers:
                self.branches.append((layers, branch.norm))
                return replace(total, trunk=skip.trunk)
        return total

    def _residual_layers(self, branch: Trace, skip: Trace) -> tuple[str, ...]:
        """The layers on a residual branch that is added to its skip connection; () if it is none.

        All that the skip connection depends on, the branch depends on as well; or at least the
        tensor to which the skip connection only added since, as where two branches are parallel;
        or the skip connection has fewer layers of its own than the branch, which has two.
        """
        shared = branch.upstream & skip.upstream
        added = self._layers(branch.upstream, shared)
        skipped = self._layers(skip.upstream, shared)
        own, own_of_skip = len(set(added) - set(skipped)), len(set(skipped) - set(added))
        is_projection = shared and own >= 2 and own > own_of_skip
        is_parallel = skip.trunk != skip.upstream and not skip.trunk & ~branch.upstream
        is_sum = branch.trunk != branch.upstream
        if skip.upstream == shared or ((is_projection or is_parallel) and not is_sum):
            return added
        return ()

    def _layers(self, upstream: int, shared: int) -> tuple[str, ...]:
        """The layers in ``upstream`` that depend on all of ``shared`` and are not part of it."""
        layers: dict[str, None] = {}
        rest = upstream & ~shared
        while rest:
            lowest = rest & -rest
            layer, inputs = self.bits[lowest.bit_length() - 1]
            if layer is not None and inputs & shared == shared:
                layers[layer] = None
            rest ^= lowest
        return tuple(layers)
