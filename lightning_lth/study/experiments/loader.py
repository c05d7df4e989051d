"""Batches of a data set that fits into memory, without workers, transfers or copies by example."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol, final

import torch
from torch import Tensor, distributed


class Augment(Protocol):
    """Changes the inputs of a training batch at random.

    Examples:
        >>> def noisy(inputs, generator):
        ...     return inputs + torch.empty_like(inputs).normal_(generator=generator)
    """

    def __call__(self, inputs: Tensor, generator: torch.Generator, /) -> Tensor:
        """Return new inputs; ``generator`` is on their device and the only source of chance."""


@final
class EpochOrder:
    """In which order the examples come; that of an epoch depends on ``seed`` and epoch alone.

    Args:
        num_examples: How many there are.
        shuffle: Whether the order is random.
        seed: Any integer.

    Examples:
        >>> order = EpochOrder(5, shuffle=True, seed=0)
        >>> first, second = order.draw(0), order.draw(1)
        >>> torch.equal(first, second), torch.equal(first, order.draw(0))
        (False, True)
    """

    def __init__(self, num_examples: int, *, shuffle: bool, seed: int) -> None:
        self.num_examples = num_examples
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the pass that starts next; Lightning does so in each epoch."""
        self.epoch = epoch

    def draw(self, epoch: int) -> Tensor:
        """The positions of all examples in the order of an epoch."""
        if not self.shuffle:
            return torch.arange(self.num_examples)
        return torch.randperm(self.num_examples, generator=keyed("order", self.seed, epoch))


@final
class TensorLoader:
    """Batches of inputs and labels that are held as two tensors, on whichever device they are.

    The order and the augmentation of an epoch depend on ``seed`` and the epoch alone, never on the
    global random state. Lightning says which epoch it is; without it passes are counted. A fit
    that resumes in the middle of an epoch goes on with the next batch.

    Args:
        inputs: One example for each index of the first dimension.
        labels: As many, on the same device.
        batch_size: Examples in a batch; at least 1. The last may be smaller.
        shuffle: Whether each epoch has a random order of its own.
        seed: Any integer; by default ``torch.initial_seed()``, so that ``seed_everything`` decides.
        augment: Called on the inputs of each batch with a generator on their device.
        drop_last: Leave out a last batch that is smaller.

    Raises:
        ValueError: If an argument is out of its range, or there is no batch.

    Examples:
        >>> loader = TensorLoader(torch.arange(5.0), torch.arange(5), batch_size=2, shuffle=False)
        >>> [labels.tolist() for _, labels in loader]
        [[0, 1], [2, 3], [4]]

    Note:
        Only for one process: Lightning spreads the data of a ``DataLoader`` over several processes,
        but would not spread these.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a `sampler`

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        _check(inputs, labels, batch_size, drop_last)
        self.inputs = inputs
        self.labels = labels
        self.batch_size = batch_size
        self.augment = augment
        self.drop_last = drop_last
        seed = torch.initial_seed() if seed is None else seed
        self.sampler = EpochOrder(len(inputs), shuffle=shuffle, seed=seed)
        self._next = (0, 0)  # epoch and batch
        self._resume: tuple[int, int] | None = None  # where the next pass starts, if loaded

    def __len__(self) -> int:
        whole, rest = divmod(len(self.inputs), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        _refuse_several_processes()
        resume, self._resume = self._resume, None
        return self._pass(resume)

    def state_dict(self) -> dict[str, int]:
        """Which batch of which epoch comes next; Lightning saves it in checkpoints."""
        epoch, batch = self._next
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass start where that of the checkpoint stood."""
        self._next = self._resume = (state_dict["epoch"], state_dict["batch"])
        self.sampler.set_epoch(state_dict["epoch"])

    def _pass(self, resume: tuple[int, int] | None) -> Iterator[tuple[Tensor, Tensor]]:
        # This runs when the first batch is asked for: by then Lightning has set the epoch.
        epoch, first = self.sampler.epoch, 0
        if resume is not None and epoch <= resume[0]:  # else `limit_train_batches` ended that epoch
            epoch, first = resume
        self.sampler.set_epoch(epoch + 1)  # for passes that nobody counts
        order = self.sampler.draw(epoch).to(self.inputs.device) if self.sampler.shuffle else None
        for index in range(first, num_batches := len(self)):
            is_last = index + 1 == num_batches
            self._next = (epoch + 1, 0) if is_last else (epoch, index + 1)
            inputs, labels = self._batch(index, order)
            if self.augment is not None:
                key = ("augment", self.sampler.seed, epoch, index)
                inputs = self.augment(inputs, keyed(*key, device=inputs.device))
            yield inputs, labels

    def _batch(self, index: int, order: Tensor | None) -> tuple[Tensor, Tensor]:
        where = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if order is None:
            return self.inputs[where], self.labels[where]
        # Twice as fast as inputs[order[where]].
        chosen = order[where]
        return self.inputs.index_select(0, chosen), self.labels.index_select(0, chosen)


def keyed(*key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on the key alone.

    Args:
        key: Strings and integers.
        device: Where it draws.

    Examples:
        >>> torch.rand(1, generator=keyed("a", 1)) == torch.rand(1, generator=keyed("a", 1))
        tensor([True])
    """
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


def _check(inputs: Tensor, labels: Tensor, batch_size: int, drop_last: bool) -> None:
    if len(inputs) != len(labels):
        raise ValueError(
            f"`inputs` and `labels` must be equally many, got {len(inputs)} and {len(labels)}."
        )
    if inputs.device != labels.device:
        raise ValueError(
            "`inputs` and `labels` must be on the same device, "
            f"got {inputs.device} and {labels.device}. Move them: `labels.to(inputs.device)`."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    needed = batch_size if drop_last else 1
    if len(inputs) < needed:
        raise ValueError(f"There must be at least {needed} examples, got {len(inputs)}.")


def _refuse_several_processes() -> None:
    if distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size()
        if processes > 1:
            raise RuntimeError(
                f"TensorLoader is for one process, and there are {processes}: all would train on "
                "the same batches. Use `Trainer(devices=1)`, or a `torch.utils.data.DataLoader`, "
                "whose data Lightning spreads over the processes."
            )
