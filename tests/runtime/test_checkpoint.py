"""Checkpoints: all or nothing when written, and nothing but data when read."""

import os
import pickle
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from a3c_bench.errors import CheckpointError
from a3c_bench.runtime import checkpoint


class MakesADirectory:
    """Pickled code: unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "latest.pt"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk is to one file; Python ignores the signal that goes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_round_trip(file: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(7)
    content = {
        "counters": {"frames": 2**40, "updates": 3},
        "best_return": float("-inf"),
        "recent_returns": [1.0, -21.0],
        "none": None,
        "parts": {"optimizer": optimizer.state_dict(), "generator": generator.get_state()},
        "counts": torch.arange(5),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    }
    checkpoint.save(file, content)
    loaded = checkpoint.load(file)
    assert loaded.pop("format") == checkpoint.FORMAT
    state = loaded["parts"]["optimizer"]["state"][0]
    assert loaded.keys() == content.keys()
    for key in ("counters", "best_return", "recent_returns", "none"):
        assert loaded[key] == content[key]
    torch.testing.assert_close(state, optimizer.state_dict()["state"][0], rtol=0, atol=0)
    torch.testing.assert_close(loaded["parts"]["generator"], generator.get_state(), rtol=0, atol=0)
    torch.testing.assert_close(loaded["counts"], torch.arange(5), rtol=0, atol=0)
    assert loaded["bytes"].dtype == torch.uint8
    assert os.listdir(file.parent) == ["latest.pt"]


@pytest.mark.parametrize("size", [0, 100, 5_000, 15_000])
def test_a_full_disk_keeps_the_old_one(file: Path, size: int) -> None:
    checkpoint.save(file, {"x": 1})
    before = file.read_bytes()
    with largest_file(size), pytest.raises(OSError, match=r"File too large|cannot write"):
        checkpoint.save(file, {"x": torch.randn(5_000)})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["latest.pt"]
    assert checkpoint.load(file)["x"] == 1


@pytest.mark.parametrize(
    "failure", [RuntimeError("unexpected pos 64 vs 0"), OSError(28, "No space"), KeyboardInterrupt()]
)
def test_a_failing_write_keeps_the_old_one(file: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    checkpoint.save(file, {"x": 1})

    def half(content: Any, aside: Any) -> None:
        aside.write(b"half")
        raise failure

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises((OSError, KeyboardInterrupt)) as raised:
        checkpoint.save(file, {"x": 2})
    assert isinstance(raised.value, KeyboardInterrupt) == isinstance(failure, KeyboardInterrupt)
    assert checkpoint.load(file)["x"] == 1
    assert os.listdir(file.parent) == ["latest.pt"]


def test_missing(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*latest\.pt\."):
        checkpoint.load(file)


def test_damaged(file: Path) -> None:
    """Cut anywhere, or made of anything: one error, whatever the unpickler makes of it."""
    checkpoint.save(file, {"x": torch.randn(50), "y": [1, None, {"z": "text"}]})
    whole = file.read_bytes()
    rng = random.Random(0)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(50)]
    damaged += [rng.randbytes(rng.randrange(200)) for _ in range(50)]
    for content in [b"", b"text\n", b"PK\x03\x04", pickle.dumps({"format": 1}), *damaged]:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged or is no checkpoint"):
            checkpoint.load(file)


def test_a_flipped_bit_in_the_weights_is_seen(file: Path) -> None:
    checkpoint.save(file, {"x": torch.full((50,), 1.5)})
    content = bytearray(file.read_bytes())
    at = content.find(b"\x00\x00\xc0\x3f" * 50)  # 1.5 as float32
    assert at > 0
    content[at + 2] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(file)


def test_a_directory_is_no_checkpoint(file: Path) -> None:
    file.mkdir()
    with pytest.raises(CheckpointError, match="is damaged or is no checkpoint"):
        checkpoint.load(file)


@pytest.mark.parametrize("foreign", [{"model": torch.zeros(2)}, {"format": 0}, {"format": "1"}, torch.zeros(2), [1]])
def test_what_others_wrote(file: Path, foreign: Any) -> None:
    torch.save(foreign, file)
    with pytest.raises(CheckpointError, match=r"latest\.pt is no checkpoint of this version"):
        checkpoint.load(file)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_never_run(file: Path, tmp_path: Path, writer: str) -> None:
    made = tmp_path / "made"
    content = {"format": checkpoint.FORMAT, "x": MakesADirectory(made)}
    if writer == "torch":
        torch.save(content, file)
        torch.load(file, weights_only=False)
    else:
        file.write_bytes(pickle.dumps(content))
        pickle.loads(file.read_bytes())
    assert made.is_dir()  # so the code works
    made.rmdir()
    with pytest.raises(CheckpointError, match="is damaged or is no checkpoint"):
        checkpoint.load(file)
    assert not made.exists()
