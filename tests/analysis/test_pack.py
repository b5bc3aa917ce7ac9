"""Finished runs as one file: it holds all that analysis reads, and where it is unpacked the sweep goes on."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from a3c_bench.config import compose
from a3c_bench.runtime.directory import write_status
from a3c_bench.train import train
from analysis import load_runs
from sweeps.pack import main

WORDS = ("experiment=tiny", "algo=paac", "progress=false", "evaluation.n_games=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two finished runs, whose configurations know the directory that they were trained in."""
    sweep = tmp_path_factory.mktemp("elsewhere") / "study"
    for seed in (0, 1):
        words = [*WORDS, f"seed={seed}", f"root={sweep.parent}"]
        assert train(compose(words), sweep / "paac" / f"seed{seed}")["state"] == "finished"
    return sweep


def packed(sweep: Path, file: Path) -> list[str]:
    assert main([str(sweep), "--out", str(file)]) == 0
    with tarfile.open(file) as archive:
        return archive.getnames()


def unpacked(file: Path, place: Path) -> Path:
    place.mkdir()
    subprocess.run(["tar", "-xf", file, "-C", place], check=True)
    return place


def test_what_is_packed_is_what_analysis_reads(trained, tmp_path):
    names = packed(trained, tmp_path / "study.tar.xz")
    tables = ("config.yaml", "status.json", "episodes.csv", "eval.csv", "lag.csv", "lag_histogram.csv", "metrics.csv")
    assert names == [f"study/paac/seed{seed}/{name}" for seed in (0, 1) for name in tables]
    here, there = (load_runs(root) for root in (trained, unpacked(tmp_path / "study.tar.xz", tmp_path / "runs")))
    for one, other in zip(here, there, strict=True):
        assert (one.algo, one.env, one.seed, one.status) == (other.algo, other.env, other.seed, other.status)
        assert other.config == {**one.config, "root": "runs"} != one.config
        for table in ("episodes", "metrics", "lag", "lag_histogram", "evaluations"):
            assert len(getattr(one, table)()) > 0
            assert getattr(one, table)().equals(getattr(other, table)())


def test_a_file_says_nothing_of_where_it_was_made(trained, tmp_path):
    packed(trained, tmp_path / "study.tar.xz")
    for file in unpacked(tmp_path / "study.tar.xz", tmp_path / "runs").rglob("*.*"):
        assert str(trained.parent) not in file.read_text()


def test_the_same_runs_give_the_same_file(trained, tmp_path):
    for name in ("one.tar.xz", "other.tar.xz"):
        packed(trained, tmp_path / name)
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "other.tar.xz").read_bytes()


def test_a_sweep_skips_there_what_was_finished_here(trained, tmp_path):
    packed(trained, tmp_path / "study.tar.xz")
    place = unpacked(tmp_path / "study.tar.xz", tmp_path / "runs")
    run = place / "study" / "paac" / "seed1"
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert train(compose([*WORDS, "seed=1"]), run)["state"] == "finished"
    assert {name: (run / name).read_bytes() for name in before} == before


def test_runs_that_are_not_over_are_named_and_failed_ones_are_taken(make_run, tmp_path, capsys):
    for seed, state in enumerate(("finished", "failed", "running", "preempted")):
        make_run(seed=seed, state=state)
    names = packed(tmp_path / "runs" / "demo", tmp_path / "demo.tar.xz")
    assert {Path(name).parent.name for name in names} == {"seed0", "seed1"}
    told = capsys.readouterr()
    assert [Path(line.split(" is left out: ")[0]).name for line in told.err.splitlines()] == ["seed2", "seed3"]
    assert "demo.tar.xz: 2 runs, " in told.out


def test_bad_input_is_one_sentence_and_no_file(make_run, tmp_path, capsys):
    run = make_run()
    root, file = str(tmp_path / "runs"), tmp_path / "runs.tar.xz"
    (tmp_path / "empty").mkdir()

    def refused(*words: str) -> str:
        assert main(words) == 2
        assert not file.exists()
        assert list(tmp_path.glob(".*")) == []
        return capsys.readouterr().err.replace(str(tmp_path), "")

    assert refused(root, "--out", str(tmp_path / "runs.zip")) == "/runs.zip must end with .tar.xz.\n"
    assert refused(str(tmp_path / "empty"), "--out", str(file)) == "/empty holds no run that is over.\n"
    assert refused(str(tmp_path / "nowhere"), "--out", str(file)) == "/nowhere holds no run that is over.\n"
    nowhere = str(tmp_path / "nowhere" / "runs.tar.xz")
    assert refused(root, "--out", nowhere) == "/nowhere/runs.tar.xz cannot be written: No such file or directory.\n"
    (run / "config.yaml").write_text("a: [")
    assert refused(root, "--out", str(file)).startswith("A config.yaml below /runs is damaged: while parsing ")
    write_status(run, state="running")
    assert refused(root, "--out", str(file)).endswith("/runs holds no run that is over.\n")
