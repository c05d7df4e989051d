from __future__ import annotations

import gzip
import pickle
import zipfile
from collections.abc import Iterator
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchvision import datasets
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from lightning_lth.study.experiments import cifar10
from lightning_lth.study.experiments.images import CIFAR10, MNIST, Digits, FashionMNIST


def ready(data: Any) -> Any:
    data.prepare_data()
    data.setup()
    return data


def test_digits_are_those_of_scikit_learn_in_the_size_of_mnist() -> None:
    from sklearn.datasets import load_digits

    data = ready(Digits(num_validation=300))
    assert {name: tuple(part[0].shape) for name, part in data.parts.items()} == {
        "train": (1200, 1, 28, 28),
        "val": (300, 1, 28, 28),
        "test": (297, 1, 28, 28),
    }
    images = torch.cat([data.parts[name][0] for name in ("train", "val", "test")])
    labels = torch.cat([data.parts[name][1] for name in ("train", "val", "test")])
    small, targets = load_digits(return_X_y=True)
    found = zip(map(tuple, shrunk(images)), labels.tolist(), strict=True)
    assert set(found) == set(zip(map(tuple, small.tolist()), targets.tolist(), strict=True))
    assert images.dtype == torch.float32
    assert images[:, :, [0, 1, 26, 27]].sum() == images[..., [0, 1, 26, 27]].sum() == 0
    whole = images[:, :, 2:26, 2:26].unfold(2, 3, 3).unfold(3, 3, 3).flatten(4)
    assert torch.equal(whole.amin(4), whole.amax(4))  # squares of 3 x 3 of one value


def shrunk(images: Tensor) -> list[list[float]]:
    rows: list[list[float]] = (images[:, 0, 2:26:3, 2:26:3] * 16).flatten(1).tolist()
    return rows


def test_the_split_depends_on_its_seed_and_the_test_images_on_nothing() -> None:
    parts = [ready(Digits(split_seed=seed)).parts for seed in (0, 0, 1)]
    torch.manual_seed(1)
    parts.append(ready(Digits()).parts)
    for name in ("train", "val"):
        assert torch.equal(parts[0][name][0], parts[1][name][0])
        assert torch.equal(parts[0][name][0], parts[3][name][0])
        assert not torch.equal(parts[0][name][0], parts[2][name][0])
    assert all(torch.equal(parts[0]["test"][0], other["test"][0]) for other in parts)


def test_loaders_shuffle_and_cut_the_training_part_alone() -> None:
    data = ready(Digits(batch_size=50))
    train, again = data.train_dataloader(), data.train_dataloader()
    assert len(train) == 1200 // 50
    images, labels = next(iter(train))
    assert images.shape == (50, 1, 28, 28)
    assert labels.dtype == torch.long
    assert not torch.equal(labels, data.parts["train"][1][:50])
    assert torch.equal(next(iter(again))[1], labels)  # the seed is the global one
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        ((images, labels),) = loader
        assert torch.equal(images, data.parts[name][0])
        assert torch.equal(labels, data.parts[name][1])


def test_the_images_are_on_the_device_of_the_training() -> None:
    data = Digits()
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    data.trainer = SimpleNamespace(strategy=strategy)
    data.setup("fit")
    devices = {part.device.type for pair in data.parts.values() for part in pair}
    assert devices == {"meta"}


def test_setup_reads_once() -> None:
    data = ready(Digits())
    images = data.parts["train"][0]
    data.setup("test")
    assert data.parts["train"][0] is images


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_mnist_is_split_as_in_the_paper(kind: type[Any], data_root: Path) -> None:
    data = ready(kind(str(data_root)))
    sizes = {name: len(images) for name, (images, _) in data.parts.items()}
    assert sizes == {"train": 55_000, "val": 5_000, "test": 10_000}
    reference = getattr(datasets, kind.__name__)(data_root)
    images = torch.cat([data.parts[name][0] for name in ("val", "train")])
    labels = torch.cat([data.parts[name][1] for name in ("val", "train")])
    assert images.shape[1:] == (1, 28, 28)
    assert (images.min(), images.max()) == (0, 1)
    # All images are there, each with its label: sums are whole numbers below 2 ** 24.
    ours = (images.flatten(1) * 255).round().sum(1).long() * 10 + labels
    theirs = reference.data.flatten(1).sum(1) * 10 + reference.targets
    assert torch.equal(ours.sort().values, theirs.sort().values)
    assert not torch.equal(ours[:5000], theirs[:5000])  # at random
    test = getattr(datasets, kind.__name__)(data_root, train=False)
    assert torch.equal(data.parts["test"][1], test.targets)
    torch.testing.assert_close(data.parts["test"][0][7, 0], test.data[7] / 255)
    assert len(data.train_dataloader()) == 917  # 55,000 / 60
    assert len(data.val_dataloader()) == 1


def test_the_folder_is_the_argument_the_environment_or_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIGHTNING_LTH_DATA", "/elsewhere")
    assert MNIST("here").folder == Path("here")
    assert MNIST().folder == Path("/elsewhere")
    monkeypatch.delenv("LIGHTNING_LTH_DATA")
    assert MNIST().folder == Path("data")
    assert MNIST().data_dir is None


CLOSED = "http://127.0.0.1:9/"  # nobody listens


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_without_files_and_network_the_next_move_is_named(
    kind: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [CLOSED])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [CLOSED])
    monkeypatch.setattr(datasets.CIFAR10, "url", CLOSED)
    message = f"no {kind.__name__} in .*LIGHTNING_LTH_DATA.*{kind.__name__}.*download=True"
    with pytest.raises(FileNotFoundError, match=message):
        kind(str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match=message):
        kind(str(tmp_path)).setup()


def write_mnist(folder: Path, count: int) -> None:
    """Files as torchvision leaves them after a download; image i is filled with i."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = bytes(value for value in range(count) for _ in range(28 * 28))
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels)
        header = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(range(count)))


def test_files_that_are_there_are_read_and_not_downloaded(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw", 9)
    data = ready(MNIST(str(tmp_path), num_validation=4, batch_size=2))
    for images, labels in data.parts.values():
        assert torch.equal(images, (labels / 255)[:, None, None, None].expand(-1, 1, 28, 28))
    assert len(data.train_dataloader()) == 3
    labels = torch.cat([data.parts["val"][1], data.parts["train"][1]])
    assert sorted(labels.tolist()) == list(range(9))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """Serves the folder ``mirror``."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_missing_files_are_downloaded(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "mirror", 9)
    packed = []
    for path in sorted((tmp_path / "mirror").iterdir()):
        content = gzip.compress(path.read_bytes())
        path.with_suffix(".gz").write_bytes(content)
        packed.append((path.with_suffix(".gz").name, md5(content).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror])
    monkeypatch.setattr(datasets.MNIST, "resources", packed)
    data = ready(MNIST(str(tmp_path / "new"), num_validation=4))
    assert len(data.parts["train"][0]) == 5


@pytest.fixture(scope="module")
def few_photographs(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 12 and the last image of each class, of the real archive."""
    tmp_path = tmp_path_factory.mktemp("few")
    with zipfile.ZipFile(data_root / "cifar10_jpg.zip") as full:
        names = [name for name in full.namelist() if name.endswith(".jpg")]
        by_class: dict[Path, list[str]] = {}
        for name in names:
            by_class.setdefault(Path(name).parent, []).append(name)
        with zipfile.ZipFile(tmp_path / "cifar10_jpg.zip", "w") as few:
            few.writestr("train/", "")  # folders have entries of their own in some archives
            for found in by_class.values():
                for name in [found[-1], *found[:12]]:
                    few.writestr(name, full.read(name))
    return tmp_path


def test_cifar10_of_jpeg_images_has_the_pixels_and_labels_of_image_folder(
    few_photographs: Path,
) -> None:
    parts = dict(zip(("train", "test"), cifar10.read(few_photographs), strict=True))
    with zipfile.ZipFile(few_photographs / "cifar10_jpg.zip") as few:
        few.extractall(few_photographs / "unpacked")
    for part, (images, labels) in parts.items():
        folder = ImageFolder(str(few_photographs / "unpacked" / part), transform=ToTensor())
        assert folder.classes[0] == "airplane"
        assert folder.classes[9] == "truck"
        assert images.dtype == torch.uint8
        assert labels.tolist() == folder.targets
        for index in (0, 12, 13, 129):
            torch.testing.assert_close(images[index] / 255, folder[index][0])


def test_cifar10_is_standardized_by_what_is_trained_on(few_photographs: Path) -> None:
    data = ready(CIFAR10(str(few_photographs), num_validation=30))
    raw, test = cifar10.read(few_photographs)
    train, _ = data.parts["train"]
    assert train.shape == (100, 3, 32, 32)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.square().mean((0, 2, 3)), torch.ones(3))
    pixels = data.parts["test"][0].double()  # shifted and scaled, by channel, as nothing else
    before = test[0].double()
    for channel in range(3):
        pair = torch.stack([pixels[:, channel].flatten(), before[:, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] == pytest.approx(1, abs=1e-9)
    scale = (pixels.std((0, 2, 3)) / before.std((0, 2, 3))).float()
    val = torch.cat([data.parts["val"][0], train]) / scale[:, None, None]
    assert val.std() == pytest.approx(float((raw[0].float() - raw_means(raw)).std()), rel=0.05)
    assert abs(data.parts["val"][0].mean()) > 1e-4  # not by their own mean
    assert raw[0].dtype == torch.uint8  # what the process keeps was left alone


def raw_means(raw: tuple[Tensor, Tensor]) -> Tensor:
    return raw[0].float().mean((0, 2, 3), keepdim=True)


def test_cifar10_is_decoded_once(few_photographs: Path) -> None:
    cifar10.read.cache_clear()
    first, _ = cifar10.read(few_photographs)
    again, _ = cifar10.read(Path(str(few_photographs)))
    assert first[0] is again[0]


def test_cifar10_is_augmented_on_request_and_only_where_it_is_trained_on(
    few_photographs: Path,
) -> None:
    for augment in (False, True):
        data = ready(CIFAR10(str(few_photographs), num_validation=30, augment=augment))
        ((val, _),) = data.val_dataloader()
        assert torch.equal(val, data.parts["val"][0])
        seen = torch.cat([images for images, _ in data.train_dataloader()])
        pixels = seen.flatten(1).sum(1).sort().values
        own = data.parts["train"][0].flatten(1).sum(1).sort().values
        assert torch.allclose(pixels, own) is not augment


def test_cifar10_of_torchvision_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (tmp_path / "cifar10_jpg.zip").write_bytes(b"not looked at")
    pixels = torch.randint(256, (6, 3072), dtype=torch.uint8)
    labels = [3, 1, 4, 1, 5, 9]
    content = {"data": pixels.numpy(), "labels": labels}
    sums = {}
    for name, value in (("one", content), ("meta", {"label_names": list("abcdefghij")})):
        (folder / name).write_bytes(pickle.dumps(value))
        sums[name] = md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["one", sums["one"]]] * 2)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["one", sums["one"]]])
    meta = {"filename": "meta", "key": "label_names", "md5": sums["meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    CIFAR10(str(tmp_path)).prepare_data()  # nothing to download
    training, test = cifar10.read(tmp_path)
    assert torch.equal(test[0], pixels.view(6, 3, 32, 32))
    assert test[1].tolist() == labels
    assert torch.equal(training[0], torch.cat([test[0], test[0]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_validation": 0}, "`num_validation` must be at least 1, got 0"),
        ({"num_validation": 1500}, "must be less than the 1500 images there are, got 1500"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(Digits(**settings))


def test_loaders_before_setup_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"before `setup\(\)` has been called"):
        Digits().train_dataloader()


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10, Digits])
def test_the_command_line_can_build_it(kind: type[LightningDataModule]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    path = f"lightning_lth.study.experiments.images.{kind.__name__}"
    settings = {"class_path": path, "init_args": {"batch_size": 7, "num_validation": 9}}
    data = parser.instantiate(parser.parse_object({"data": settings})).data
    assert type(data) is kind
    assert (data.batch_size, data.num_validation, data.split_seed) == (7, 9, 0)
