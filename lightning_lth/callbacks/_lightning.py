"""The Lightning of the user's project: ``lightning.pytorch`` or ``pytorch_lightning``.

They are the same code twice, each with classes of its own, and a Trainer asks whether a callback is
one of *its* kind. So ours follow: Lightning is not imported before the first callback is made, when
the project has imported its own; a callback is then of every kind that has been imported.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

_NAMES = ("lightning.pytorch", "pytorch_lightning")

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EarlyStopping

    class LightningEarlyStopping(EarlyStopping):
        """What takes the place of Lightning's callback."""
else:

    class _Follower:
        """Looks for Lightning whenever an instance of a subclass is made."""

        def __new__(cls, *args, **kwargs):
            follow()
            return object.__new__(cls)

    class Callback(_Follower):
        """The base of our callbacks; its own bases are Lightning's."""

    class LightningEarlyStopping(_Follower):
        """What takes the place of Lightning's callback; the same."""


def follow() -> None:
    """Make our callbacks those of every Lightning that is imported by now."""
    if not _imported():
        importlib.import_module(_NAMES[0])
    _bind(_imported())


def lightning_of(trainer: Trainer) -> Any:
    """The package that the Trainer comes from; its classes are those to compare with."""
    modules = [kind.__module__ for kind in type(trainer).__mro__]
    name = next(name for module in modules for name in _NAMES if module.startswith(f"{name}."))
    return sys.modules[name]


def imported_lightning() -> Any:
    """The package that is imported; if it is both, the first of ``_NAMES``."""
    return _imported()[0]


def callback_bases() -> list[type]:
    """Lightning's class of callbacks that do nothing, of each that is imported."""
    return [package.Callback for package in _imported()]


def _imported() -> list[Any]:
    # While a package is still being imported it has no classes yet.
    packages = [sys.modules[name] for name in _NAMES if name in sys.modules]
    return [package for package in packages if hasattr(package, "Trainer")]


def _bind(packages: list[Any]) -> None:
    stoppers = [package.callbacks.EarlyStopping for package in packages]
    for ours, theirs in ((Callback, callback_bases()), (LightningEarlyStopping, stoppers)):
        if ours.__bases__[:-1] != tuple(theirs):
            ours.__bases__ = (*theirs, ours.__bases__[-1])


if _imported():
    follow()
