"""Batches without end, and the loader as it was."""

from __future__ import annotations

import functools
import logging
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    StackDataset,
    Subset,
)

from lightning_lth.learning_rate.batches import (
    check_rewindable,
    endless,
    fresh,
    generators_in,
    stateful_in,
)
from lightning_lth.snapshot import undone


class Stream(IterableDataset[int]):
    """Goes on from where it was, as a connection does; or can be told where."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.position += 1
        return self.position


class Rewindable(Stream):
    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


class Augmented:
    """Two items with noise from generators of its own."""

    def __init__(self) -> None:
        self.of_numpy = np.random.default_rng(0)
        self.of_old_numpy = np.random.RandomState(0)
        self.of_python = random.Random(0)
        self.of_torch = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> float:
        noise = self.of_numpy.random() + self.of_old_numpy.rand() + self.of_python.random()
        return index + noise + torch.rand((), generator=self.of_torch).item()


def test_starts_again_when_exhausted() -> None:
    batches = endless([1, 2, 3])
    assert [next(batches) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_every_pass_is_shuffled_anew() -> None:
    loader = DataLoader(range(100), batch_size=100, shuffle=True)  # type: ignore[arg-type]
    batches = endless(loader)
    assert next(batches).tolist() != next(batches).tolist()


def test_a_loader_without_batches() -> None:
    with pytest.raises(ValueError, match="`loader` gave no batch"):
        next(endless([]))
    with pytest.raises(ValueError, match="`loader` gave no batch"):
        next(endless(DataLoader(range(3), batch_size=4, drop_last=True)))  # type: ignore[arg-type]


def test_a_loader_that_starts_only_once() -> None:
    hidden = iter([1, 2])

    class Once:
        def __iter__(self) -> Iterator[int]:
            yield from hidden

    batches = endless(Once())
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(ValueError, match="gave 2 batches, and none when it was iterated again"):
        next(batches)


@pytest.mark.parametrize("loader", [[1], (1,), range(2), DataLoader([1]), DataLoader(Rewindable())])
def test_what_can_be_read_again(loader: object) -> None:
    check_rewindable(loader)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (iter([1]), "`loader` is an iterator"),
        (iter(DataLoader([1])), "`loader` is an iterator"),
        ((i for i in range(2)), "`loader` is an iterator: what the test reads would be missing"),
        (DataLoader(Stream()), "The Stream of `loader` is an iterator"),
        (DataLoader(ChainDataset([Stream()])), "The Stream of `loader` is an iterator"),
        (DataLoader([1, 2], sampler=iter([0, 1])), "The list_iterator of `loader` is an iterator"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_read_again(loader: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rewindable(loader)


@pytest.mark.parametrize("loader", [None, 3, nn.Linear(1, 1)])
def test_what_cannot_be_read(loader: object) -> None:
    with pytest.raises(TypeError, match="`loader` must be an iterable of batches, such as a Data"):
        check_rewindable(loader)


def test_generators_of_loader_and_samplers() -> None:
    one, two = torch.Generator(), torch.Generator()
    items = [0, 1]
    assert generators_in(DataLoader(items, shuffle=True, generator=one)) == [one]
    sampler = RandomSampler(items, generator=two)
    assert generators_in(DataLoader(items, sampler=sampler, generator=one)) == [one, two]
    batch_sampler = BatchSampler(sampler, 1, drop_last=False)
    assert generators_in(DataLoader(items, batch_sampler=batch_sampler)) == [two]
    assert generators_in([1, 2]) == []


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: Subset(data, [0, 1]),
        lambda data: ConcatDataset([data, data]),
        lambda data: StackDataset(data),
        lambda data: StackDataset(one=data),
    ],
)
def test_a_loader_gives_the_same_batches_again(wrap: Any, shuffle: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(wrap(Augmented()), shuffle=shuffle, generator=generator)
    batches, extra = endless(fresh(loader)), stateful_in(loader)
    with undone(nn.Linear(1, 1), generators=generators_in(loader), extra=extra):
        inside = [next(batches) for _ in range(5)]
    batches = endless(loader)
    assert [next(batches) for _ in range(5)] == inside


def test_a_stream_with_a_state_is_rewound() -> None:
    loader = DataLoader(Rewindable(), batch_size=3)
    with undone(nn.Linear(1, 1), extra=stateful_in(loader)):
        assert next(endless(loader)).tolist() == [1, 2, 3]
    assert next(iter(loader)).tolist() == [1, 2, 3]


def test_workers_that_would_be_kept_are_not_started() -> None:
    loader = DataLoader([1, 2, 3], num_workers=1, persistent_workers=True)
    batches = endless(fresh(loader))
    assert [next(batches).item() for _ in range(4)] == [1, 2, 3, 1]
    batches.close()
    assert loader._iterator is None


def test_workers_that_are_kept_are_not_disturbed() -> None:
    loader = DataLoader([1, 2, 3, 4], num_workers=1, persistent_workers=True)
    training = iter(loader)
    assert next(training).item() == 1
    batches = endless(fresh(loader))
    assert [next(batches).item() for _ in range(2)] == [1, 2]
    batches.close()
    assert [batch.item() for batch in training] == [2, 3, 4]


def test_other_loaders_are_used_as_they_are() -> None:
    loader = [1, 2]
    assert fresh(loader) is loader


class Counting:
    """Order and content depend on how often it has been read, in every way that people write."""

    def __init__(self) -> None:
        self.epoch = 0
        self.order = list(range(8))
        self.indices = np.arange(8)
        self.seen: dict[int, int] = {}
        self.transforms = [functools.partial(self.scale, rng=random.Random(0))]

    def scale(self, item: float, rng: random.Random) -> float:
        return item * rng.random()

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        random.Random(self.epoch).shuffle(self.order)
        np.random.default_rng(self.epoch).shuffle(self.indices)
        return iter([self.order[index] for index in self.indices])

    def __getitem__(self, index: int) -> float:
        self.seen[index] = self.seen.get(index, 0) + 1
        self.late = getattr(self, "late", 0) + 1
        return self.transforms[0](index + self.seen[index] + self.late)


def test_counters_orders_and_transforms_are_as_before() -> None:
    loader = DataLoader(Counting(), batch_size=4, sampler=Counting())  # type: ignore[arg-type]
    batches = endless(fresh(loader))
    with undone(nn.Linear(1, 1), extra=stateful_in(loader)):
        inside = [next(batches).tolist() for _ in range(6)]
    batches = endless(loader)
    assert [next(batches).tolist() for _ in range(6)] == inside


def test_what_is_not_of_the_data_stays() -> None:
    """A logger leads to all others, and those of modules that are imported late are new."""

    class Logged:
        def __init__(self) -> None:
            self.logger = logging.getLogger("tests.logged")
            self.lock = threading.Semaphore(2)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            self.lock.acquire()
            late.append(logging.getLogger("tests.late"))
            return index

    late: list[logging.Logger] = []
    loader = DataLoader(dataset := Logged(), batch_size=2)  # type: ignore[arg-type]
    with undone(nn.Linear(1, 1), extra=stateful_in(loader)):
        next(iter(loader))
    assert logging.getLogger("tests.late") is late[0]
    assert not dataset.lock.acquire(blocking=False)
