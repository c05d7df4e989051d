"""Makes the pictures of TensorBoard: runs examples, and opens their events in headless Chromium.

Run:
    python docs/screenshots.py                     # all, 5 minutes on 2 cores; needs `.[browser]`
    python docs/screenshots.py tensorboard_tickets # some

Each PNG has a hash of the example and of how it was shown in its text; a test compares that, so a
picture cannot be older than its example.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "pages" / "images"
KEY = "made by docs/screenshots.py from"


@dataclass(frozen=True)
class Shot:
    """What is shown of an example's events.

    Attributes:
        example: Its name.
        page: What follows the # in TensorBoard's address.
        size: Of the window.
        settings: Constants of the example that are other than there.
        seconds: Until the page is complete.
    """

    example: str
    page: str
    size: tuple[int, int] = (1500, 930)
    settings: dict[str, object] = field(default_factory=dict)
    seconds: float = 12


SHOTS = {
    "tensorboard_tickets": Shot("digits_ticket", "custom_scalars&_smoothingWeight=0"),
    "tensorboard_figures": Shot("digits_ticket", "images", size=(1500, 740)),
    "tensorboard_layers": Shot(
        "dropout_before_batch_norm",
        "custom_scalars&_smoothingWeight=0",
        settings={"DROPOUT": (0.0, 0.5), "NUM_IMAGES": 3000, "NUM_TEST_IMAGES": 500},
    ),
    "tensorboard_rates": Shot(
        "cyclical_lr",
        "scalars&_smoothingWeight=0&tagFilter=lr",
        size=(1500, 620),
        settings={"STEPS": 1200, "OTHER_RATES": ()},
    ),
}


def origin(name: str) -> str:
    """A hash of all that decides how a picture looks, but for the library."""
    shot = SHOTS[name]
    source = (ROOT / "examples" / f"{shot.example}.py").read_text(encoding="utf-8")
    return hashlib.sha256(f"{shot} {source}".encode()).hexdigest()


def recorded_origin(name: str) -> str | None:
    """The hash in the file."""
    with Image.open(IMAGES / f"{name}.png") as image:
        return image.info.get(KEY)


def take(name: str, folder: Path) -> None:
    """Run the example, if that is not done yet, and write its picture."""
    from tests.browser.chromium import chromium
    from tests.browser.test_custom_scalars import tensorboard
    from tests.test_examples import run_example

    shot = SHOTS[name]
    if not (folder / "results" / shot.example).exists():
        run_example(folder, shot.example, **shot.settings)
    window = f"--window-size={shot.size[0]},{shot.size[1]}"
    with (
        tensorboard(folder, f"results/{shot.example}") as address,
        chromium(window) as browser,
    ):
        browser.get(address)
        browser.execute_script("localStorage.setItem('_ignoreYOutliers', 'false')")
        browser.get("about:blank")  # as a change after the # would not load the page again
        browser.get(f"{address}#{shot.page}")
        time.sleep(shot.seconds)
        browser.save_screenshot(str(folder / "shot.png"))
    info = PngInfo()
    info.add_text(KEY, origin(name))
    with Image.open(folder / "shot.png") as image:
        reduced = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
        reduced.save(IMAGES / f"{name}.png", optimize=True, pnginfo=info)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        for one in sys.argv[1:] or SHOTS:
            take(one, Path(temporary))
