"""The example with a model of transformers, which is in the extra `zoo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_lth import Ticket
from tests.test_examples import run_example

pytestmark = [pytest.mark.examples, pytest.mark.zoo]


def test_a_model_is_fine_tuned_from_its_pretrained_weights(tmp_path: Path) -> None:
    printed = run_example(
        tmp_path, "hugging_face", PRETRAINING_EPOCHS=1, MAX_EPOCHS=1, ROUNDS=2, BATCH_SIZE=500
    )
    results = tmp_path / "results" / "hugging_face"
    assert (results / "model" / "config.json").is_file()
    ticket = Ticket.load(results / "ticket.safetensors")
    remaining = ticket.masks.remaining()
    assert remaining["model.classifier.weight"] == 32 * 10
    # The others: patches 4*32; 2 layers of 4*32*32 for attention and 2*32*64.
    pruned = 4 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert sum(remaining.values()) - 320 == pytest.approx(0.49 * pruned, abs=1)
    assert "round 2" in printed
