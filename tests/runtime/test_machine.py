"""What is found out about the machine."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from a3c_bench.runtime import machine, session
from a3c_bench.runtime.machine import memory_mib
from a3c_bench.schema import Config
from a3c_bench.train import train


def test_memory_counts_this_process_and_its_children() -> None:
    before = memory_mib()
    assert before is not None
    assert before > 50.0
    block = np.ones(1 << 28, dtype=np.uint8)
    with_block = memory_mib()
    assert with_block == pytest.approx(before + 256, abs=16)
    child = subprocess.Popen(
        [sys.executable, "-c", "b = bytearray(b'x') * (1 << 28); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    with_child = memory_mib()
    child.communicate(b"\n", timeout=30)
    assert with_child == pytest.approx(with_block + 256 + 4, abs=16)  # and an interpreter
    assert memory_mib() == pytest.approx(with_block, abs=16)
    del block


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "getpid", lambda: 2**30)  # nobody's
    assert memory_mib() is None


def test_rows_tell_the_memory_now_and_then(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SECONDS_BETWEEN_MEMORY", 0.0)
    train(tiny, tmp_path / "often")
    assert (pd.read_csv(tmp_path / "often" / "metrics.csv")["memory_mib"] > 50.0).all()
    monkeypatch.setattr(session, "SECONDS_BETWEEN_MEMORY", 3600.0)
    train(replace(tiny, seed=1), tmp_path / "once")
    assert pd.read_csv(tmp_path / "once" / "metrics.csv")["memory_mib"].notna().tolist() == [True, False, False, False]
