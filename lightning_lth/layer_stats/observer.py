"""All statistics of the layers of a network, from the batches that one asks to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor
from torch.nn import Module, Parameter

from lightning_lth.layer_stats.affine import affine_statistics
from lightning_lth.layer_stats.batch_norm import (
    BatchNormReader,
    is_warmed_up,
    momentum_horizon,
    state_of,
)
from lightning_lth.layer_stats.diagnoses import (
    BatchNormFacts,
    diagnose_batch_norm,
    diagnose_dropout,
    diagnose_uses,
)
from lightning_lth.layer_stats.facts import Facts
from lightning_lth.layer_stats.findings import Diagnosis, Thresholds
from lightning_lth.layer_stats.layers import dropout_layers, group, normalization_layers
from lightning_lth.layer_stats.readings import joined
from lightning_lth.layer_stats.survey import Survey, fallback, has_fast_path, is_compiled
from lightning_lth.layer_stats.watching import Watch

Numbers = dict[tuple[str, str], float]


@final
class LayerObserver:
    """Observes the normalization and dropout layers of a network.

    Create it before the network runs for the first time. The first training batch and the first
    evaluation batch that are observed are also surveyed: which Dropout runs before which BatchNorm,
    which ReLU follows, which dropout has no module. A compiled network cannot be surveyed, nor one
    with attention of torch in evaluation mode; the order of its modules stands in.

    Args:
        module: The network.
        activations: Also mean and standard deviation of the input of each normalization layer.

    Examples:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2))
        >>> observer = LayerObserver(network)
        >>> observer.start_training_batch()
        >>> _ = network(torch.randn(32, 2))
        >>> numbers = observer.finish_training_batch()
        >>> numbers[("1", "values_per_channel")], ("1", "drift_mean") in numbers
        (32.0, True)
        >>> observer.release()
    """

    def __init__(self, module: Module, *, activations: bool = False) -> None:
        self._module = module
        self._norms = normalization_layers(module)
        self._dropouts = dropout_layers(module)
        self.groups = {name: group(layer) for name, layer in self._norms.items()}
        self.groups |= dict.fromkeys(self._dropouts, "dropout")
        self._batch_norms = {
            name: layer for name, layer in self._norms.items() if self.groups[name] == "batch_norm"
        }
        self._whole_norms = {n: layer for n, layer in self._norms.items() if _is_whole(layer)}
        self._reader = BatchNormReader(self._batch_norms)
        self._watch = Watch(module, activations=activations)
        self._facts: dict[bool, Facts] = {}  # of evaluation, and of training
        self._survey: Survey | None = None
        self._batches_tracked: dict[str, int] = {}
        self._note_states()

    @property
    def is_in_batch(self) -> bool:
        """Whether a batch is being observed."""
        return self._watch.is_on or self._watch.is_evaluating

    def restart(self) -> None:
        """Training starts: forget all batches before, and go on on the present device."""
        self.abandon_batch()
        self._watch.training_readings()  # which starts the sums anew
        self._watch.evaluation_readings()
        self._note_states()
        self._reader = BatchNormReader(self._batch_norms)
        self._watch.prepare()

    def start_training_batch(self) -> None:
        """Observe the forward passes from here on, in training."""
        self.abandon_batch()
        self._reader.before()
        self._watch.is_on = True
        self._start_survey(is_training=True)

    def finish_training_batch(self) -> Numbers:
        """Stop observing.

        Returns:
            ``(layer, statistic)`` to value; waits for the device once.
        """
        self.stop_survey()
        self._watch.is_on = False
        facts = self._facts.get(True)
        before_relu = set() if facts is None else facts.before_relu
        affine = affine_statistics(self._whole_norms, before_relu=before_relu)
        readings = [self._reader.after(), self._watch.training_readings(), affine]
        numbers = joined(readings).to_numbers()
        self._note_states()
        self._batches_tracked = {
            name: int(numbers[name, "batches_tracked"])
            for name in self._batch_norms
            if (name, "batches_tracked") in numbers
        }
        return numbers

    def abandon_batch(self) -> None:
        """Stop observing a batch that was not run to its end; does nothing outside of batches."""
        self.stop_survey()
        self._watch.is_on = self._watch.is_evaluating = False

    def start_evaluation_batch(self) -> None:
        """Observe the forward passes from here on, in evaluation."""
        self.abandon_batch()
        self._watch.is_evaluating = True
        self._start_survey(is_training=False)

    def finish_evaluation_batch(self) -> None:
        """Stop observing; the batches add up."""
        self.stop_survey()
        self._watch.is_evaluating = False

    def finish_evaluation(self) -> Numbers:
        """What all evaluation batches together showed."""
        for name, layer in self._batch_norms.items():
            if (count := getattr(layer, "num_batches_tracked", None)) is not None:
                self._batches_tracked[name] = int(count)
        return self._watch.evaluation_readings().to_numbers()

    def stop_survey(self) -> None:
        """The first forward pass is over; does nothing later."""
        if self._survey is None:
            return
        self._survey.__exit__(None, None, None)
        facts, self._survey = self._survey.facts, None
        if self.groups and not facts.order and not facts.functional_dropout:
            self._facts.popitem()  # nothing ran; the next batch will be surveyed

    def release(self) -> None:
        """Take all hooks away; a second time does nothing."""
        self.abandon_batch()
        self._watch.release()

    def layers(self) -> list[dict[str, Any]]:
        """A row for each layer: name, kind, class, and for BatchNorm the state and horizon."""
        rows: list[dict[str, Any]] = []
        for name, layer in {**self._norms, **self._dropouts}.items():
            row: dict[str, Any] = {
                "layer": name,
                "kind": self.groups[name],
                "class": type(layer).__name__,
            }
            if name in self._batch_norms:
                row["state"] = self._states[name].value
                row["momentum_horizon"] = momentum_horizon(layer)
            if name in self._dropouts:
                row["p"] = layer.p
            rows.append(row)
        return rows

    def affine_parameters(self) -> dict[str, Tensor]:
        """Scales and offsets by tag, ``group/layer/gamma`` and ``beta``."""
        return {
            f"{self.groups[name]}/{name}/{tag}": value
            for name, layer in self._whole_norms.items()
            for tag, attribute in (("gamma", "weight"), ("beta", "bias"))
            if isinstance(value := getattr(layer, attribute, None), Tensor)
        }

    def diagnose(
        self, numbers: Mapping[tuple[str, str], float], thresholds: Thresholds
    ) -> list[Diagnosis]:
        """What the numbers of a batch or an evaluation mean; the same findings again and again.

        Args:
            numbers: Just gotten: they are judged by what the running statistics are now.
            thresholds: When to speak.
        """
        by_layer: dict[str, dict[str, float]] = {}
        for (name, statistic), value in numbers.items():
            by_layer.setdefault(name, {})[statistic] = value
        found = diagnose_uses(self._facts.get(True), self._facts.get(False))
        for name in self._batch_norms:
            facts = self._facts_of(name)
            found += diagnose_batch_norm(name, by_layer.get(name, {}), facts, thresholds)
        for name in self._dropouts:
            found += diagnose_dropout(name, by_layer.get(name, {}), thresholds)
        return found

    def _start_survey(self, *, is_training: bool) -> None:
        if is_training in self._facts:
            return
        if is_compiled(self._module) or has_fast_path(self._module):
            self._facts[is_training] = fallback(self._module)
            return
        self._survey = Survey(self._module)
        self._facts[is_training] = self._survey.facts
        self._survey.__enter__()

    def _facts_of(self, name: str) -> BatchNormFacts:
        layer, count = self._batch_norms[name], self._batches_tracked.get(name)
        momentum = getattr(layer, "momentum", None)
        training = self._facts.get(True)
        return BatchNormFacts(
            self._states[name],
            batches_tracked=count or 0,
            initial_share=0.0 if momentum is None or count is None else (1 - momentum) ** count,
            is_warmed_up=count is None or is_warmed_up(layer, count),
            dropouts_before=() if training is None else training.dropout_before.get(name, ()),
        )

    def _note_states(self) -> None:
        """While in training mode."""
        self._states = {name: state_of(layer) for name, layer in self._batch_norms.items()}


def _is_whole(layer: Module) -> bool:
    """Not if its parameters are spread over processes, which would all have to take part."""
    # Private: set by FSDP, whose shards of flattened parameters look like any parameter.
    if getattr(layer, "_is_fsdp_managed_module", False):
        return False
    # DeepSpeed leaves empty ones.
    return all(type(p) in (Tensor, Parameter) and p.numel() > 0 for p in layer.parameters())
