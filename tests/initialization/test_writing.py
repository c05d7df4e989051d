"""Values arrive at what the layer computes with, whatever stands between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import Module
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_lth.initialization.writing import (
    Refused,
    effective,
    own_parameters,
    pruning_masks,
    reason_to_skip,
    write_,
)

VALUES = torch.arange(1.0, 13.0).view(3, 4)


class Halved(Module):
    """Has no right inverse."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value / 2


def plain() -> nn.Linear:
    return nn.Linear(4, 3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        parametrizations.weight_norm,
        lambda layer: parametrizations.weight_norm(layer, dim=1),
        nn.utils.weight_norm,
        lambda layer: nn.utils.weight_norm(layer, dim=None),
        torch.compile,
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_the_layer_computes_with_what_was_written(wrap: Callable[[Module], Module]) -> None:
    layer = wrap(plain())
    layer = getattr(layer, "_orig_mod", layer)
    behind = [id(parameter) for parameter in layer.parameters()]
    assert write_(layer, "weight", VALUES) == ""
    torch.testing.assert_close(effective(layer, "weight"), VALUES)
    torch.testing.assert_close(layer(torch.eye(4)) - layer.bias, VALUES.T)  # type: ignore[operator]
    assert [id(parameter) for parameter in layer.parameters()] == behind


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norm_takes_rows_of_zeros(wrap: Callable[[Module], Module]) -> None:
    layer, values = wrap(plain()), VALUES.clone()
    values[1] = 0
    assert write_(layer, "weight", values) == ""
    torch.testing.assert_close(effective(layer, "weight"), values)


def test_pruned_weights_stay_pruned() -> None:
    layer = prune.l1_unstructured(plain(), "weight", amount=6)
    write_(layer, "weight", VALUES)
    mask = layer.weight_mask
    assert torch.equal(layer.weight_orig, VALUES)
    assert torch.equal(layer.weight, VALUES * mask)
    assert torch.equal(effective(layer, "weight"), VALUES * mask)
    masks = pruning_masks(nn.Sequential(layer))
    assert list(masks) == ["0.weight"]
    assert torch.equal(masks["0.weight"], mask)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")
def test_spectral_norm_keeps_directions_only(
    wrap: Callable[[Module], Module], training: bool
) -> None:
    layer = wrap(plain()).train(training)
    assert "scale" in write_(layer, "weight", 5 * VALUES)
    assert all(part.training == training for part in layer.modules())
    expected = VALUES / torch.linalg.svdvals(VALUES)[0]
    torch.testing.assert_close(effective(layer, "weight"), expected, rtol=1e-3, atol=1e-3)


def test_orthogonal_parametrization() -> None:
    layer = parametrizations.orthogonal(nn.Linear(4, 4))
    state = torch.get_rng_state()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    assert "directions" in write_(layer, "weight", 3 * rotation)
    singular = torch.linalg.svdvals(effective(layer, "weight"))
    torch.testing.assert_close(singular, torch.ones(4))
    assert torch.equal(torch.get_rng_state(), state)


class Noisy(Module):
    """Its right inverse draws random numbers."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value / 2

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value + 1e-9 * torch.randn_like(value)


class Exp(Module):
    """Gives positive values only."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value.exp()

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return value.log()


class Symmetric(Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value.triu() + value.triu(1).T

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return value.triu()


def parametrized(by: Module) -> Module:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    return parametrize.register_parametrization(layer, "weight", by)


def exponential_map() -> Module:
    return parametrizations.orthogonal(
        nn.Linear(4, 4), orthogonal_map="matrix_exp", use_trivialization=False
    )


@pytest.mark.parametrize(
    ("layer", "values", "reason"),
    [
        (parametrized(Exp()), -torch.eye(4), "its parametrization cannot take the values"),
        (exponential_map(), torch.eye(4), "It is not possible to assign"),
        (parametrizations.spectral_norm(nn.Linear(4, 4)).eval(), torch.zeros(4, 4), "cannot take"),
    ],
)
def test_what_a_parametrization_cannot_give_is_refused(
    layer: Module, values: torch.Tensor, reason: str
) -> None:
    before = effective(layer, "weight").clone()
    note = write_(layer, "weight", values)
    assert isinstance(note, Refused)
    assert reason in note
    assert torch.equal(effective(layer, "weight"), before)


def test_what_a_parametrization_changes_is_told() -> None:
    layer = parametrized(Symmetric())
    assert write_(layer, "weight", torch.ones(4, 4)) == ""
    note = write_(layer, "weight", torch.arange(16.0).view(4, 4))
    assert note == "its parametrization changes the values"


def test_a_right_inverse_leaves_random_states_alone() -> None:
    layer = plain()
    parametrize.register_parametrization(layer, "weight", Noisy())
    state = torch.get_rng_state()
    write_(layer, "weight", VALUES)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(layer.weight, VALUES)


def test_dtypes_are_kept() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        layer = plain().to(dtype)
        write_(layer, "weight", VALUES)
        assert layer.weight.dtype == dtype
        assert torch.equal(layer.weight, VALUES.to(dtype))


def test_what_is_left_alone_and_why() -> None:
    def reason(layer: Module) -> str | None:
        return reason_to_skip(layer, "weight", own_parameters(layer)["weight"])

    assert reason(plain()) is None
    assert reason(plain().requires_grad_(False)) == "frozen"
    half = parametrizations.weight_norm(plain())
    half.parametrizations.weight.original0.requires_grad_(False)
    assert reason(half) == "partly frozen"
    quantized = plain()
    quantized.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    assert reason(quantized) == "quantized: torch.int8"
    assert reason(nn.Linear(4, 3, dtype=torch.complex64)) == "complex numbers"
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 3)
    assert reason(empty) == "empty"
    halved = plain()
    parametrize.register_parametrization(halved, "weight", Halved())
    assert reason(halved) == "Halved has no right_inverse"


def test_what_has_no_values_is_refused() -> None:
    with pytest.raises(RuntimeError, match="on the meta device"):
        reason_to_skip(
            nn.Linear(4, 3, device="meta"), "weight", [nn.Linear(4, 3, device="meta").weight]
        )


def test_the_parameters_behind_an_attribute() -> None:
    assert list(own_parameters(plain())) == ["weight", "bias"]
    layer = parametrizations.weight_norm(plain())
    assert {name: len(behind) for name, behind in own_parameters(layer).items()} == {
        "weight": 2,
        "bias": 1,
    }
    assert own_parameters(nn.ReLU()) == {}
