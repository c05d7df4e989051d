"""Configs: parsed, merged, and made into objects; whatever is wrong is said before any training."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    Namespace,
)
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_lth.study import arms, stability  # noqa: F401  # for short names in configs
from lightning_lth.study.arm import Arm
from lightning_lth.study.claims import Claim
from lightning_lth.study.design import Ladder, Measures, Settings, Study
from lightning_lth.study.reading import read_config

_CONFIGS = Path(__file__).parent / "configs"
_OURS = {
    "logger",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "barebones",
    "fast_dev_run",
}
_CHANGEABLE = ("model", "data", "trainer")


def study_parser(*, exit_on_error: bool = True) -> ArgumentParser:
    """The parser of study configs; each key is an option of the command line, too."""
    parser = ArgumentParser(
        exit_on_error=exit_on_error,
        description="Run a study: several seeds and arms of one protocol, with records and report.",
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="Path of a YAML file with these options."
    )
    parser.add_argument("--name", type=str, default="study", help="For headlines and files.")
    parser.add_argument(
        "--seeds", type=list[int], required=True, help="One trial for each; arms pair by them."
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each trial; part of the protocol."
    )
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip=_OURS)
    parser.add_class_arguments(Ladder, "pruning")
    parser.add_class_arguments(Measures, "measures")
    parser.add_argument(
        "--arms", type=dict[str, Arm], required=True, help="Ways to come by sparse networks."
    )
    parser.add_argument("--claims", type=list[Claim], default=[], help="What is to be decided.")
    parser.set_defaults({"trainer.num_sanity_val_steps": 0})
    return parser


@functools.cache
def _parser_that_raises() -> ArgumentParser:
    return study_parser(exit_on_error=False)


def load_study(config: str | os.PathLike[str] | Mapping[str, Any], **changes: Any) -> Study:
    """Read a study from a YAML file, the name of a shipped config, or a dictionary.

    Args:
        config: Path, name such as ``"digits"``, or the content of such a file.
        changes: Top-level keys that replace those of the config, such as ``seeds=[0]``.

    Raises:
        FileNotFoundError: If there is no such file, and no shipped config of that name.
        ValueError: If the config is not valid; says which key.

    Examples:
        >>> study = load_study("digits", seeds=[0, 1])
        >>> study.name, study.seeds, list(study.arms)[:2]
        ('LeNet-300-100 on digits', [0, 1], ['winning_ticket', 'random_reinit'])
    """
    if isinstance(config, Mapping):
        return parse_study({**config, **changes})
    path = find_config(config)
    return parse_study({**read_config(path), **changes}, source=path)


def shipped_configs() -> list[str]:
    """The names of the configs that come with the library."""
    return sorted(file.stem for file in _CONFIGS.glob("*.yaml"))


def find_config(config: str | os.PathLike[str]) -> Path:
    """The path of a config: the file of that name, or the one that we ship.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path, shipped = Path(config), _CONFIGS / f"{config}.yaml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    names = shipped_configs()
    close = get_close_matches(str(config), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(f"No config file {str(config)!r}.{hint} Shipped: {', '.join(names)}.")


def parse_study(config: Mapping[str, Any], *, source: Path | None = None) -> Study:
    """A study from the content of a config, or from one that was resolved before.

    Args:
        config: The content.
        source: The file that it is from, for the error.

    Raises:
        ValueError: If it is not valid; says which key.
    """
    parser = _parser_that_raises()
    try:
        if "config" in config:
            raise ValueError("A config cannot name another `config`. Copy its keys here.")
        parsed = parser.parse_object(copy.deepcopy(dict(config)))
        settings = yaml.safe_load(parser.dump(parsed, skip_unset=False))
        _check_plain(settings)
        return Study(
            name=settings["name"],
            seeds=settings["seeds"],
            threads=settings["threads"],
            settings=settings,
            pruning=build(Ladder, settings["pruning"]),
            measures=build(Measures, settings["measures"]),
            arms=build(dict[str, Arm], settings["arms"]),
            claims=build(list[Claim], settings["claims"] or []),
        )
    except (ArgumentError, RecursionError, TypeError, ValueError) as error:
        where = "" if source is None else f" '{source}'"
        raise ValueError(f"The config{where} is not valid. {error}") from error


def parse_namespace(parsed: Namespace) -> Study:
    """A study from the options of the command line."""
    return parse_study(yaml.safe_load(_parser_that_raises().dump(parsed, skip_unset=False)))


def build(kind: Any, settings: Any) -> Any:
    """An object of a type from its plain form, e.g. ``{"class_path": ..., "init_args": ...}``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--object", type=kind)
    return parser.instantiate(parser.parse_object({"object": copy.deepcopy(settings)})).object


def trainer_arguments(settings: Settings) -> dict[str, Any]:
    """The arguments of the Trainer from their plain form; callbacks are made."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip=_OURS)
    parsed = parser.parse_object({"trainer": copy.deepcopy(settings)})
    arguments: dict[str, Any] = dict(parser.instantiate(parsed).trainer.as_dict())
    callbacks = arguments["callbacks"] or []
    arguments["callbacks"] = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    return arguments


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings of an arm: its changes of model, data and trainer merged into the study's.

    Another ``class_path`` replaces the arguments of the first as well.

    Raises:
        ValueError: If ``changes`` has other keys.

    Examples:
        >>> settings = {"model": {"class_path": "my.Net", "init_args": {"width": 3}}, "data": None}
        >>> with_changes(settings, {"model": {"init_args": {"dropout": 0.5}}})["model"]
        {'class_path': 'my.Net', 'init_args': {'width': 3, 'dropout': 0.5}}
    """
    unknown = sorted(changes.keys() - set(_CHANGEABLE))
    if unknown:
        raise ValueError(f"`changes` may have the keys {', '.join(_CHANGEABLE)}, got {unknown}.")
    merged: Settings = _merged(settings, changes)
    return merged


def _check_plain(settings: Settings) -> None:
    """Refuse what no hash can be taken of, such as bytes."""
    try:
        json.dumps(settings, sort_keys=True, ensure_ascii=False).encode()
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            "It must be made of lists, texts, numbers and keys that are texts: "
            f"{error}. Put others in quotes."
        ) from error


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return copy.deepcopy(changes)
    if "class_path" in changes and changes["class_path"] != base.get("class_path"):
        return copy.deepcopy(dict(changes))
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        merged[key] = _merged(merged.get(key), value)
    return merged
