from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_lth.study.drawings import drawings_of
from lightning_lth.study.figure_parts import arm_style
from lightning_lth.study.plots import (
    MEASURES,
    against_density,
    arms_at_round,
    layer_densities,
    summary_of,
    training_curves,
)
from lightning_lth.study.results import Results

Key = tuple[str, int, int, int]  # arm, seed, draw, round
STEPS: dict[Key, float] = {
    ("ticket", 1, 0, 0): 100,
    ("ticket", 2, 0, 0): 300,
    ("ticket", 1, 0, 1): 60,
    ("ticket", 2, 0, 1): 100,
    ("ticket", 1, 0, 2): 40,
    ("ticket", 2, 0, 2): 60,
    ("reinit", 1, 0, 1): 100,
    ("reinit", 1, 1, 1): 200,
    ("reinit", 2, 0, 1): 400,
}


def frame(rows: Mapping[Key, Mapping[str, Any]]) -> pd.DataFrame:
    """Of measures by arm, seed, draw and round; each round leaves a half."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "draw": draw, "round": round, "density": 0.5**round, **row}
            for (arm, seed, draw, round), row in rows.items()
        ]
    )


def results(
    steps: Mapping[Key, float] = STEPS,
    *,
    measure: str = "early_stop_step",
    curves: Sequence[pd.DataFrame] = (),
    layers: Sequence[pd.DataFrame] = (),
    stability: Sequence[pd.DataFrame] = (),
    **others: Any,
) -> Results:
    """With nothing but what is given."""
    tables = {
        name: pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        for name, frames in (("curves", curves), ("layers", layers), ("stability", stability))
    }
    rounds = frame({key: {measure: value} for key, value in steps.items()})
    texts: dict[str, Any] = {"name": "s", "config": "", "environments": [], "command": ""} | others
    return Results(rounds=rounds, **tables, **texts)


def curve(key: Key, values: Sequence[float], metric: str = "val_acc") -> pd.DataFrame:
    """Validations every 10 steps, from step 0."""
    arm, seed, draw, round = key
    row = {"arm": arm, "seed": seed, "draw": draw, "round": round, "density": 0.5**round}
    steps = [10 * i for i in range(len(values))]
    return pd.DataFrame({**row, "step": steps, metric: list(values)})


def layer(key: Key, densities: Mapping[str, float]) -> pd.DataFrame:
    """The layers of a training, in this order."""
    arm, seed, draw, round = key
    row = {"arm": arm, "seed": seed, "draw": draw, "round": round}
    columns = {"layer": list(densities), "density": list(densities.values()), "num_weights": 8}
    return pd.DataFrame({**row, **columns})


def pair(arm: str, seed: int, round: int, pair: int, barrier: float) -> pd.DataFrame:
    """Two trainings with two data orders."""
    row = {"arm": arm, "seed": seed, "round": round, "density": 0.5**round, "pair": pair}
    return pd.DataFrame([{**row, "barrier": barrier, "l2_distance": 10 * barrier}])


def points(axes: Axes) -> list[list[tuple[float, float]]]:
    """Of each line that is no part of an error bar."""
    lines = [line for line in axes.lines if line.get_marker() not in ("_", "|")]
    return [list(zip(*np.asarray(line.get_data(), float).tolist(), strict=True)) for line in lines]


def bars(axes: Axes) -> list[list[tuple[float, float]]]:
    """Lower and upper end of each error bar, by arm."""
    return [
        [(bar[0][1], bar[1][1]) for bar in container.lines[2][0].get_segments()]  # type: ignore[attr-defined]
        for container in axes.containers
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_means_of_trials_and_bars_over_trainings() -> None:
    axes = against_density(results(), "early_stop_step").axes[0]
    # Of reinit: seed 1 has 150 in the mean, seed 2 has 400.
    assert points(axes) == [[(100, 200), (50, 80), (25, 50)], [(50, 275)]]
    assert bars(axes) == [[(100, 300), (60, 100), (40, 60)], [(100, 400)]]


def test_the_axis_of_the_papers() -> None:
    figure = against_density(results(), "early_stop_step")
    axes = figure.axes[0]
    left, right = axes.get_xlim()
    assert left > 100 > 25 > right
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "50", "20"]
    assert axes.get_xlabel() == "weights remaining (%)"
    assert axes.get_ylabel() == "early-stop iteration (steps)"
    assert axes.yaxis.get_major_formatter()(12_500) == "12,500"
    assert figure.get_figwidth() == 3.5  # a column


def test_arms_appear_in_their_order_whatever_their_names() -> None:
    names = ["zebra", "_private", r"$\wrong$", "apple"]
    steps = {(name, 1, 0, round): 1.0 for name in names for round in (0, 1)}
    figure = against_density(results(steps), "early_stop_step")
    assert legend(figure) == names
    figure.savefig(io.BytesIO())  # no formulas
    by_arm = arms_at_round(results(steps), "early_stop_step", 1)
    by_arm.savefig(io.BytesIO())
    assert [label.get_text() for label in by_arm.axes[0].get_yticklabels()] == names
    curves = training_curves(
        results(steps, curves=[curve((name, 1, 0, 0), [1, 2], names[2]) for name in names]),
        names[2],
    )
    curves.savefig(io.BytesIO())
    assert [axes.get_title() for axes in curves.axes] == names


def test_bars_at_one_density_are_drawn_beside_each_other() -> None:
    figure = against_density(results(), "early_stop_step")
    ticket, reinit = (container.lines[0] for container in figure.axes[0].containers)  # type: ignore[attr-defined]
    places = [line.get_transform().transform((50, 80))[0] for line in (ticket, reinit)]
    assert places[1] - places[0] == pytest.approx(0.9 / 72 * figure.dpi)
    bar = figure.axes[0].containers[0].lines[2][0]  # type: ignore[attr-defined]
    assert bar.get_transform().transform((50, 80))[0] == pytest.approx(places[0])


@pytest.mark.parametrize("value", [0.901, 0.905])
def test_equal_values_whose_mean_is_rounded(value: float) -> None:
    steps = {("a", seed, 0, 0): value for seed in (1, 2, 3)}
    one = results(steps, measure="end_test_accuracy")
    (mean,) = summary_of(one, "end_test_accuracy")["mean"]
    assert mean > value if value == 0.901 else mean < value  # by some 1e-16
    axes = against_density(one, "end_test_accuracy").axes[0]
    assert bars(axes) == [[(pytest.approx(value), pytest.approx(value))]]


def test_a_single_point_is_visible() -> None:
    axes = against_density(results({("a", 1, 0, 5): 7.0}), "early_stop_step").axes[0]
    left, right = axes.get_xlim()
    assert points(axes) == [[(3.125, 7)]]
    assert left >= 100 > 3.125 > right > 2
    assert axes.containers[0].lines[0].get_marker() == "o"  # type: ignore[attr-defined]


def test_what_was_not_measured_has_no_point() -> None:
    steps = dict(STEPS) | {("ticket", seed, 0, 1): math.nan for seed in (1, 2)}
    axes = against_density(results(steps), "early_stop_step").axes[0]
    assert points(axes)[0] == [(100, 200), (25, 50)]
    assert texts(axes) == []


def test_diverged_is_no_point() -> None:
    steps = dict(STEPS) | {("ticket", 1, 0, 1): math.inf}
    axes = against_density(results(steps), "early_stop_step").axes[0]
    assert points(axes)[0] == [(100, 200), (25, 50)]


def test_a_measure_without_numbers_says_so() -> None:
    steps = {("a", 1, 0, 0): math.nan}
    for figure in (
        against_density(results(steps), "early_stop_step"),
        arms_at_round(results(steps), "early_stop_step", 0),
        training_curves(results(steps), "val_acc"),
        training_curves(results(steps, curves=[curve(("a", 1, 0, 0), [math.nan])]), "val_acc"),
        layer_densities(results(steps)),
    ):
        figure.savefig(io.BytesIO())
        assert texts(figure.axes[0]) == ["not measured"]
        assert legend(figure) == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda wrong: against_density(results(), wrong),
        lambda wrong: arms_at_round(results(), wrong, 0),
        lambda wrong: training_curves(results(curves=[curve(("a", 1, 0, 0), [1])]), wrong),
    ],
)
def test_an_unknown_measure_is_refused(draw: Callable[[str], Figure]) -> None:
    with pytest.raises(ValueError, match="Nothing measured is called 'early_stop_stp'"):
        draw("early_stop_stp")


def test_eight_arms_differ_by_colour_and_marker_and_more_by_line() -> None:
    styles = [arm_style(i) for i in range(24)]
    assert len({style["color"] for style in styles[:8]}) == 8
    assert len({style["marker"] for style in styles[:8]}) == 8
    assert len({tuple(style.values()) for style in styles}) == 24


def test_an_arm_has_one_colour_in_all_figures() -> None:
    one = results(stability=[pair("reinit", 1, r, 0, 0.1) for r in (0, 1)])
    over_density = against_density(one, "early_stop_step").axes[0].containers[1].lines[0]  # type: ignore[attr-defined]
    for axes in (
        against_density(one, "barrier").axes[0],
        arms_at_round(one, "barrier", 1).axes[0],
    ):
        assert axes.lines[0].get_color() == over_density.get_color() == "#D55E00"
        assert axes.lines[0].get_marker() == over_density.get_marker()


def test_training_curves() -> None:
    one = results(
        curves=[
            curve(("ticket", 1, 0, 0), [0.1, 0.5, 0.7]),
            curve(("ticket", 2, 0, 0), [0.3, 0.7, 0.8]),
            curve(("reinit", 1, 0, 1), [0.0, 0.2]),
            curve(("reinit", 1, 1, 1), [0.0, 0.4]),
            curve(("reinit", 2, 0, 1), [0.0, 0.6, 0.9]),  # the others have ended before
        ]
    )
    figure = training_curves(one, "val_acc")
    ticket, reinit = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["ticket", "reinit"]
    assert points(ticket) == [[(0, 0.2), (10, pytest.approx(0.6)), (20, 0.75)]]
    assert points(reinit) == [[(0, 0), (10, pytest.approx(0.45))]]  # of 0.3 and 0.6
    band = ticket.collections[0].get_paths()[0].vertices
    assert {(10, 0.5), (10, 0.7), (20, 0.7), (20, 0.8)} <= set(
        map(tuple, np.asarray(band).tolist())
    )
    band = reinit.collections[0].get_paths()[0].vertices
    assert {(10, 0.2), (10, 0.6)} <= set(map(tuple, np.asarray(band).tolist()))
    assert legend(figure) == ["100 %", "50 %"]
    assert ticket.get_xlim()[0] == 0
    assert ticket.get_ylim() == pytest.approx((0.2 - 0.03, 0.8 + 0.03))  # from step 2 on
    assert ticket.get_ylim() == reinit.get_ylim()
    assert ticket.get_xlabel() == reinit.get_xlabel() == "step"
    assert figure.get_supylabel() == "val_acc"


def test_training_curves_of_a_handful_of_densities_that_all_arms_have() -> None:
    rounds = {"a": range(13), "b": range(0, 13, 2), "c": [5]}
    keys = {(arm, 1, 0, 0): 1.0 for arm in rounds}
    curves = [curve((arm, 1, 0, r), [0, 1]) for arm in "ab" for r in rounds[arm]]
    figure = training_curves(results(keys, curves=curves), "val_acc")
    assert legend(figure) == ["100 %", "6.25 %", "1.56 %", "0.391 %", "0.0244 %"]  # 0 4 6 8 12
    assert [len(axes.lines) for axes in figure.axes] == [5, 5]
    curves += [curve(("c", 1, 0, 5), [0, 1])]
    figure = training_curves(results(keys, curves=curves), "val_acc")
    assert [len(axes.lines) for axes in figure.axes] == [6, 3, 1]  # 0 3 6 9 12, and 5 for c


def test_training_curves_with_two_validations_at_a_step() -> None:
    """As with accumulated gradients, when both are between the same two optimizer steps."""
    twice = pd.concat([curve(("a", 1, 0, 0), [4, 2, 1]), curve(("a", 1, 0, 0), [4, 2]).iloc[1:]])
    figure = training_curves(results({("a", 1, 0, 0): 1}, curves=[twice]), "val_acc")
    assert points(figure.axes[0]) == [[(0, 4), (10, 2), (20, 1)]]


def test_a_single_validation_is_a_dot() -> None:
    figure = training_curves(results(curves=[curve(("ticket", 1, 0, 0), [0.5])]), "val_acc")
    figure.savefig(io.BytesIO())
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_layer_densities_by_round() -> None:
    rows = [
        layer(("ticket", 1, 0, 0), {"z.weight": 1, "a.weight": 1}),
        layer(("ticket", 1, 0, 1), {"z.weight": 0.8, "a.weight": 0.2}),
        layer(("ticket", 2, 0, 1), {"z.weight": 0.6, "a.weight": 0.1}),
    ]
    figure = layer_densities(results(layers=rows))
    (axes,) = figure.axes
    assert points(axes) == [
        [(0, 100), (1, pytest.approx(70))],
        [(0, 100), (1, pytest.approx(15))],
    ]
    assert legend(figure) == ["z.weight", "a.weight"]  # as in the network
    assert axes.get_yscale() == "log"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["100", "30"]
    low, high = axes.get_ylim()
    assert 10 < low < 15
    assert high > 100
    assert figure.get_supylabel() == "weights remaining in the layer (%)"


def test_a_layer_without_weights_lies_at_zero() -> None:
    rows = [
        layer(("ticket", 1, 0, 0), {"a": 1.0, "b": 1.0}),
        layer(("ticket", 1, 0, 1), {"a": 0.1, "b": 0.0}),
    ]
    axes = layer_densities(results(layers=rows)).axes[0]
    assert points(axes)[1] == [(0, 100), (1, 0)]
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < 0
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["100", "30", "10", "0"]


def test_of_many_layers_some_are_named() -> None:
    rows = [layer(("ticket", 1, 0, 0), {f"layer{i}": 1.0 for i in range(20)})]
    figure = layer_densities(results(layers=rows))
    assert len(figure.axes[0].lines) == 20
    assert len(legend(figure)) == 8
    assert (legend(figure)[0], legend(figure)[-1]) == ("layer0", "layer19")


def test_arms_side_by_side() -> None:
    axes = arms_at_round(results(), "early_stop_step", 1).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ticket", "reinit"]
    low, high = axes.get_ylim()
    assert low > high  # the first is above
    ticket, reinit = points(axes)
    assert ticket == [(60, pytest.approx(-0.22)), (100, pytest.approx(0.22))]
    assert reinit == [(150, pytest.approx(0.78)), (400, pytest.approx(1.22))]  # a seed, a height
    means = [one.get_segments()[0][0][0] for one in axes.collections]  # type: ignore[attr-defined]
    assert means == [80, 275]
    assert axes.get_xlabel() == "early-stop iteration (steps)"


def test_arms_without_a_value_at_the_round_are_left_out() -> None:
    figure = arms_at_round(results(), "early_stop_step", 2)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ticket"]


def test_a_seed_with_a_draw_that_has_no_value_is_left_out_as_in_the_table() -> None:
    one = results(dict(STEPS) | {("reinit", 1, 1, 1): math.nan})
    axes = arms_at_round(one, "early_stop_step", 1).axes[0]
    assert points(axes)[1] == [(400, pytest.approx(1.22))]
    assert summary_of(one, "early_stop_step").set_index("arm").loc["reinit", "mean"] == 400


def test_different_densities_of_one_round_are_all_named() -> None:
    one = results(
        curves=[
            curve(("ticket", 1, 0, 1), [0, 1]),
            curve(("reinit", 1, 0, 1), [0, 1]).assign(density=0.3),
        ]
    )
    assert legend(training_curves(one, "val_acc")) == ["30 / 50 %"]
    one.rounds.loc[one.rounds["arm"] == "reinit", "density"] = 0.3
    captions = {drawing.name: drawing.caption for drawing in drawings_of(one)}
    assert "with 30 / 50 % of the weights" in captions["early_stop_step_by_arm"]


def test_stability_counts_pairs_as_draws() -> None:
    rows = [
        pair("ticket", 1, 0, 0, 0.1),
        pair("ticket", 1, 0, 1, 0.3),
        pair("ticket", 2, 0, 0, 0.4),
        pair("ticket", 1, 1, 0, 0.0),
    ]
    axes = against_density(results(stability=rows), "barrier").axes[0]
    assert points(axes) == [[(100, pytest.approx(0.3)), (50, 0)]]  # of 0.2 and 0.4
    assert bars(axes)[0][0] == (pytest.approx(0.1), pytest.approx(0.4))
    axes = against_density(results(stability=rows), "l2_distance").axes[0]
    assert points(axes)[0][0] == (100, pytest.approx(3))
    assert axes.get_ylabel() == MEASURES["l2_distance"]


def test_summary_is_without_what_was_not_measured() -> None:
    steps = dict(STEPS) | {("ticket", seed, 0, 1): math.nan for seed in (1, 2)}
    summary = summary_of(results(steps), "early_stop_step")
    assert sorted(zip(summary["arm"], summary["round"], strict=True)) == [
        ("reinit", 1),
        ("ticket", 0),
        ("ticket", 2),
    ]


def test_nothing_overlaps_or_leaves_the_figure() -> None:
    arms = [f"an arm with a rather long name {i}" for i in range(8)]
    steps = {(arm, seed, 0, r): seed for arm in arms for seed in (1, 2) for r in range(4)}
    one = results(
        steps,
        curves=[curve(key, [0.1, 0.2, 0.3]) for key in steps],
        layers=[
            layer(key, {f"a.layer.with.a.long.name.{i}": 1 for i in range(9)})
            for key in list(steps)[:16]
        ],
    )
    for figure in (
        against_density(one, "early_stop_step"),
        training_curves(one, "val_acc"),
        layer_densities(one),
        arms_at_round(one, "early_stop_step", 3),
    ):
        figure.draw_without_rendering()
        # Half a pixel, as places are rounded.
        width, height = figure.bbox.width + 0.5, figure.bbox.height + 0.5
        panels = [axes.get_tightbbox() for axes in figure.axes]
        boxes = [*panels, *(one.get_window_extent() for one in figure.legends)]
        for i, box in enumerate(boxes):
            assert box is not None
            assert min(box.x0, box.y0) > -0.5
            assert box.x1 < width
            assert box.y1 < height
            assert not any(box.overlaps(other) for other in boxes[:i] if other is not None)
