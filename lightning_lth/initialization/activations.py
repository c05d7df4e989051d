"""Which nonlinearity follows each layer, seen in one forward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_lth.initialization import functions
from lightning_lth.initialization.findings import Log
from lightning_lth.initialization.flows import Trace, carried, merged, part_of, passed
from lightning_lth.initialization.passes import eager, tensors_in, unchanged
from lightning_lth.initialization.writing import name_of


@final
@dataclass(frozen=True)
class Branch:
    """One residual branch, ended by an addition to its skip connection.

    Attributes:
        layers: The layers with weights on the branch, in order of execution; embeddings and
            normalization layers do not count.
        end_norm: The normalization layer that comes last before the addition, if any.

    Examples:
        >>> Branch(("conv1", "conv2"), end_norm="bn2").end
        'conv2'
    """

    layers: tuple[str, ...]
    end_norm: str | None

    @property
    def end(self) -> str:
        """The last layer with weights."""
        return self.layers[-1]


@final
@dataclass(frozen=True)
class DataFlow:
    """What one forward pass showed. Layers that it did not run are absent.

    Attributes:
        following: Layer to the nonlinearities that follow it, each once, in the order found;
            ``"linear"`` where it goes into another layer, an attention product, a softmax, a loss
            or the output without one; ``"unknown: ..."`` if it goes through a function that is
            none of torch's activations, or into something that cannot be looked into.
        gated_by: Layers whose input is the product of a gated linear unit, to the kind of it:
            ``"glu"``, ``"swiglu"``, ``"geglu"``, ``"reglu"``, ``"bilinear"`` or ``"gated ..."``.
            The layers before the product have the same kind in ``following``.
        branches: Residual branches in the order of their additions, each once.
        order: Layers in the order of their first execution.
        outputs: For each output and each loss, the last layer that it is made from without a
            nonlinearity; of a classifier that returns logits, its head.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> data_flow(model, lambda: model(torch.zeros(1, 2))).order
        ('0', '2')
    """

    following: Mapping[str, tuple[str, ...]]
    gated_by: Mapping[str, str]
    branches: tuple[Branch, ...]
    order: tuple[str, ...]
    outputs: tuple[str, ...]


def data_flow(module: nn.Module, run: Callable[[], object]) -> DataFlow:
    """Find which nonlinearity follows each layer, in one forward pass.

    Every tensor is traced through the torch functions that it goes through, so that neither the
    order of modules nor where a function is called matters. The pass runs in evaluation mode,
    without gradients, and eager even if compiled; buffers, modes and random states are restored.

    Args:
        module: Layers are named as in its ``named_modules()``, without ``_orig_mod``. A parameter
            of a module of your own that inputs are multiplied with makes that module a layer.
        run: Calls the module once, on an example. What it raises passes through.

    Returns:
        The nonlinearities, gates and residual branches.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> dict(data_flow(model, lambda: model(torch.zeros(1, 2))).following)
        {'0': ('tanh',), '2': ('linear',)}

    Note:
        Not seen: what scripted and traced code and ``vmap`` do inside; layers before them are
        followed by ``"unknown: not seen"``. Operators of other libraries are taken as linear. Only
        the path that the example takes is seen.
    """
    recorder = _Recorder(module)
    with torch.no_grad(), unchanged(module), eager(), recorder.module_calls():
        module.eval()
        with _checkpoints_may_have_no_gradients(), recorder:
            output = run()
    return recorder.summary(output)


@contextlib.contextmanager
def _checkpoints_may_have_no_gradients() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        yield


class _Call(NamedTuple):
    """One call of a torch function, with the traces of all tensors in its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    traces: list[Trace]

    def given(self, position: int, key: str) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(key)


class _Recorder(TorchFunctionMode):
    """Follows every tensor through the torch functions that it goes through."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.root = module
        self.log = Log()
        self.running: list[nn.Module] = []  # innermost last
        self.names = {
            id(layer): name_of(name.partition("parametrizations.")[0])
            for name, layer in module.named_modules()
        }
        self.traces = WeakTensorKeyDictionary()
        for buffer in module.buffers():
            self.traces[buffer] = Trace()
        owners: dict[nn.Parameter, tuple[str, ...]] = {}
        for layer in module.modules():
            for parameter in layer.parameters(recurse=False):
                owners[parameter] = (*owners.get(parameter, ()), self.names[id(layer)])
        for parameter, names in owners.items():
            self.traces[parameter] = Trace(owners=names)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Trace one call; before it runs, as it may change its arguments."""
        kwargs = kwargs or {}
        tensors = list(tensors_in((args, kwargs)))
        traces = [self.trace(tensor) for tensor in tensors]
        call = _Call(functions.function_name(function), args, kwargs, tensors, traces)
        outcome = self.outcome(call)
        result = function(*args, **kwargs)
        self.remember(call, outcome, result)
        return result

    @contextlib.contextmanager
    def module_calls(self) -> Iterator[None]:
        """Inside, ``running`` is the stack of modules that are being called."""

        def enter(module: nn.Module, inputs: Any) -> None:
            self.running.append(module)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self.running.pop()

        with contextlib.ExitStack() as hooks:
            for module in self.root.modules():
                if not isinstance(module, torch.jit.ScriptModule):  # they take no hooks
                    entering = module.register_forward_pre_hook(enter, prepend=True)
                    leaving = module.register_forward_hook(leave, always_call=True)
                    hooks.callback(entering.remove)
                    hooks.callback(leaving.remove)
            yield

    def trace(self, tensor: Tensor) -> Trace:
        if tensor not in self.traces:  # nothing that we saw made it: an input
            self.traces[tensor] = self.log.new_input()
        return cast(Trace, self.traces[tensor])

    def remember(self, call: _Call, outcome: Trace, result: Any) -> None:
        if call.name == "setitem":
            self.traces[call.args[0]] = outcome
        is_part = call.name in functions.PARTS
        label = call.name + functions.text([call.args[1:], call.kwargs]) if is_part else ""
        for index, tensor in enumerate(tensors_in(result)):
            self.traces[tensor] = part_of(outcome, f"{label}[{index}]") if is_part else outcome

    def outcome(self, call: _Call) -> Trace:
        name, traces = call.name, call.traces
        if not traces:
            return Trace()
        if name == "multi_head_attention_forward":
            return self.attention(call)
        if name in functions.WEIGHTED or name in functions.RECURRENT:
            return self.layer(call)
        if name in functions.PRODUCTS:
            return self.matrix_product(call)
        if len(traces) == 2 and all(trace.upstream for trace in traces):
            if name == "mul":
                return self.log.multiply(traces, call.tensors)
            if name == "add" and call.tensors[0].shape == call.tensors[1].shape:
                return self.log.add(*traces)
        if functions.is_loss(name):
            return self.log.end_in_output(traces)
        if functions.is_consumer(name):
            return self.log.end(traces)
        if functions.is_norm(name):
            return replace(merged(traces), norm=self.norm(traces))
        kind = functions.activation_kind(name, call.args, call.kwargs)
        if kind:
            return self.log.activate(carried(traces), kind)
        return self.log.forget(traces, passed(name, call.args, traces))

    def layer(self, call: _Call) -> Trace:
        owner = self.weight_owner(call)
        if owner is None:
            return carried(call.traces)
        return self.log.run(owner, call.traces, counts="embedding" not in call.name)

    def weight_owner(self, call: _Call) -> str | None:
        """The name of the layer: whose weight it is, or else that which is being called."""
        tensors = [*tensors_in(call.kwargs.get("weight")), *tensors_in(call.args[1:])]
        if call.name in functions.RECURRENT:
            tensors = call.tensors[::-1]  # learned initial states come before the weights
        elif call.name == "embedding":
            tensors.append(call.tensors[0])  # `torch.embedding` has them the other way round
        owner = self.owner([self.trace(tensor) for tensor in tensors])
        if owner is None and self.running and _has_matrix(self.running[-1]):
            owner = self.names.get(id(self.running[-1]))
        return owner

    def owner(self, traces: Iterable[Trace]) -> str | None:
        """Whose parameter the first of these is that is one; of a tied one, the running layer."""
        owners = next((trace.owners for trace in traces if trace.owners), None)
        if owners is None:
            return None
        running = (self.names.get(id(module)) for module in reversed(self.running))
        return next((name for name in running if name in owners), owners[0])

    def matrix_product(self, call: _Call) -> Trace:
        factors = call.traces[1:] if call.name in functions.BIASED_PRODUCTS else call.traces
        owner = self.owner(factors)
        if owner is not None and any(trace.upstream for trace in factors):
            return self.log.run(owner, call.traces)
        if sum(self.log.has_layer(trace) for trace in factors) > 1:
            return self.log.end(call.traces)
        return carried(call.traces)  # a constant or an input is no layer

    def attention(self, call: _Call) -> Trace:
        weights = [call.given(5, "in_proj_weight"), call.given(18, "q_proj_weight")]
        traces = call.traces
        for tensors in (weights, [call.given(11, "out_proj_weight")]):
            owner = self.owner([self.traces[t] for t in tensors if t is not None])
            if owner is not None:
                traces = [self.log.run(owner, traces)]
        return merged(traces)

    def norm(self, traces: Iterable[Trace]) -> str | None:
        owner = self.owner(traces)
        if owner is None and self.running and not list(self.running[-1].children()):
            return self.names.get(id(self.running[-1]))
        return owner

    def summary(self, output: object) -> DataFlow:
        outputs = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
        self.log.end_in_output(map(self.trace, outputs))
        following: dict[str, dict[str, None]] = {layer: {} for layer in self.log.order}
        for finding in self.log.findings:
            for layer in finding.layers:
                following[layer].update(dict.fromkeys(finding.kinds))
        return DataFlow(
            following={
                layer: tuple(kinds) or (self.log.without_finding(layer),)
                for layer, kinds in following.items()
            },
            gated_by=self.log.gated_by,
            branches=tuple(Branch(*found) for found in dict.fromkeys(self.log.branches)),
            order=tuple(following),
            outputs=tuple(self.log.outputs),
        )


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
