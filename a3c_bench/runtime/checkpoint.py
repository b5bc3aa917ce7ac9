"""Checkpoints: one file with everything that a run needs to go on, loaded without running code from it."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from a3c_bench.errors import CheckpointError

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values beside `path`, then renames: a kill leaves the old file or the new one.

    Raises:
        OSError: the disk is full; the old checkpoint stays.
    """
    aside = path.with_name(path.name + ".new")
    try:
        with open(aside, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch reports a full disk as a RuntimeError of its zip writer
            raise OSError(28, f"cannot write {path}: {error}") from error
        raise


def copy(path: Path, to: Path) -> None:
    """Copies a checkpoint; a kill leaves the old file or the new one.

    Raises:
        OSError: the disk is full; the old checkpoint stays.
    """
    aside = to.with_name(to.name + ".new")
    try:
        shutil.copyfile(path, aside)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, to)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint.

    Raises:
        CheckpointError: no such file, not one of ours, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint at {path}.") from None
    except Exception:  # damaged bytes make the unpickler fail in any way: IndexError, AssertionError, struct.error ...
        raise CheckpointError(f"{path} is damaged or is no checkpoint: remove it to start the run anew.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version (format {FORMAT}): remove it to start anew.")
    return content


def updates_of(path: Path) -> float:
    """When a checkpoint was saved; infinite if it is damaged."""
    try:
        return float(load(path)["counters"]["updates"])
    except CheckpointError:
        return float("inf")
