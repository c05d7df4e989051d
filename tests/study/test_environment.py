"""What a session notes about the place where it runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from lightning_lth.study.environment import describe_session

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPUINFO.is_file() or "model name" not in CPUINFO.read_text(),
    reason="/proc/cpuinfo does not say here what the processor is called",
)
def test_the_kind_of_processor_is_named() -> None:
    """Two kinds with one name, such as "AMD EPYC" of a virtual machine, differ in their numbers."""
    text = CPUINFO.read_text()
    name, family, model = (
        re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE)[1]  # type: ignore[index]
        for key in ("model name", "cpu family", "model")
    )
    capability = torch.backends.cpu.get_cpu_capability()
    expected = f"{name} (family {family}, model {model}), {capability}"
    assert describe_session()["cpu"] == expected


def test_the_commit_is_that_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert describe_session()["git_commit"] == "unknown"
    own = ("user.name=A", "user.email=a@example.org", "commit.gpgsign=false")
    settings = [part for setting in own for part in ("-c", setting)]
    for command in (("init", "-q"), (*settings, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    session = describe_session()
    assert session["git_commit"] == head.stdout.strip()
    assert session["git_is_clean"] == "True"
    (tmp_path / "changed").touch()
    assert describe_session()["git_is_clean"] == "False"
