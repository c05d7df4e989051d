"""Whether a command line could be run: its program, files, options and extras exist."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from torch.distributed.run import get_args_parser

from lightning_lth import cli
from tests.docs.pages import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's own

_PARSER = cli._parser()
_PLACEHOLDERS = {"CONFIG": "digits"}  # what is written for a study in commands of no certain one


def check(line: str) -> None:
    """Fail unless every command of a line could be run.

    Raises:
        AssertionError: If a program, file, extra or option does not exist.
        SystemExit: If one of our own commands refuses its options.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    words = [_PLACEHOLDERS.get(word, word) for word in lexer]
    while words:
        end = next((i for i, word in enumerate(words) if word in ("&&", ";")), len(words))
        _check_command(words[:end])
        words = words[end + 1 :]


def _check_command(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    assert program in _PROGRAMS, f"tests/docs/commands.py does not know {program!r}"
    _PROGRAMS[program](arguments)


def _pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for what in [word for word in arguments[1:] if word != "-e"]:
        found = re.fullmatch(r"(?:\.|lightning-lth)(?:\[(?P<extras>[\w,]+)\])?", what)
        assert found, f"not ours: {what}"
        known = set(_pyproject()["project"]["optional-dependencies"])
        assert set(filter(None, (found["extras"] or "").split(","))) <= known, what


def _python(arguments: list[str]) -> None:
    first, *others = arguments
    if first == "-m":
        {"lightning_lth": _lightning_lth, "pytest": _pytest}[others[0]](others[1:])
        return
    script = ROOT / first
    assert script.is_file(), f"no script {first}"
    source = script.read_text(encoding="utf-8")
    for path in (word for word in others if word.endswith(".yaml")):
        assert (ROOT / path).is_file(), f"no config {path}"
    if "LightningCLI(" in source:
        return  # its options are Lightning's; tests/test_lightning_cli.py runs it
    for option in (word.split("=")[0] for word in others if word.startswith("-")):
        assert f'"{option}"' in source, f"{first} has no option {option}"


def _pytest(arguments: list[str]) -> None:
    markers = [
        one.split(":")[0] for one in _pyproject()["tool"]["pytest"]["ini_options"]["markers"]
    ]
    for option, value in itertools.pairwise(arguments):
        if option == "-m":
            assert set(re.findall(r"\w+", value)) - {"and", "or", "not"} <= set(markers), value


def _lightning_lth(arguments: list[str]) -> None:
    arguments = [one for one in arguments if one != "--print_config"]  # which ends the program
    if arguments == ["study", "run"]:  # as a sentence names it
        arguments.append("digits")
    _PARSER.parse_args(cli._with_named_config(arguments))


def _torchrun(arguments: list[str]) -> None:
    parsed = get_args_parser().parse_args(arguments)
    if parsed.module:
        assert parsed.training_script == "lightning_lth"
        _lightning_lth(parsed.training_script_args)
    else:
        _python([parsed.training_script, *parsed.training_script_args])


def _tensorboard(arguments: list[str]) -> None:
    assert arguments[0] == "--logdir", arguments
    assert len(arguments) == 2, arguments


def _ruff(arguments: list[str]) -> None:
    assert arguments[0] in ("check", "format"), arguments


def _nothing(arguments: list[str]) -> None:
    assert arguments == []


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


_PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "lightning-lth": _lightning_lth,
    "mypy": _nothing,
    "pip": _pip,
    "python": _python,
    "ruff": _ruff,
    "tensorboard": _tensorboard,
    "torchrun": _torchrun,
}
