"""Image data sets are read as they were written, and what is damaged is named."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data import Data, load_data
from llqr_sam_ref.train.data.arrays import ImageData, moments
from llqr_sam_ref.train.data.base import noisy
from llqr_sam_ref.train.data.folder import FolderData, read_image
from llqr_sam_ref.train.presets import configured
from tests.train import files
from tests.train.runs import QUIET, trainer

CPU = torch.device("cpu")


def loaded(data: str, path: Path | None = None, **settings: Any) -> Data:
    return load_data(DataConfig(data=data, data_path=None if path is None else str(path), **settings), CPU)


def pixels(data: Data) -> ImageData:
    assert isinstance(data, ImageData)
    return data


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_idx_files(tmp_path: Path, below: str, *, packed: bool) -> None:
    written = files.fashion(tmp_path / below, packed=packed)
    data = pixels(loaded("fashion-mnist", tmp_path))
    np.testing.assert_array_equal(data.images[:, 0].numpy(), written["train"][0])
    np.testing.assert_array_equal(data.labels.numpy(), written["train"][1])
    np.testing.assert_array_equal(data.test_images[:, 0].numpy(), written["t10k"][0])
    assert data.shape == {"num_classes": 10, "channels": 1, "image_size": 28, "features": 784}


@pytest.mark.parametrize("packed", [True, False])
def test_cifar_archives(tmp_path: Path, *, packed: bool) -> None:
    written = files.cifar10(tmp_path, packed=packed)
    data = pixels(loaded("cifar10", tmp_path))
    train = [written[f"data_batch_{i}"] for i in range(1, 6)]
    np.testing.assert_array_equal(data.images.numpy(), np.concatenate([images for images, _ in train]))
    np.testing.assert_array_equal(data.labels.numpy(), np.concatenate([labels for _, labels in train]))
    np.testing.assert_array_equal(data.test_images.numpy(), written["test_batch"][0])


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        (folder / name).write_bytes(files.cifar_batch(6, b"fine_labels", 100, seed)[0])
    assert loaded("cifar100", folder).shape["num_classes"] == 100


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was here"),)

    files.cifar10(tmp_path, packed=False)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match=r"data_batch_2 is not a CIFAR batch.*mkdir"):
        loaded("cifar10", tmp_path)
    assert not (tmp_path / "was here").exists()


def test_digits_are_split_once_and_for_all() -> None:
    data = pixels(loaded("digits"))
    assert (data.train_size, data.test_size) == (1300, 497)
    again = pixels(loaded("digits"))
    assert torch.equal(data.images, again.images)
    everything = torch.cat((data.images, data.test_images)).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 1797 - 0  # no digit occurs in both parts


def test_images_are_standardized_by_the_training_images(tmp_path: Path) -> None:
    files.cifar10(tmp_path, 40)
    data = pixels(loaded("cifar10", tmp_path))
    images, _ = data.train_batch(torch.arange(200), torch.full((200, 6), 0.5))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)


def test_moments_of_a_constant_channel() -> None:
    mean, deviation = moments(torch.full((5, 1, 2, 2), 7, dtype=torch.uint8))
    assert (float(mean), float(deviation)) == (7.0, 1.0)


def test_subsets_and_noise() -> None:
    full = pixels(loaded("digits"))
    part = pixels(loaded("digits", train_examples=100, test_examples=30))
    assert (part.train_size, part.test_size) == (100, 30)
    assert torch.equal(part.images, full.images[:100])
    wrong = pixels(loaded("digits", label_noise=0.4))
    assert torch.equal(wrong.test_labels, full.test_labels)
    changed = float((wrong.labels != full.labels).double().mean())
    assert changed == pytest.approx(0.4 * 0.9, abs=0.05)
    held = pixels(loaded("digits", holdout=100))
    assert torch.equal(held.test_images, full.images[-100:])
    assert torch.equal(held.images, full.images[:-100])
    for data, holdout in (("digits", 1300), ("pairs", 10)):
        with pytest.raises(ValueError, match=f"holdout={holdout}"):
            loaded(data, holdout=holdout)
    assert torch.equal(noisy(full.labels, 10, 0.0), full.labels)


def test_batches_are_an_order_of_all_examples() -> None:
    data = loaded("digits")
    batches = data.batches(64, torch.Generator().manual_seed(0))
    assert len(batches) == len(data.batches(64, torch.Generator().manual_seed(1))) == 20
    assert all(len(batch) == 64 for batch in batches)
    assert len(torch.cat(batches).unique()) == 1280
    with pytest.raises(ValueError, match="batch_size=1301"):
        data.batches(1301, torch.Generator())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_share_the_test_examples(count: int) -> None:
    data = loaded("digits")
    shares = [list(data.test_batches(100, rank, count)) for rank in range(count)]
    assert sum(len(labels) for share in shares for _, labels in share) == 497
    assert sorted(len(labels) for share in shares for _, labels in share) == [97, 100, 100, 100, 100]


# Folders of images.


def image_folder(root: Path, per_class: int = 3) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                array = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(array).save(root / part / name / f"{i}.png")


def test_folders_of_images(tmp_path: Path) -> None:
    image_folder(tmp_path)
    data = loaded("imagenet", tmp_path, data_args=("size=14",))
    assert (data.train_size, data.test_size, data.shape["num_classes"]) == (6, 6, 2)
    uniforms = torch.rand(4, data.draws, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([3, 0, 5, 1])
    data.announce(indices, uniforms)
    images, labels = data.train_batch(indices, uniforms)
    again, _ = data.train_batch(indices, uniforms)
    assert images.shape == (4, 3, 14, 14)
    assert torch.equal(images, again)
    assert labels.tolist() == [1, 0, 1, 1]
    assert [len(y) for _, y in data.test_batches(4)] == [4, 2]


def test_windows_of_an_image(tmp_path: Path) -> None:
    """The window that the uniforms choose out of the image resized to 16 or 30 pixels."""
    rng = np.random.default_rng(0)
    path = tmp_path / "one.png"
    Image.fromarray(rng.integers(0, 256, (20, 33, 3), dtype=np.uint8)).save(path)
    with Image.open(path) as image:
        small, large = (np.asarray(image.resize((s, s), Image.Resampling.BILINEAR)) for s in (16, 30))
    np.testing.assert_array_equal(read_image(path, 14, None), small[1:15, 1:15])
    np.testing.assert_array_equal(read_image(path, 14, (0.9, 0.0, 0.99, 0.9)), small[0:14, 2:16])
    np.testing.assert_array_equal(read_image(path, 14, (0.1, 0.99, 0.0, 0.1)), large[16:30, 0:14][:, ::-1])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_images_are_announced_as_they_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """Every image of an epoch is decoded once, and no more than a batch waits; probes decode their own."""
    image_folder(tmp_path, 5)
    config = configured("resnet50-imagenet", "llqr-sampled").replace(**{
        **{**QUIET, "data_path": str(tmp_path), "data_args": ("size=8",), "channels_last": False},
        **{"model": "mlp", "model_args": ("hidden=4",), "label_smoothing": 0.0, "warmup": "0"},
        **{"batch_size": 4, "probe_size": 2, "llqr": ("probes=1",), "accumulate": accumulate},
        **{"epochs": 8, "precision": "float32"},
    })
    run = trainer(config)
    data = run.data
    assert isinstance(data, FolderData)
    decoded: list[Path] = []

    def counted(path: Path, size: int, draw: Any) -> Any:
        decoded.append(path)
        return read_image(path, size, draw)

    monkeypatch.setattr("llqr_sam_ref.train.data.folder.read_image", counted)
    waiting = []
    for _ in range(8):
        run.train_step()
        waiting.append(len(data.ahead))
    assert waiting == [accumulate] * 8
    data.pool.shutdown()
    assert len(decoded) == 4 * 9 + 2  # nine batches, one of them ahead, and the probe of the only refit


def test_the_same_images_cut_otherwise_are_another_batch(tmp_path: Path) -> None:
    image_folder(tmp_path)
    data = loaded("imagenet", tmp_path, data_args=("size=14",))
    indices, uniforms = torch.tensor([0, 1]), torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    alone, _ = data.train_batch(indices, uniforms)
    data.announce(indices, 1 - uniforms)
    found, _ = data.train_batch(indices, uniforms)
    assert torch.equal(found, alone)
    assert not torch.equal(data.train_batch(indices, 1 - uniforms)[0], alone)


@pytest.mark.parametrize("size", ["size=0", "size=big", "size=1.5"])
def test_a_window_without_a_size_is_refused(tmp_path: Path, size: str) -> None:
    image_folder(tmp_path)
    with pytest.raises(ValueError, match="size=.* is not allowed; pass an integer of at least 1"):
        loaded("imagenet", tmp_path, data_args=(size,))


# What is missing or damaged.


@pytest.mark.parametrize("data", ["fashion-mnist", "cifar10", "cifar100", "imagenet", "text", "parallel"])
def test_data_that_need_files_say_which(tmp_path: Path, data: str) -> None:
    with pytest.raises(ValueError, match="--data-path"):
        loaded(data)
    with pytest.raises(ValueError, match="does not exist"):
        loaded(data, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is missing|is not in|is in"):
        loaded(data, tmp_path)


def test_download_needs_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(ValueError, match="pip install torchvision"):
        loaded("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "other axes", "short"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    files.fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    labels = (tmp_path / "train-labels-idx1-ubyte.gz").read_bytes()
    short = gzip.compress(gzip.decompress(content)[:-5])
    path.write_bytes(
        {"truncated": content[:100], "not gzip": b"x" * 99, "other axes": labels, "short": short}[damage]
    )
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz"):
        loaded("fashion-mnist", tmp_path)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    files.fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(files.idx(np.zeros(7))))
    with pytest.raises(ValueError, match="60 training images but 7 labels"):
        loaded("fashion-mnist", tmp_path)


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    files.fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(files.idx(np.full(60, 11))))
    with pytest.raises(ValueError, match="11 to 11 for 10 classes"):
        loaded("fashion-mnist", tmp_path)


def test_truncated_archives_are_named(tmp_path: Path) -> None:
    files.cifar10(tmp_path)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz"):
        loaded("cifar10", tmp_path)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    data = loaded("imagenet", tmp_path, data_args=("size=14",))
    with pytest.raises(ValueError, match=r"0\.png cannot be decoded"):
        data.train_batch(torch.tensor([0]), torch.rand(1, 4))


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        loaded("digit")
    with pytest.raises(ValueError, match="takes no arguments"):
        loaded("digits", data_args=("size=3",))
    with pytest.raises(ValueError, match="did you mean 'fraction'"):
        loaded("modular", data_args=("fractions=0.3",))
