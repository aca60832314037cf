"""Tiny data sets in the formats of the real ones."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in MNIST's format."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def fashion(root: Path, train: int = 60, test: int = 20, *, packed: bool = True) -> dict[str, Arrays]:
    """Four IDX files of random images and labels; returns what is in them."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    found = {}
    for prefix, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        images[np.arange(n), labels, :] = 255  # a bright row tells the class
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx(array)
            path = root / f"{prefix}-{name}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
        found[prefix] = (images, labels)
    return found


def cifar_batch(n: int, labels: bytes, classes: int, seed: int) -> tuple[bytes, Arrays]:
    """One pickled batch, with byte strings for keys as Python 2 left them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
    targets = rng.integers(0, classes, n)
    batch = {b"data": images, labels: targets.tolist(), b"batch_label": b"a test"}
    return pickle.dumps(batch, protocol=2), (images.reshape(n, 3, 32, 32), targets)


def cifar10(root: Path, n: int = 4, *, packed: bool = True) -> dict[str, Arrays]:
    """CIFAR-10's archive, or its unpacked folder, with n images a batch; returns what is in it."""
    root.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents, arrays = {}, {}
    for seed, name in enumerate(names):
        contents[name], arrays[name] = cifar_batch(n, b"labels", 10, seed)
    if packed:
        with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        (root / "cifar-10-batches-py").mkdir()
        for name, content in contents.items():
            (root / "cifar-10-batches-py" / name).write_bytes(content)
    return arrays


def parallel(root: Path, pairs: int = 40) -> None:
    """A corpus that is translated word for word."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", pairs), ("valid", 8)):
        lengths = rng.integers(1, 9, n)
        sentences = [rng.integers(0, 12, length) for length in lengths]
        (root / f"{part}.de").write_text("".join(" ".join(f"d{w}" for w in s) + "\n" for s in sentences))
        (root / f"{part}.en").write_text("".join(" ".join(f"e{w}" for w in s) + "\n" for s in sentences))
