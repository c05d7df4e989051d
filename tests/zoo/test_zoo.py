"""Projects that nobody here wrote, with all callbacks attached, for a short real training."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

from lightning_lth.pruning.parameters import prunable_parameters
from tests.callbacks.modules import assert_equal, weights
from tests.contents import plain
from tests.zoo import demos, forecasting, graphs, language, runs, timm_model, vision
from tests.zoo.project import Project
from tests.zoo.runs import ROUNDS, Run

KINDS = (demos, vision, timm_model, language, graphs, forecasting)
PROJECTS: list[Project] = list(chain.from_iterable(kind.PROJECTS for kind in KINDS))

pytestmark = [
    pytest.mark.zoo,
    # True of trainings as short as these.
    pytest.mark.filterwarnings("ignore:BatchNorm '.*' is evaluated after"),
]


def param(project: Project, *values: Any, name: str = "") -> Any:
    """With what is warned of in this project."""
    ignored = [pytest.mark.filterwarnings(f"ignore:{text}") for text in project.warnings]
    return pytest.param(project, *values, id=name or project.name, marks=ignored)


every_project = pytest.mark.parametrize("project", [param(one) for one in PROJECTS], indirect=True)


@pytest.fixture(scope="module")
def project(request: pytest.FixtureRequest) -> Project:
    """One after the other, so that each is trained three times for all its tests."""
    return request.param


@pytest.fixture(scope="module")
def alone(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without us."""
    return runs.fit(project, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def watched(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Beside callbacks that only look."""
    return runs.fit(project, tmp_path_factory.mktemp("watched"), runs.passive)


@pytest.fixture(scope="module")
def pruned(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With everything that the project does not refuse."""
    folder = tmp_path_factory.mktemp("pruned")
    return runs.fit(project, folder, runs.allowed, is_recorded=False)


@every_project
def test_two_rounds_are_pruned(project: Project, pruned: Run) -> None:
    numbers = [sum(one.numel() for one in project.prunable(pruned.module).values())]
    for _ in range(ROUNDS):
        numbers.append(numbers[-1] - round(numbers[-1] / 5))
    densities = [record.density for record in pruned.ours["pruning"].history]
    assert densities == [number / numbers[0] for number in numbers]


@every_project
def test_all_weights_of_layers_are_pruned_by_default(project: Project, alone: Run) -> None:
    assert prunable_parameters(alone.module).keys() == project.prunable(alone.module).keys()


@every_project
def test_pruned_weights_are_zero_after_every_step(project: Project, pruned: Run) -> None:
    masks = pruned.ours["pruning"].masks
    for name, mask in masks.items():
        assert not pruned.module.get_parameter(name)[~mask].count_nonzero(), name
    steps = [record.steps for record in pruned.ours["pruning"].history]
    assert steps == [pruned.trainer.global_step] * (ROUNDS + 1)
    every_step = [(round_, 0) for round_ in range(ROUNDS + 1) for _ in range(steps[0])]
    assert pruned.own["zeros"].nonzero == every_step


@every_project
def test_surviving_weights_have_been_trained(project: Project, pruned: Run) -> None:
    ticket = pruned.ours["pruning"].ticket
    moved = [
        not torch.equal(pruned.module.get_parameter(name)[mask], ticket.weights[name][mask])
        for name, mask in ticket.masks.items()
        if mask.any()
    ]
    assert all(moved)


@every_project
def test_the_checkpoint_is_one_of_the_plain_project(
    project: Project, alone: Run, pruned: Run
) -> None:
    checkpoint, without_us = pruned.checkpoint(), alone.checkpoint()
    assert checkpoint.keys() == without_us.keys()
    assert list(checkpoint["state_dict"]) == list(without_us["state_dict"])
    runs.seed(8)
    fresh, _ = project.make()
    fresh.load_state_dict(checkpoint["state_dict"], strict=True)
    assert_equal(weights(fresh), weights(pruned.module))
    with torch.no_grad():
        expected = project.output(pruned.module.eval(), pruned.batch)
        assert torch.equal(project.output(fresh.eval(), pruned.batch), expected)


@every_project
def test_watchers_change_nothing(project: Project, alone: Run, watched: Run) -> None:
    assert_equal(weights(watched.module), weights(alone.module))
    assert watched.random == alone.random
    assert watched.checkpoint_path.name == alone.checkpoint_path.name
    first, second = alone.checkpoint(), watched.checkpoint()
    states, users = second.pop("callbacks"), first.pop("callbacks")
    assert states.keys() - users.keys() <= {one.state_key for one in watched.ours.values()}
    assert plain(second) == plain(first)


@every_project
def test_the_projects_own_callbacks_see_what_they_saw(
    project: Project, alone: Run, watched: Run
) -> None:
    seen, expected = watched.own["recorder"].seen, alone.own["recorder"].seen
    assert [one[:2] for one in seen] == [one[:2] for one in expected]
    assert seen == expected


REFUSALS = [
    param(project, name, refusal, name=f"{project.name}-{name}")
    for project in PROJECTS
    for name, refusal in project.refused.items()
]


@pytest.mark.parametrize(("one", "name", "refusal"), REFUSALS)
def test_what_does_not_go_is_refused(one: Project, name: str, refusal: Any, tmp_path: Any) -> None:
    modules: list[Any] = []

    def only(project: Project, module: Any) -> runs.Callbacks:
        modules.append((module, weights(module)))
        return {name: runs.active(project, module)[name]}

    with pytest.raises(refusal.error, match=refusal.message):
        runs.fit(one, tmp_path, only)
    if refusal.is_early:
        assert_equal(weights(modules[0][0]), modules[0][1])
