from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_lth.study.experiments.augment import flip_and_crop


def variants(image: Tensor) -> Tensor:
    """Both reflections times 9 x 9 shifts, by slicing one at a time."""
    height, width = image.shape[1:]
    made = []
    for mirrored in (image, image.flip(2)):
        # A crop of the flipped image is the flipped crop at the opposite shift: the same 162.
        bordered = pad(mirrored, (4, 4, 4, 4))
        for top, left in product(range(9), range(9)):
            made.append(bordered[:, top : top + height, left : left + width])
    return torch.stack(made)


def which_variants(count: int, seed: int = 0) -> Tensor:
    image = torch.arange(1.0, 2 * 6 * 7 + 1).view(2, 6, 7)  # not square, no two pixels alike
    changed = flip_and_crop(image.expand(count, -1, -1, -1), torch.Generator().manual_seed(seed))
    is_equal = (changed.flatten(1)[:, None] == variants(image).flatten(1)).all(2)
    assert torch.equal(is_equal.sum(1), torch.ones(count, dtype=torch.long))
    return is_equal.int().argmax(1)


def test_every_image_is_a_flip_and_shift_of_its_own_and_all_162_are_equally_frequent() -> None:
    counts = torch.bincount(which_variants(8_100), minlength=162)
    # 50 expected, standard deviation 7; chi-squared with 161 degrees of freedom is 161 +- 18.
    assert counts.min() > 15
    assert ((counts - 50.0) ** 2 / 50).sum() < 250
    assert abs(counts[:81].sum() - 4050) < 4 * 45  # flipped or not: sqrt(8100) / 2 = 45


def test_images_are_changed_independently() -> None:
    chosen = which_variants(3_000)
    same = (chosen[1:] == chosen[:-1]).float().mean()
    assert same < 3 / 162


def test_the_generator_alone_decides() -> None:
    before = torch.get_rng_state()
    assert torch.equal(which_variants(50, seed=3), which_variants(50, seed=3))
    assert not torch.equal(which_variants(50, seed=3), which_variants(50, seed=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_keep_their_own_pixels_shape_and_memory() -> None:
    images = torch.arange(1.0, 5)[:, None, None, None].expand(4, 3, 8, 8).clone()
    copy = images.clone()
    changed = flip_and_crop(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert torch.equal(images, copy)
    for image, value in zip(changed, (1.0, 2.0, 3.0, 4.0), strict=True):
        assert set(image.unique().tolist()) <= {0.0, value}
