"""Both packages of Lightning: a project imports one, or the other, or both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed  # it starts a process of its own


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``either_lightning.py`` saw."""
    script = Path(__file__).with_name("either_lightning.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("either"))],
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_project_gets_the_lightning_that_it_imports_and_no_other(seen: dict[str, Any]) -> None:
    assert seen["at_import"] == []
    assert seen["when_alone"] == ["lightning_fabric", "pytorch_lightning"]


def test_a_trainer_of_either_gives_the_same(seen: dict[str, Any]) -> None:
    """Also when both are imported."""
    alone = seen["alone"]
    # 6*16 + 16*3 = 144 weights; 144 - 29 = 115, 115 - 23 = 92.
    assert alone["densities"] == [1.0, 115 / 144, 92 / 144]
    assert alone["is_found"]
    assert alone["is_callback"]
    assert alone["validations"] == [3, 2, 3]  # the second round was stopped
    assert alone["steps"] == [24, 16, 24]
    assert len([name for name in alone["files"] if name.startswith("round_")]) == 3
    assert seen["other"] == alone
    assert seen["beside"] == alone


def test_a_trainer_finds_a_callback_that_was_made_before_its_package_was_imported(
    seen: dict[str, Any],
) -> None:
    assert seen["is_earlier_found"]
