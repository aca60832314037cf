"""A checkpoint is whole or not there, says what it is, and is never trusted with code."""

from __future__ import annotations

import os
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llqr_sam_ref.train import checkpoint
from llqr_sam_ref.train.checkpoint import NAME, PREVIOUS, CheckpointError


def content(step: int, size: int = 100) -> dict[str, Any]:
    return {
        "config": {"lr": 0.1},
        "step": step,
        "model": {"w": torch.full((size,), float(step))},
        "optimizer": {"state": {}, "param_groups": []},
        "scaler": {},
        "meters": [0.0, 0.0, 0.0],
        "history": [],
        "seconds": 1.0,
    }


def quiet(text: str) -> None:
    raise AssertionError(text)


def test_the_newest_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, quiet) is None
    for step in (1, 2, 3):
        path = checkpoint.save(tmp_path, content(step))
        assert path == tmp_path / NAME
        loaded = checkpoint.load(tmp_path, quiet)
        assert loaded is not None
        assert loaded["step"] == step
        assert torch.equal(loaded["model"]["w"], torch.full((100,), float(step)))
    assert checkpoint.read(tmp_path / PREVIOUS)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((NAME, PREVIOUS))


@pytest.mark.parametrize("keep", [0, 1, 10, 300, -1])
def test_a_truncated_file_falls_back_to_the_one_before(tmp_path: Path, keep: int) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, content(step))
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:keep])
    said: list[str] = []
    loaded = checkpoint.load(tmp_path, said.append)
    assert loaded is not None
    assert loaded["step"] == 1
    assert len(said) == 1
    assert NAME in said[0]
    assert "truncated or damaged" in said[0]


def test_flipped_bits_do_not_go_unnoticed(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, content(step, 1000))
    path = tmp_path / NAME
    damaged = bytearray(path.read_bytes())
    place = bytes(damaged).index(torch.full((4,), 2.0).numpy().tobytes())
    damaged[place] ^= 255
    path.write_bytes(bytes(damaged))
    said: list[str] = []
    loaded = checkpoint.load(tmp_path, said.append)
    assert loaded is not None
    assert (loaded["step"], len(said)) == (1, 1)


def test_nothing_readable_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, content(1))
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(CheckpointError, match="start anew in another folder"):
        checkpoint.load(tmp_path, quiet)


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """The newest still has its first name; the one before is there too."""
    for step in (1, 2):
        checkpoint.save(tmp_path, content(step))
    (tmp_path / NAME).rename(tmp_path / ".checkpoint.new.pt")
    loaded = checkpoint.load(tmp_path, quiet)
    assert loaded is not None
    assert loaded["step"] == 2


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was here"),)

    torch.save({**content(1), "format": checkpoint.FORMAT, "version": 1, "model": Evil()}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
        checkpoint.load(tmp_path, quiet)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": "something else"}, "not a checkpoint of a run"),
        ({"version": 99}, "version 99, and this package reads up to 2"),
        ({"optimizer": None}, r"\['optimizer'\]"),
    ],
)
def test_other_files_are_named(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    whole = {"format": checkpoint.FORMAT, "version": 1, **content(1), **changes}
    torch.save({k: v for k, v in whole.items() if v is not None}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=word):
        checkpoint.read(tmp_path / NAME)


def test_pickles_and_lists_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(pickle.dumps({"format": checkpoint.FORMAT}))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.read(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.read(tmp_path / "nowhere.pt")


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: writing fails in the kernel, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, content(step))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with disk_of(50_000), pytest.raises(CheckpointError, match="step 3.*make room"):
        checkpoint.save(tmp_path, content(3, 100_000))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_interrupt_while_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, content(1))

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, content(2))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert checkpoint.read(tmp_path / NAME)["step"] == 1
