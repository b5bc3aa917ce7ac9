"""What is found out about the machine."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from a3c_bench.runtime import machine, session
from a3c_bench.runtime.machine import memory_mib
from a3c_bench.schema import Config
from a3c_bench.train import train

# In a process of its own: one that has run other tests may have so much freed memory left.
MEASURED = """
import subprocess, sys
from a3c_bench.runtime.machine import memory_mib
block = b"x" * (1 << 28)
found = [memory_mib()]
del block
found.append(memory_mib())
words = "b = b'x' * (1 << 28); print(flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
found.append(memory_mib())
child.communicate(b"\\n")
print(*found, memory_mib())
"""


def test_memory_counts_this_process_and_its_children() -> None:
    words = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, timeout=60)
    with_block, without, with_child, at_last = map(float, words.stdout.split())
    assert without > 5.0
    assert with_block == pytest.approx(without + 256, abs=4)
    assert with_child == pytest.approx(without + 256, abs=16)  # and an interpreter
    assert at_last == pytest.approx(without, abs=4)


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
