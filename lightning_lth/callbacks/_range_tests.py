"""What the finders have in common: when they run, and what they keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_lth.callbacks import _loggers, _strategies, _trainer
from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.callbacks.pruning import IterativeMagnitudePruning
from lightning_lth.learning_rate.range_test import RangeTest

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

Results = dict[int, list[RangeTest]]


def round_of(trainer: Trainer) -> int:
    """The pruning round; 0 without pruning."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    pruning = (one for one in callbacks if isinstance(one, IterativeMagnitudePruning))
    return next((one.round for one in pruning), 0)


def is_due(trainer: Trainer, callback: Callback, rounds: Sequence[int], results: Results) -> bool:
    """Whether to run now: at the start of one of these rounds, if the fit does not resume."""
    round_ = round_of(trainer)
    is_nested = callback not in trainer.callbacks  # type: ignore[attr-defined]  # Lightning's tuner
    is_resumed = trainer.fit_loop.restarting or (round_ == 0 and trainer.global_step > 0)
    is_excluded = is_nested or is_resumed or _trainer.is_fast_dev_run(trainer)
    return round_ in rounds and round_ not in results and not is_excluded


def refuse_incompatible(trainer: Trainer, callback: Callback) -> None:
    """Refuse trainings whose steps cannot be taken on trial.

    Raises:
        ValueError: With the reason.
    """
    name = type(callback).__name__
    if _strategies.flattens(trainer):
        raise ValueError(
            f"{name} cannot undo steps of {type(trainer.strategy).__name__}, "
            f"which trains flattened copies of the parameters. Use DDP, or fixed values."
        )
    takes = lightning_of(trainer).utilities.signature_utils.is_param_in_hook_signature
    if takes(trainer.lightning_module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{name} cannot give a `training_step` that takes a `dataloader_iter` other batches. "
            f"Let it take a batch, or use fixed values."
        )


def check_plot_dir(folder: object) -> None:
    """Refuse pictures that nothing could draw.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if folder is not None and find_spec("matplotlib") is None:
        raise ImportError('`plot_dir` needs matplotlib: `pip install "lightning-lth[plots]"`.')


def report(trainer: Trainer, name: str, tests: Sequence[RangeTest], folder: Any) -> None:
    """Say on the console what was found, and send the curves to loggers and files."""
    round_ = round_of(trainer)
    for index, test in enumerate(tests):
        group = f"{name}_optimizer_{index}" if len(tests) > 1 else name
        others = [f"{rule} {one}" for rule, one in test.suggestions.items() if one.value]
        shown = f" ({', '.join(others)})" if others else ""
        rank_zero_info(f"{group}, round {round_}: {test.curve.parameter} {test.chosen}{shown}")
        path = None if folder is None else Path(folder) / f"{group}_round_{round_:02}.png"
        _loggers.log_range_test(trainer, test, group, round_, path)


def state_of(results: Results) -> dict[str, Any]:
    """The results as dictionaries, lists, numbers and strings."""
    return {
        "results": {
            str(round_): [test.to_dict() for test in tests] for round_, tests in results.items()
        }
    }


def results_from(state_dict: Mapping[str, Any]) -> Results:
    """The results that ``state_of`` described."""
    return {
        int(round_): [RangeTest.from_dict(test) for test in tests]
        for round_, tests in state_dict["results"].items()
    }


def latest(results: Results) -> RangeTest:
    """The latest result, of the first optimizer.

    Raises:
        RuntimeError: If there is none.
    """
    if not results:
        raise RuntimeError("There is no result before `trainer.fit` has started training.")
    return results[max(results)][0]


def found_range(results: Mapping[int, Sequence[RangeTest]]) -> tuple[float, float]:
    """The lowest and the highest rate to cycle between.

    Raises:
        RuntimeError: If none were found.
    """
    if not results:
        raise RuntimeError(
            "The LRFinder of CyclicalLR has not run: it tests at the start of its `rounds`, and "
            "not in a fit that resumes. Let it run in round 0, or give `base_lr` and `max_lr`."
        )
    found = results[max(results)][0].range
    if found.base is None or found.max is None:
        raise RuntimeError(f"The LRFinder found no range: {found.reason}. Give one.")
    return found.base, found.max
