"""What each arm trains: its masks and its starting weights, against the winning ticket's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_lth import Masks, Ticket
from lightning_lth.pruning import at_initialization
from lightning_lth.pruning.scoring import magnitude
from lightning_lth.pruning.selection import keep, prune
from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study import Part, Trial, load_study, run_study
from lightning_lth.study.jobs import Job
from lightning_lth.study.surroundings import seeds
from tests.study import tiny

pytestmark = pytest.mark.slow
ARMS = {
    "winning_ticket": tiny.iterative(),
    "reinit": tiny.control(weights="reinitialized", rounds=[2], draws=2),
    "reinit_shuffled": tiny.control(weights="reinitialized", masks="shuffled", rounds=[2]),
    "random_mask": tiny.control(masks="random", rounds=[2], draws=2),
    "same_signs": tiny.control(weights="same_signs", rounds=[2]),
    "constants": tiny.control(weights="signed_constant", rounds=[2]),
    "one_shot": {"class_path": "OneShot", "init_args": {"of": "winning_ticket", "rounds": [2]}},
    "units": {
        "class_path": "OneShot",
        "init_args": {"of": "winning_ticket", "rounds": [1], "units": True},
    },
    "noisy_ticket": tiny.iterative(
        changes={"data": {"init_args": {"noise": 0.5}}, "model": {"init_args": {"classes": 5}}}
    ),
    "transferred": tiny.control(of="noisy_ticket", rounds=[2]),
    "to_five_classes": tiny.control(rounds=[2], changes={"model": {"init_args": {"classes": 5}}}),
    "anew": tiny.control(weights="reinitialized", rounds=[0, 1]),
    "one_shot_anew": {"class_path": "OneShot", "init_args": {"of": "anew", "rounds": [1]}},
    "longer": tiny.iterative(rounds=3),
    "longer_again": tiny.control(of="longer", rounds=[3]),
    "stability": {
        "class_path": "Stability",
        "init_args": {"of": "winning_ticket", "rounds": [2], "points": 5},
    },
    **{
        method: {
            "class_path": "AtInitialization",
            "init_args": {"method": method, "rounds": [2]},
        }
        for method in ("snip", "grasp", "synflow", "magnitude", "random")
    },
    "magnitude_by_layer": {
        "class_path": "AtInitialization",
        "init_args": {"method": "magnitude", "scope": "layer", "rounds": [2]},
    },
    "late": tiny.iterative(rewind_step=4, rounds=1),
    "late_again": tiny.control(of="late", rounds=[1]),
    "late_shuffled": tiny.control(of="late", masks="shuffled", rounds=[1]),
    "late_one_shot": {"class_path": "OneShot", "init_args": {"of": "late", "rounds": [1]}},
    "late_to_five_classes": tiny.control(
        of="late", rounds=[1], changes={"model": {"init_args": {"classes": 5}}}
    ),
    "fine_tuned": tiny.iterative(rewind="none", rounds=1),
    "rate_rewound": tiny.iterative(rewind="learning_rate", rounds=1),
    "movement": tiny.iterative(criterion="lightning_lth.pruning.criteria.movement", rounds=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms")
    run_study(load_study(tiny.config(seeds=[0], arms=ARMS)), folder)
    return folder


@pytest.fixture(scope="module")
def rounds(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "rounds.parquet").set_index(["arm", "draw", "round"])


def ticket(folder: Path, arm: str, round: int = 2, draw: int = 0) -> Ticket:
    base = folder / "trials" / arm / "seed_0"
    part = base / f"round_{round:02d}_draw_{draw}"
    return Ticket.load(
        (part if part.exists() else base) / "tickets" / f"round_{round:02d}.safetensors"
    )


def is_same(first: Ticket, second: Ticket) -> bool:
    return all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_reinitialization_keeps_the_masks_and_draws_weights_anew(folder: Path) -> None:
    winner, first, second = (
        ticket(folder, "winning_ticket"),
        ticket(folder, "reinit"),
        ticket(folder, "reinit", draw=1),
    )
    assert first.masks == second.masks == winner.masks
    weights = [t.weights["hidden.weight"] for t in (winner, first, second)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not (weights[one] == weights[other]).any()
    # torch's Linear draws from U(-1/sqrt(6), 1/sqrt(6)).
    assert weights[1].abs().max() <= 6**-0.5
    assert weights[1].abs().max() > 0.9 * 6**-0.5


def test_shuffling_keeps_layer_densities_and_random_masks_the_density(folder: Path) -> None:
    winner = ticket(folder, "winning_ticket").masks
    shuffled = ticket(folder, "reinit_shuffled").masks
    assert shuffled.remaining() == winner.remaining() == {"hidden.weight": 24, "output.weight": 12}
    assert shuffled != winner
    spread = ticket(folder, "random_mask")
    assert spread.masks.num_remaining == 36
    assert spread.masks.remaining() != winner.remaining()
    assert is_same(spread, ticket(folder, "winning_ticket"))


def test_signs_are_kept(folder: Path) -> None:
    winner, signed = ticket(folder, "winning_ticket"), ticket(folder, "same_signs")
    constant = ticket(folder, "constants")
    for name in ("hidden.weight", "output.weight"):
        start = winner.weights[name]
        assert torch.equal(signed.weights[name].sign(), start.sign())
        assert not torch.equal(signed.weights[name], start)
        assert torch.equal(constant.weights[name].sign(), start.sign())
        assert constant.weights[name].abs().unique().numel() == 1


def test_one_shot_prunes_the_dense_network_once(folder: Path) -> None:
    base = folder / "trials" / "winning_ticket" / "seed_0"
    trained = BestWeights.load(base / "trained" / "round_00.safetensors").tensors
    weights = {name: trained[name] for name in ("hidden.weight", "output.weight")}
    expected = prune(magnitude(weights), Masks.dense(weights), fraction=0.75, scope="layer")
    one_shot = ticket(folder, "one_shot")
    assert one_shot.masks == expected
    assert is_same(one_shot, ticket(folder, "winning_ticket"))


def test_one_shot_of_an_arm_with_a_job_for_each_round(folder: Path) -> None:
    base = folder / "trials" / "anew" / "seed_0" / "round_00_draw_0"
    trained = BestWeights.load(base / "trained" / "round_00.safetensors").tensors
    weights = {name: trained[name] for name in ("hidden.weight", "output.weight")}
    expected = prune(magnitude(weights), Masks.dense(weights), fraction=0.5, scope="layer")
    assert ticket(folder, "one_shot_anew", round=1).masks == expected


def test_an_arm_may_prune_more_often_than_the_study(folder: Path) -> None:
    longer, again = (ticket(folder, arm, round=3) for arm in ("longer", "longer_again"))
    assert longer.masks.remaining() == {"hidden.weight": 12, "output.weight": 6}
    assert again.masks == longer.masks


def test_tickets_have_metrics_of_their_own_training_or_none(folder: Path) -> None:
    assert ticket(folder, "winning_ticket").metrics
    assert ticket(folder, "reinit").metrics == ticket(folder, "one_shot").metrics == {}


def test_units_fall_as_a_whole(folder: Path) -> None:
    """Half of the 16 hidden units; of the 3 output units 1.5, rounded up."""
    masks = ticket(folder, "units", round=1).masks
    kept = masks["hidden.weight"].sum(1)
    assert sorted(kept.tolist()) == [0] * 8 + [6] * 8
    assert sorted(masks["output.weight"].sum(1).tolist()) == [0, 0, 16]


def test_pruning_at_initialization_comes_to_the_density_of_the_round(folder: Path) -> None:
    start = ticket(folder, "winning_ticket", round=0)
    for method in ("snip", "grasp", "synflow", "magnitude", "random"):
        pruned = ticket(folder, method)
        assert pruned.masks.num_remaining == 36, method
        assert is_same(pruned, start)
    weights = {name: start.weights[name] for name in start.masks}
    by_magnitude = prune(magnitude(weights), Masks.dense(weights), fraction=0.75)
    assert ticket(folder, "magnitude").masks == by_magnitude
    by_layer = ticket(folder, "magnitude_by_layer").masks
    assert by_layer == prune(magnitude(weights), Masks.dense(weights), fraction=0.75, scope="layer")


def test_pruning_by_layer_does_so_in_a_study_with_global_pruning(tmp_path: Path) -> None:
    by_layer = {"method": "magnitude", "scope": "layer"}
    config = tiny.config(
        seeds=[0],
        pruning={"rounds": 1, "fraction": 0.5, "scope": "global"},
        arms={"by_layer": {"class_path": "AtInitialization", "init_args": by_layer}},
    )
    run_study(load_study(config), tmp_path)
    masks = ticket(tmp_path, "by_layer", round=1).masks
    assert masks.remaining() == {"hidden.weight": 48, "output.weight": 24}


def test_only_the_arm_that_a_ticket_moves_to_may_have_another_model(folder: Path) -> None:
    source, moved = ticket(folder, "winning_ticket"), ticket(folder, "to_five_classes")
    assert dict(moved.masks).keys() == {"hidden.weight"}
    assert torch.equal(moved.masks["hidden.weight"], source.masks["hidden.weight"])
    assert moved.weights["output.weight"].shape == (5, 16)


def test_a_ticket_moves_to_another_task(folder: Path) -> None:
    """Another output layer: it is left dense and as this model draws it."""
    source, moved = ticket(folder, "noisy_ticket"), ticket(folder, "transferred")
    assert moved.masks.remaining() == {"hidden.weight": 24}
    assert torch.equal(moved.masks["hidden.weight"], source.masks["hidden.weight"])
    kept = source.masks["hidden.weight"]
    assert torch.equal(moved.weights["hidden.weight"][kept], source.weights["hidden.weight"][kept])
    assert moved.weights["output.weight"].shape == (3, 16)


def test_what_starts_from_a_late_ticket_has_its_weights(folder: Path) -> None:
    """Those of step 4; at step 0 the model's own would be the same."""
    late, initial = ticket(folder, "late", round=1), ticket(folder, "winning_ticket", round=0)
    assert not any(torch.equal(late.weights[name], initial.weights[name]) for name in late.weights)
    again, shuffled, one_shot, moved = (
        ticket(folder, f"late_{arm}", round=1)
        for arm in ("again", "shuffled", "one_shot", "to_five_classes")
    )
    assert again.masks == one_shot.masks == late.masks != shuffled.masks
    assert all(is_same(one, late) for one in (again, shuffled, one_shot))
    for name in ("hidden.weight", "hidden.bias"):
        assert torch.equal(moved.weights[name], late.weights[name])


def _trial(folder: Path, job: Job, **arms: object) -> Trial:
    return Trial(load_study(tiny.config(seeds=[0], arms={**ARMS, **arms})), job, folder)


def test_draws_and_rounds_have_random_numbers_of_their_own(folder: Path) -> None:
    assert ticket(folder, "random_mask").masks != ticket(folder, "random_mask", draw=1).masks
    first, second = ticket(folder, "anew", round=0), ticket(folder, "anew", round=1)
    assert not torch.equal(first.weights["hidden.bias"], second.weights["hidden.bias"])


def test_what_is_trained_is_the_ticket(folder: Path, rounds: pd.DataFrame) -> None:
    values = rounds["early_stop_value"]
    assert values["reinit", 0, 2] != values["reinit", 1, 2]  # the same masks, other weights
    with seeds():
        trial = _trial(folder.parent / "alone", Job("reinit", 0, Part(2)))
        start = ticket(folder, "reinit")
        end = trial.train(start)
    for name, mask in start.masks.items():
        assert not end[name][~mask].any()
        assert end[name][mask].all()


def test_scores_are_those_of_the_first_batch(folder: Path) -> None:
    start = ticket(folder, "winning_ticket", round=0)
    trial = _trial(folder, Job("snip", 0, Part(2)))
    batches = trial.batches(1)
    torch.rand(7)  # the random state of the caller does not matter
    assert all(map(torch.equal, batches[0], trial.batches(1)[0]))
    for name, score in (("snip", at_initialization.snip), ("grasp", at_initialization.grasp)):
        start.apply_(net := tiny.Net())
        scores = score(net, batches, cross_entropy)
        assert ticket(folder, name).masks == keep(scores, start.masks, num_remaining=36)


def test_the_dense_training_is_found_through_other_arms(folder: Path) -> None:
    of = {name: ARMS["stability"] | {"init_args": {"of": name}} for name in ("reinit", "snip")}
    through = _trial(folder, Job("through", 0, Part(2)), through=of["reinit"])
    found = through.dense_trained()
    path = folder / "trials" / "winning_ticket" / "seed_0" / "trained" / "round_00.safetensors"
    assert found is not None
    assert torch.equal(found["hidden.weight"], BestWeights.load(path).tensors["hidden.weight"])
    assert _trial(folder, Job("none", 0, Part(2)), none=of["snip"]).dense_trained() is None


def _distance_to_dense(folder: Path) -> float:
    """From the end of the ticket trained alone, in the order of the dense network, to its end."""
    base = folder / "trials" / "winning_ticket" / "seed_0"
    dense = BestWeights.load(base / "trained" / "round_00.safetensors").tensors
    start = ticket(folder, "winning_ticket")
    with seeds():
        trial = _trial(folder.parent / "alone", Job("reinit", 0, Part(2)))
        alone = trial.train(start)
    squares = [
        ((dense[name] - alone[name])[mask] ** 2).sum().item() for name, mask in start.masks.items()
    ]
    return float(sum(squares)) ** 0.5


def test_stability_compares_two_orders(folder: Path, rounds: pd.DataFrame) -> None:
    pairs = pd.read_parquet(folder / "stability.parquet")
    assert len(pairs) == 1
    row = pairs.iloc[0]
    assert row["density"] == 0.25
    assert row["l2_distance"] > 0
    assert 0 < row["angle_degrees"] < 90
    assert row["pruning_l2_distance"] == pytest.approx(_distance_to_dense(folder))
    ends = [1 - rounds.loc[("stability", draw, 2), "end_test_accuracy"] for draw in (0, 1)]
    assert [row["error_a"], row["error_b"]] == pytest.approx(ends)
    assert row["barrier"] == pytest.approx(row["max_error"] - sum(ends) / 2)
    assert row["max_error"] >= max(ends) - 1e-9


def test_stability_needs_data_orders_that_differ(tmp_path: Path) -> None:
    arms = {"winning_ticket": tiny.iterative(), "stability": ARMS["stability"]}
    data = {"class_path": "tests.study.tiny.InStep"}
    pruning = {"rounds": 2, "fraction": 0.5}
    study = load_study(tiny.config(seeds=[0], data=data, arms=arms, pruning=pruning))
    with pytest.raises(RuntimeError, match=r"Two data orders led to equal .* Shuffle the training"):
        run_study(study, tmp_path)


def test_rewinding_arms_differ_in_where_they_go_back_to(folder: Path, rounds: pd.DataFrame) -> None:
    dense = ticket(folder, "winning_ticket", round=0)
    late = ticket(folder, "late", round=1)
    assert (late.step, dense.step) == (4, 0)
    assert not torch.equal(late.weights["hidden.bias"], dense.weights["hidden.bias"])
    assert rounds.loc[("late", 0, 1), "steps"] == 12
    values = [
        rounds.loc[(arm, 0, 1), "early_stop_value"]
        for arm in ("winning_ticket", "late", "fine_tuned", "rate_rewound")
    ]
    assert len(set(values[:3])) == 3
    assert values[2] == values[3]  # a constant rate, so there is nothing to rewind
    dense_rows = [rounds.loc[(arm, 0, 0), "early_stop_value"] for arm in ("late", "fine_tuned")]
    assert (
        dense_rows[0] == dense_rows[1] == rounds.loc[("winning_ticket", 0, 0), "early_stop_value"]
    )


def test_the_criterion_of_an_arm_decides(folder: Path) -> None:
    base = folder / "trials" / "movement" / "seed_0"
    trained = BestWeights.load(base / "trained" / "round_00.safetensors").tensors
    start = ticket(folder, "movement", round=0).weights
    moved = {
        name: (trained[name] - start[name]).abs() for name in ("hidden.weight", "output.weight")
    }
    expected = prune(magnitude(moved), Masks.dense(moved), fraction=0.5, scope="layer")
    assert ticket(folder, "movement", round=1).masks == expected
