"""Progress: a bar on a terminal, log lines elsewhere, silence when asked."""

import io
import logging
import re
import sys
from typing import Any

import pytest

from a3c_bench.runtime import progress
from a3c_bench.runtime.progress import ProgressDisplay

ROW = {"frames": 250.0, "frames_per_second": 10.0, "mean_return_100_games": 12.34}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_without_a_terminal(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown = ProgressDisplay("CartPole-v1 paac seed 0", 1000, True)
    shown.update(ROW)
    clock.now += 5
    shown.update(ROW | {"frames": 300.0})  # too soon
    clock.now += 6
    shown.update(ROW | {"frames": 1_100.0, "mean_return_100_games": None})
    shown.close()
    assert caplog.messages == [
        "CartPole-v1 paac seed 0: frame 250/1,000 (75 s left), return 12.3, 10 frames/s",
        "CartPole-v1 paac seed 0: frame 1,100/1,000 (0 s left), return -, 10 frames/s",
    ]


@pytest.mark.parametrize(
    ("total", "frames_per_second", "line"),
    [
        (None, 10.0, "x: frame 250, return 12.3, 10 frames/s"),
        (100_250, 10.0, "x: frame 250/100,250 (167 min left), return 12.3, 10 frames/s"),
        (None, 0.0, "x: frame 250, return 12.3, 0 frames/s"),
    ],
)
def test_lines(
    clock: Clock, caplog: pytest.LogCaptureFixture, total: int | None, frames_per_second: float, line: str
) -> None:
    caplog.set_level(logging.INFO)
    ProgressDisplay("x", total, True).update(ROW | {"frames_per_second": frames_per_second})
    assert caplog.messages == [line]


def test_silence(clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = ProgressDisplay("x", 1000, False)
    shown.update(ROW)
    shown.close()
    assert caplog.messages == []
    assert screen.getvalue() == ""


@pytest.mark.parametrize("total", [1000, None])
def test_a_bar_on_a_terminal(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, total: int | None
) -> None:
    caplog.set_level(logging.INFO)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    shown = ProgressDisplay("CartPole-v1 paac", total, True)
    shown.update(ROW)
    shown.close()
    text: Any = screen.getvalue()
    assert "CartPole-v1 paac" in text
    assert "return 12.3  10 frames/s" in text
    assert ("25%" in text) == (total is not None)
    assert text.endswith("\x1b[?25h")  # the cursor is back
    assert caplog.messages == []


@pytest.mark.parametrize("label", ["CartPole-v1 paac seed 0", "CartPole-v1-sees-0-2 gorila seed 10"])
@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_numbers_are_whole_at_any_width(clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int, label: str) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    shown = ProgressDisplay(label, 200_000_000, True)
    shown.update({"frames": 50_000_000.0, "frames_per_second": 123_456.0, "mean_return_100_games": -1234.56})
    shown.close()
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()[-1].rstrip()
    assert len(line) <= width
    assert re.search(r" 25% return -1234\.6  123,456 frames/s -:--:--$", line)
    assert line.startswith(label if width == 200 else label[:10])
    if width >= 100:
        assert line.count("━") + line.count("╸") > 3  # and a bar, where there is room for it


@pytest.mark.parametrize("moment", ["update", "set_aside", "close"])
def test_a_terminal_that_goes_away_ends_the_bar_and_nothing_else(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    class Hanging(Screen):
        hung_up = False

        def write(self, text: str) -> int:
            if self.hung_up:
                raise OSError(5, "Input/output error")
            return super().write(text)

    screen = Hanging()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = ProgressDisplay("x", 1000, True)
    assert shown._bar is not None
    shown.update(ROW)
    screen.hung_up = True
    if moment == "update":
        shown.update(ROW)
    elif moment == "set_aside":
        with shown.set_aside():
            pass
    shown.update(ROW)
    shown.close()
    assert shown._bar is None
