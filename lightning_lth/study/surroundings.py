"""What surrounds a trial: threads, GPUs, and what Lightning says and times; put back afterwards."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import parent_process
from typing import final

import torch
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override


@contextmanager
def ended_with(parent: int) -> Iterator[None]:
    """End this process when the parent does; nothing happens if it was not started by the parent.

    The workers of a killed study would go on otherwise, and write where the next one does.
    """
    started_by = parent_process()
    if started_by is None or started_by.pid != parent:
        yield
        return
    is_over = threading.Event()

    def end_if_alone() -> None:
        if os.getppid() != parent:
            os._exit(1)

    def watch() -> None:
        while not is_over.wait(1.0):
            end_if_alone()

    end_if_alone()  # a worker takes seconds to start, in which the study may have been killed
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """No advice from Lightning, dozens of times over."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", "The number of training batches")
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def seeds() -> Iterator[None]:
    """Keep the random states, and what ``seed_everything`` leaves in the environment."""
    with isolate_rng(), _variable("PL_GLOBAL_SEED"), _variable("PL_SEED_WORKERS"):
        yield


@contextmanager
def without_unused_gpus(accelerator: str) -> Iterator[None]:
    """Hide GPUs from trials on the CPU.

    In each step torch 2.15's optimizers ask whether there is a GPU, which opens its driver's
    library anew; with ``CUDA_VISIBLE_DEVICES`` empty they know. For LeNet that is a tenth of all.
    """
    with _variable("CUDA_VISIBLE_DEVICES"):
        if accelerator == "cpu" and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        yield


@final
class NoProfiler(Profiler):
    """Measures nothing, as Lightning's default, which enters a generator 24 times in each step.

    That takes 0.1 ms, a fifth of what Lightning's loop costs.
    """

    @override
    def start(self, action_name: str) -> None:
        """Do nothing."""

    @override
    def stop(self, action_name: str) -> None:
        """Do nothing."""

    @override
    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context in which nothing happens."""
        return _NOTHING


_NOTHING = nullcontext()


@contextmanager
def _variable(name: str) -> Iterator[None]:
    """Put a variable of the environment back afterwards."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
