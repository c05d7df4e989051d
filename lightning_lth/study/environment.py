"""Where and when a study ran: versions, machine, state of the working tree."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("lightning-lth", "torch", "lightning", "numpy", "pandas", "scipy")


def describe_session() -> dict[str, str]:
    """What must be known to repeat a study, as text by name.

    Examples:
        >>> sorted(describe_session())[:4]
        ['command', 'cpu', 'cpu_threads', 'git_commit']
    """
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpu_threads": str(torch.get_num_threads()),
        "gpus": _gpus(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_is_clean": _is_clean(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """Which kind: sums of floats come out otherwise on another, even if its name is the same."""
    return f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if len(facts) < 3:  # not Linux, or not x86
        return platform.processor() or platform.machine()
    return "{model name} (family {cpu family}, model {model})".format_map(facts)


def _gpus() -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"


def _is_clean() -> str:
    changes = _git("status", "--porcelain")
    return changes if changes == "unknown" else str(not changes)


def _git(*arguments: str) -> str:
    """What git says in the present folder; ``unknown`` outside a repository or without git."""
    try:
        answer = subprocess.run(
            ["git", *arguments], capture_output=True, check=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
