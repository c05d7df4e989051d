"""``lightning-lth``: studies and tickets from the command line."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from lightning_lth.pruning.tickets import Ticket

_INSTALL = "The command line needs more packages: pip install 'lightning-lth[study]'."
_CONFIG_HELP = (
    """CONFIG is the path of a YAML file, or the name of a study that we ship: {names}."""
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What follows the program's name. Default: those of the process.

    Raises:
        SystemExit: With 1 and a message if something is wrong, with 2 if the options are.
    """
    try:
        parser = _parser()
    except ImportError as error:
        sys.exit(f"{_INSTALL} ({error.__cause__ or error})")
    parsed = parser.parse_args(_with_named_config(sys.argv[1:] if arguments is None else arguments))
    try:
        _COMMANDS[_path(parsed)](parsed)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="lightning-lth", description="Lottery tickets: studies, reports, and tickets as files."
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    study, ticket = ArgumentParser(), ArgumentParser()
    commands.add_subcommand("study", study, help="Run studies, and report on them.")
    commands.add_subcommand("ticket", ticket, help="Look at ticket files, and move them.")
    demo = _with_folder(ArgumentParser(description="Run the study 'digits' in two minutes."))
    commands.add_subcommand("demo", demo, help="A first study, in under two minutes.")
    _add_study_commands(study)
    _add_ticket_commands(ticket)
    return parser


def _add_study_commands(study: ArgumentParser) -> None:
    from jsonargparse import ArgumentParser

    from lightning_lth.study.settings import shipped_configs, study_parser

    studies = study.add_subcommands(required=True, metavar="COMMAND")
    run = _with_folder(study_parser())
    run.epilog = _CONFIG_HELP.format(names=", ".join(shipped_configs()))
    run.usage = "lightning-lth study run CONFIG [--dir DIR] [--jobs N] [options]"
    studies.add_subcommand("run", run, help="Run what a study lacks, then report.")
    report = ArgumentParser(description="Judge the claims, draw the figures, write the page.")
    report.add_argument("dir", type=str, help="Folder of the study.")
    studies.add_subcommand("report", report, help="Report on what a study has so far.")


def _add_ticket_commands(ticket: ArgumentParser) -> None:
    from jsonargparse import ArgumentParser

    tickets = ticket.add_subcommands(required=True, metavar="COMMAND")
    show = ArgumentParser(description="Print what a ticket file holds.")
    show.add_argument("file", type=str, help="A .safetensors file.")
    tickets.add_subcommand("show", show, help="Print what a ticket file holds.")
    tickets.add_subcommand("transfer", _transfer_parser(), help="Make a ticket for another model.")


def _with_folder(parser: ArgumentParser) -> ArgumentParser:
    from jsonargparse.typing import PositiveInt

    # Without a default they are not in a printed config, which is that of a study.
    parser.add_argument(
        "--dir",
        type=str,
        default=SUPPRESS,
        help="Folder to keep everything in; resumed if it exists.",
    )
    parser.add_argument(
        "--jobs",
        type=PositiveInt,
        default=SUPPRESS,
        help="Trainings at once. Default: as many as the cores have `threads` for.",
    )
    return parser


def _transfer_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Load a ticket into the model of a study as far as names and shapes fit, the "
        "rest as that model initializes it, and write the result as a ticket of that model."
    )
    parser.add_argument("file", type=str, help="The ticket.")
    parser.add_argument("study", type=str, help="Config whose model gets it: path or shipped name.")
    parser.add_argument("--out", type=str, required=True, help="File to write.")
    parser.add_argument("--seed", type=int, default=0, help="For what does not fit.")
    return parser


def _with_named_config(arguments: Sequence[str]) -> list[str]:
    """``study run CONFIG`` as ``study run --config PATH``, which jsonargparse understands."""
    from lightning_lth.study.reading import read_config
    from lightning_lth.study.settings import find_config

    given = list(arguments)
    if given[:2] != ["study", "run"] or len(given) < 3 or given[2].startswith("-"):
        return given
    try:
        path = find_config(given[2])
        read_config(path)  # jsonargparse would write out all aliases, however many
        return ["study", "run", "--config", str(path), *given[3:]]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _path(parsed: Namespace) -> str:
    first = str(parsed.subcommand)
    second = getattr(parsed[first], "subcommand", None)
    return first if second is None else f"{first} {second}"


def _run(parsed: Namespace) -> None:
    from lightning_lth.study.settings import parse_namespace

    chosen = parsed.study.run
    folder, jobs = chosen.pop("dir", None), chosen.pop("jobs", None)
    _run_and_report(parse_namespace(chosen), folder, jobs)


def _demo(parsed: Namespace) -> None:
    from lightning_lth.study import load_study

    folder, jobs = parsed.demo.get("dir", "results/demo"), parsed.demo.get("jobs")
    _run_and_report(load_study("digits"), folder, jobs)


def _run_and_report(study: Any, folder: str | None, jobs: int | None) -> None:
    from lightning_lth.study import processes, run_study

    folder = folder or _default_folder(study.name)
    if processes.launched() is None:
        jobs = jobs or max(1, (os.cpu_count() or 1) // study.threads)
    try:
        run_study(study, folder, num_jobs=jobs)
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        sys.exit(
            f"Interrupted. What was finished is kept in '{folder}'; go on by the same command."
        )
    if processes.is_writer():
        _report_on(folder)


def _default_folder(name: str) -> str:
    from lightning_lth.study.design import check_folder_name

    name = name.lower().replace(" ", "_")
    check_folder_name("Without `--dir`, the `name` of the study", name)
    return str(Path("results", name))


def _report(parsed: Namespace) -> None:
    _report_on(parsed.study.report.dir)


def _report_on(folder: str) -> None:
    from lightning_lth.study import conclude

    conclusion = conclude(folder)
    for judgment in conclusion.judgments:
        print(f"{judgment.claim.text}\n  {judgment.sentence}")
    print(f"Report: {conclusion.report}")


def _show(parsed: Namespace) -> None:
    from lightning_lth.pruning.tickets import Ticket

    print(_describe(Ticket.load(parsed.ticket.show.file)))


def _describe(ticket: Ticket) -> str:
    lines = [repr(ticket), f"seed         {ticket.seed}", f"fingerprint  {ticket.fingerprint}"]
    lines += [f"{name:<12} {value:.6g}" for name, value in sorted(ticket.metrics.items())]
    lines += [f"{name:<12} {value}" for name, value in ticket.versions.items()]
    remaining = ticket.masks.remaining()
    lines += [
        f"{density:>8.2%} left of {name}: {remaining[name]:,} of {ticket.masks[name].numel():,}"
        for name, density in ticket.masks.densities().items()
    ]
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """Names in a file may hold anything, such as codes that rewrite a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def _transfer(parsed: Namespace) -> None:
    from lightning_lth.study import load_study, transfer

    chosen = parsed.ticket.transfer
    ticket, report = transfer(chosen.file, load_study(chosen.study), seed=chosen.seed)
    print(report)
    print(f"{ticket}\nWritten: {ticket.save(chosen.out)}")


_COMMANDS = {
    "study run": _run,
    "study report": _report,
    "ticket show": _show,
    "ticket transfer": _transfer,
    "demo": _demo,
}
