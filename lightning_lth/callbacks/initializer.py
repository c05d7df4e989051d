"""Draws the weights of a module anew at the start of a fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_lth.callbacks import _examples, _loggers, _strategies, _trainer
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.initialization.initialize import checked_seed, initialize_
from lightning_lth.initialization.lazy import materialize_
from lightning_lth.initialization.overrides import Overrides
from lightning_lth.initialization.passes import call, fresh, weight_buffers
from lightning_lth.initialization.plan import ASSUMED
from lightning_lth.initialization.report import InitializationReport, InitializedParameter
from lightning_lth.initialization.schemes import Scheme, needs_example, scheme_of
from lightning_lth.initialization.signal import SignalReport, signal_propagation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer
    from torch.nn import Module

    from lightning_lth.initialization.drawing import Rule

    Run = Callable[[Trainer, LightningModule, Any], Any]


@final
class Initializer(Callback):
    """Initialize a module by layer type and following nonlinearity: He before ReLU, Xavier else.

    Runs once, when a fit starts, and never when it resumes. The nonlinearities are found in a
    forward pass of a copy of the module: of ``example_input`` or ``example_input_array`` through
    ``forward``, otherwise of a batch of the training data through ``training_step``. Data order and
    random states stay as they are. The report goes to TensorBoard's text tab.

    Args:
        scheme: As for ``lightning_lth.initialization.initialize_``: ``"auto"``,
            ``"orthogonal"``, ``"lsuv"``, a rule with arguments, and so on.
        seed: Any integer; by default that of ``seed_everything``.
        example_input: A batch for ``forward``. A tuple gives positional arguments, a dictionary
            keyword arguments.
        overrides: Name patterns or types of layers to rules; the first that matches counts.
        zero_branch_ends: Start residual branches at 0.
        show_signal: Log how activations and gradients propagate through the initialized module.

    Raises:
        ValueError: If there is no such scheme.
        TypeError: If an argument is of a wrong type.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> initializer = Initializer("orthogonal", seed=1)
        >>> trainer = Trainer(max_epochs=10, callbacks=[initializer], logger=False)

    Source:
        He et al. 2015, arXiv:1502.01852; Glorot & Bengio 2010; for each scheme see its function.
    """

    def __init__(
        self,
        scheme: str | Scheme = "auto",
        *,
        seed: int | None = None,
        example_input: Any = None,
        overrides: Mapping[str | type[Module], Rule] | None = None,
        zero_branch_ends: bool = False,
        show_signal: bool = False,
    ) -> None:
        scheme_of(scheme)
        checked_seed(seed)
        Overrides(overrides or {})
        self.scheme = scheme
        self.seed = seed
        self.example_input = example_input
        self.overrides = overrides
        self.zero_branch_ends = zero_branch_ends
        self.show_signal = show_signal
        self._report: InitializationReport | None = None

    @property
    def report(self) -> InitializationReport:
        """What was done to each parameter.

        Raises:
            RuntimeError: Before a fit has started.
        """
        if self._report is None:
            raise RuntimeError("There is no report before `trainer.fit` has initialized a module.")
        return self._report

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialize, before the sanity check and before any rewind point."""
        if _trainer.is_resuming(trainer) or trainer.global_step > 0:
            return
        _refuse_sharded(trainer)
        example = self._explicit_example(trainer, pl_module)
        if example is not None:
            self._report, signal = self._initialize(trainer, pl_module, example, _forward)
        else:
            self._report, signal = self._rehearse(trainer, pl_module)
        _synchronize_(trainer, pl_module)
        rank_zero_info(f"Initializer: {self._report.summary()}")
        _loggers.log_initialization(trainer, self._report, signal)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The report, as numbers and strings."""
        if self._report is None:
            return {}
        return {"rows": self._report.to_dicts(), "seed": self._report.seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the report of the fit that is resumed."""
        rows = tuple(InitializedParameter(**row) for row in state_dict.get("rows", ()))
        self._report = InitializationReport(rows, state_dict["seed"]) if rows else None

    def _explicit_example(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        example = self.example_input
        if example is None:
            example = pl_module.example_input_array
        if example is None:
            return None
        example = trainer.precision_plugin.convert_input(example)
        return trainer.strategy.batch_to_device(example)

    def _initialize(
        self, trainer: Trainer, module: LightningModule, example: Any, run: Run | None
    ) -> tuple[InitializationReport, SignalReport | None]:
        seed = checked_seed(self.seed)
        forward = partial(run, trainer) if run is not None else None
        report = initialize_(
            module,
            self.scheme,
            seed=trainer.strategy.broadcast(seed),
            example_input=example,
            forward=forward,
            overrides=self.overrides,
            zero_branch_ends=self.zero_branch_ends,
        )
        if not self.show_signal or forward is None:
            return report, None
        return report, signal_propagation(module, example, forward=forward)

    def _rehearse(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> tuple[InitializationReport, SignalReport | None]:
        """Initialize a copy with training data, and copy its weights back."""
        try:
            batch = _examples.example_batch(trainer)
            step = partial(_examples.training_step, trainer, batch=fresh(batch))
            materialize_(pl_module, step)
            replica = _examples.rehearsal(pl_module)
            report, signal = self._initialize(trainer, replica, batch, _examples.training_step)
        except Exception as error:
            if self._needs_example or isinstance(error, Warning):  # where warnings are errors
                raise
            return self._without_example(trainer, pl_module, error)
        _copy_parameters_(pl_module, replica)
        return report, signal

    def _without_example(
        self, trainer: Trainer, pl_module: LightningModule, error: Exception
    ) -> tuple[InitializationReport, None]:
        with warnings.catch_warnings(record=True):  # one warning, not two
            warnings.simplefilter("always")
            report, _ = self._initialize(trainer, pl_module, None, None)
        warnings.warn(
            f"Initializer could not try a training step on an example batch: {error!r}. Where the "
            f"following nonlinearity matters, {ASSUMED} is assumed. Pass `example_input`, or set "
            f"`example_input_array` on the module.",
            stacklevel=2,
        )
        return report, None

    @property
    def _needs_example(self) -> bool:
        scheme = scheme_of(self.scheme)
        return self.zero_branch_ends or self.show_signal or needs_example(scheme)


def _forward(trainer: Trainer, module: Module, example: Any) -> Any:
    with trainer.precision_plugin.forward_context():
        return call(module, example)


def _refuse_sharded(trainer: Trainer) -> None:
    if _strategies.shards(trainer):
        raise ValueError(
            f"Initializer cannot draw weights that {type(trainer.strategy).__name__} has sharded. "
            f"Call `lightning_lth.initialize_` in `configure_model`, before they are."
        )


@torch.no_grad()
def _copy_parameters_(module: Module, source: Module) -> None:
    for parameter, new in zip(module.parameters(), source.parameters(), strict=True):
        parameter.copy_(new)
    for name, buffer in weight_buffers(source).items():
        module.get_buffer(name).copy_(buffer)


def _synchronize_(trainer: Trainer, module: Module) -> None:
    """Give all ranks the weights of the first: augmented batches may differ."""
    if trainer.world_size > 1:
        for tensor in (*module.parameters(), *weight_buffers(module).values()):
            torch.distributed.broadcast(tensor.data, src=0)
