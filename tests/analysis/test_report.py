"""The page, read by a program and opened in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import gallery
from analysis.report import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Runs within the page: what a reader would see go wrong.
_PROBE = """<script>addEventListener('load', () => {
  const images = [...document.images];
  document.documentElement.dataset.found = JSON.stringify({
    images: images.length, broken: images.filter(image => !image.complete || image.naturalWidth === 0).length,
    shrunk: images.filter(image => image.clientWidth < 300).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    requests: performance.getEntriesByType('resource').filter(one => !one.name.startsWith('data:')).length,
    height: document.documentElement.scrollHeight});
});</script>"""


class Page(HTMLParser):
    """Titles, text and images of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text: list[str] = []
        self.chapters: list[str] = []
        self.images: list[str] = []
        self.tag = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        if tag == "img":
            self.images.append(dict(attrs)["alt"])
            assert dict(attrs)["src"].startswith("data:image/png;base64,")

    def handle_data(self, data):
        self.text.append(data)
        if self.tag == "h2" and data.strip():
            self.chapters.append(data)


def write_lag_and_metrics(run: Path, lag: float) -> None:
    counters = {"frames": [50, 10_000], "agent_steps": 0, "updates": 0, "wall_seconds": [1.0, 20.0]}
    table = pd.DataFrame(counters).assign(**{f"lag_updates_{part}": lag for part in ("mean", "p50", "p95", "max")})
    table.to_csv(run / "lag.csv", index=False)
    bins = {"unit": "lag_updates", "lower": [0, 1], "upper": [1, 1000], "samples": [100, 100 * lag]}
    pd.DataFrame(bins).to_csv(run / "lag_histogram.csv", index=False)
    metrics = pd.DataFrame(counters).assign(frames_per_second=1, pps=1, tps=1, entropy_nats=[0.6, 0.5])
    metrics.to_csv(run / "metrics.csv", index=False)


def write_sweep(root: Path, write_run) -> Path:
    """Two methods with three seeds each, a run that failed and one that is broken."""
    for seed in range(3):
        for algo, lag in (("paac", 0.0), ("ga3c", 20.0)):
            run = write_run(root, algo=algo, seed=seed, settings={"optimizer": {"lr": 0.1 if algo == "paac" else 0.2}})
            write_lag_and_metrics(run, lag)
    failed = write_run(root, algo="a3c", state="failed", n_games=0)
    status = json.loads((failed / "status.json").read_text())
    (failed / "status.json").write_text(json.dumps(status | {"error": "Traceback\nValueError: <no> room left"}))
    (write_run(root, algo="dqn") / "config.yaml").write_text("broken: [")
    return root / "demo"


@pytest.fixture(scope="module")
def report(tmp_path_factory, run_writer) -> Path:
    """The folder of a report."""
    folder = tmp_path_factory.mktemp("report")
    assert main([str(write_sweep(folder / "runs", run_writer)), "--out", str(folder)]) == 0
    return folder


def test_the_report_holds_all_of_it(report):
    page = Page(report / "index.html")
    text = " ".join(page.text)
    assert page.chapters == [
        *("What was run", "Headline figures", "Tables", "Other figures", "Not drawn"),
        *("Runs that failed or are not finished", "How to reproduce", "Hardware and versions"),
    ]
    assert "7 runs of 3 methods in 1 environment (CartPole-v1): 6 finished, 1 failed." in text
    assert [title.split(".")[0] for title in page.images[:3]] == [
        *("Return against frames and wall-clock time", "Policy lag", "Speed"),
    ]
    assert "ValueError: <no> room left" in text  # escaped, and read back
    assert "dqn/seed0 is left out: while parsing" in text.split("Named while reading:")[1]
    assert "Over-estimation of Q: None of the 7 runs found has estimated Q" in text
    assert "Imaginary CPU 9000, 2 cores, no GPU" in text
    assert "algo.optimizer.lr" in text
    shown = {
        report / f"{name}.{suffix}" for name in ("curves", "lag", "throughput") for suffix in ("png", "pdf", "csv")
    }
    assert shown <= set(report.iterdir())
    assert {"cost.csv", "cost.md", "cost.tex", "reproduce.sh"} <= {file.name for file in report.iterdir()}
    assert len(page.images) == len(list(report.glob("*.png"))) == len(list(report.glob("*.pdf")))


def test_a_figure_that_fails_costs_no_page(make_run, tmp_path, monkeypatch, capsys):
    def fail(runs):
        raise ValueError("nothing fits")

    monkeypatch.setattr(gallery, "HEADLINE", (gallery.FigureKind("curves", "Return", fail),))
    monkeypatch.setattr(gallery, "OTHERS", ())
    run = make_run()
    assert main([str(run)]) == 0
    assert capsys.readouterr().err.splitlines() == [  # the page says what was left out
        "1 run of 1 configuration.",
        "Drawing: Return.",
        "Making the tables.",
        "Writing the page.",
    ]
    assert "Return: It failed: ValueError: nothing fits" in " ".join(Page(run / "report" / "index.html").text)


@pytest.mark.parametrize("words", [[], pytest.param(["--page-only"], marks=pytest.mark.slow)])
def test_a_report_that_fails_leaves_the_old_one(make_run, tmp_path, monkeypatch, draft, words):
    monkeypatch.setattr(gallery, "OTHERS", ())
    run, out = make_run(), tmp_path / "out"
    assert main([str(run), "--out", str(out), *words]) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    (run / "status.json").write_text((run / "status.json").read_text().replace("finished", "failed"))
    monkeypatch.setattr("analysis.page.write", fail)
    assert main([str(run), "--out", str(out), *words]) == 2
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_page_alone_links_to_no_files(make_run, tmp_path, monkeypatch, draft, capsys):
    monkeypatch.setattr(gallery, "OTHERS", ())
    run = make_run()
    assert main([str(run), "--page-only", "--out", str(tmp_path / "out")]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["index.html"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / "index.html")]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<img " in page
    assert "Beside this page" not in page


def test_a_root_without_runs_is_one_sentence_and_no_page(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "report").exists()


def look(file: Path, width: int, *arguments: str) -> str:
    """What Chromium says of a page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={file.parent / 'profile'}", f"--window-size={width},900", *arguments, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_whole(report, width):
    file = report / "index.html"
    probed = file.with_name("probed.html")
    probed.write_text(file.read_text().replace("</body>", f"{_PROBE}</body>"))
    shown = look(probed, width, "--dump-dom")
    found = json.loads(re.search(r'data-found="([^"]*)"', shown).group(1).replace("&quot;", '"'))
    assert found["images"] >= 6
    assert {key: found[key] for key in ("broken", "shrunk", "overflow", "requests")} == {
        "broken": 0, "shrunk": 0, "overflow": 0, "requests": 0
    }  # fmt: skip
    assert found["height"] > 3000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_screenshot_is_no_blank_page(report, tmp_path):
    look(report / "index.html", 1000, f"--screenshot={tmp_path / 'page.png'}")
    pixels = imread(tmp_path / "page.png")[..., :3]
    assert 0.5 < pixels.mean() < 0.99
    assert np.ptp(pixels) > 0.9
