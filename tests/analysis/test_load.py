import ast
import json
import logging
from pathlib import Path

import pytest
import yaml

import analysis
from analysis import load_runs
from analysis.load import load_and_count
from analysis.run import EPISODE_COLUMNS, EVALUATION_COLUMNS, HISTOGRAM_COLUMNS, LAG_COLUMNS, METRIC_COLUMNS
from analysis.table import main as table_main


def test_a_run_says_what_it_is(make_run):
    path = make_run(algo="ga3c", seed=2, game="Pong", env="Pong")
    (run,) = load_runs(path.parent.parent)
    assert (run.path, run.algo, run.env, run.seed, run.label) == (path, "ga3c", "Pong", 2, "")
    assert run.state == "finished"
    assert run.config["algo"]["n_envs"] == 32
    assert run.status["machine"]["cpu"] == "Imaginary CPU 9000"


def test_what_is_seen_belongs_to_the_task(make_run):
    path = make_run()
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["env"]["observed"] = [0, 2]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (run,) = load_runs(path)
    assert run.env == f"{config['env']['id']}-sees-0-2"


def test_every_run_is_found_once_below_overlapping_roots(make_run, tmp_path):
    paths = [make_run(algo=algo, seed=seed) for algo in ("a3c", "paac") for seed in (0, 1)]
    runs = load_runs(tmp_path / "runs", tmp_path / "runs" / "demo", str(paths[0]))
    assert [run.path for run in runs] == paths


def test_a_root_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        load_runs(tmp_path / "nowhere")


def test_a_directory_without_runs_gives_none(tmp_path):
    assert load_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", "algo: {name: paac", "is left out"),
        ("config.yaml", "just words", "config.yaml does not hold keys and values"),
        ("config.yaml", "algo: {name: paac}\nenv: {id: X}\n", "config.yaml has no key 'seed'"),
        ("config.yaml", "algo: null\nenv: {id: X}\nseed: 0\n", "is left out"),
        ("config.yaml", "", "does not hold keys and values"),
        ("status.json", '{"state": "fini', "is left out"),
        ("status.json", "[]", "status.json does not hold keys and values"),
    ],
)
def test_a_broken_run_is_named_and_left_out(make_run, tmp_path, caplog, file, content, reason):
    broken, good = make_run(seed=0), make_run(seed=1)
    (broken / file).write_text(content)
    with caplog.at_level(logging.WARNING):
        runs = load_runs(tmp_path)
    assert [run.path for run in runs] == [good]
    assert str(broken) in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("file", ["config.yaml", "status.json"])
def test_a_run_without_one_of_its_two_files_is_named(make_run, tmp_path, caplog, file):
    path = make_run()
    (path / file).unlink()
    with caplog.at_level(logging.WARNING):
        assert load_runs(tmp_path) == []
    assert f"{path} is left out: it holds no {file}" in caplog.text


def test_the_configuration_of_other_tools_is_no_run_and_no_warning(make_run, tmp_path, caplog):
    path = make_run()
    for other in (tmp_path / ".hydra", path / "wandb" / "files"):
        other.mkdir(parents=True)
        (other / "config.yaml").write_text("a: 1\n")
    with caplog.at_level(logging.WARNING):
        assert [run.path for run in load_runs(tmp_path)] == [path]
    assert caplog.text == ""


# --- labels


def test_seeds_of_one_configuration_have_no_label(make_run, tmp_path):
    make_run(seed=0)
    make_run(seed=1)
    make_run(seed=0, algo="a3c", settings={"n_envs": 8})  # another algorithm's settings make no label
    assert {run.label for run in load_runs(tmp_path)} == {""}


def test_what_a_run_was_told_beside_its_settings_makes_no_label(make_run, tmp_path):
    for seed, words in enumerate(["retry_diverged: true", "retry_diverged: false\ntuned_for: CartPole-v1"]):
        path = make_run(seed=seed)
        (path / "config.yaml").write_text((path / "config.yaml").read_text() + words + "\n")
    assert [run.label for run in load_runs(tmp_path)] == ["", ""]


def test_a_label_names_the_settings_that_differ(make_run, tmp_path):
    make_run(overrides="a", settings={"n_envs": 8, "lr": 0.5})
    make_run(overrides="b", settings={"n_envs": 16, "lr": 0.5, "clip": None})
    assert [run.label for run in load_runs(tmp_path)] == ["n_envs=8, clip=unset", "n_envs=16, clip=null"]


def test_keys_with_the_same_ending_keep_what_tells_them_apart(make_run, tmp_path):
    make_run(overrides="a", settings={"optimizer": {"kind": "adam"}, "psi": {"kind": "gae"}})
    make_run(overrides="b", settings={"optimizer": {"kind": "sgd"}, "psi": {"kind": "td"}})
    assert [run.label for run in load_runs(tmp_path)] == [
        "optimizer.kind=adam, psi.kind=gae",
        "optimizer.kind=sgd, psi.kind=td",
    ]


def test_sweeps_are_told_apart_by_name_only_if_they_repeat_a_point(make_run, tmp_path):
    make_run(name="one", seed=0)
    make_run(name="two", seed=1)
    assert {run.label for run in load_runs(tmp_path)} == {""}
    make_run(name="two", seed=0)
    assert [run.label for run in load_runs(tmp_path)] == ["name=one", "name=two", "name=two"]


# --- tables


def test_tables_hold_what_the_files_say(make_run):
    path = make_run(n_games=3)
    (path / "episodes.csv").write_text(
        "frames,agent_steps,wall_seconds,episode_return,episode_length\n40,10,0.5,-1.5,10\n40,10,0.5,2,9\n80,20,1,3,10\n"
    )
    (path / "metrics.csv").write_text(
        "frames,agent_steps,updates,wall_seconds,frames_per_second,pps,tps,loss\n1,1,1,1,2,3,4,\n"
    )
    (run,) = load_runs(path)
    assert run.episodes()["episode_return"].tolist() == [-1.5, 2.0, 3.0]
    assert run.episodes()["frames"].tolist() == [40, 40, 80]
    assert run.metrics()["pps"].tolist() == [3.0]
    assert run.evaluations()["final"].tolist() == [False, False, True, True]


def test_lag_tables_hold_what_the_files_say(make_run, caplog):
    path = make_run()
    head = ",".join(LAG_COLUMNS)
    (path / "lag.csv").write_text(f"{head},lag_updates_mean,lag_kl_nats_mean\n20,20,2,2,1.5,\n10,10,1,1,x,\n")
    (path / "lag_histogram.csv").write_text(
        "unit,lower,upper,samples\nlag_updates,0,1e-09,7\nlag_frames,1e9,inf,2\nlag_frames,,3,2\n"
    )
    (run,) = load_runs(path)
    lag = run.lag()
    assert lag["frames"].tolist() == [10.0, 20.0]  # sorted
    assert lag["lag_updates_mean"].tolist()[1] == 1.5
    assert lag["lag_updates_mean"].isna().tolist() == [True, False]  # "x" is no number
    assert lag["lag_kl_nats_mean"].isna().all()
    with caplog.at_level(logging.WARNING):
        bins = run.lag_histogram()
    assert bins.values.tolist() == [["lag_updates", 0.0, 1e-9, 7.0], ["lag_frames", 1e9, float("inf"), 2.0]]
    assert "1 damaged rows" in caplog.text


def test_half_a_row_at_the_end_is_dropped_without_a_word(make_run, caplog):
    path = make_run()
    file = path / "episodes.csv"
    (run,) = load_runs(path)
    whole = run.episodes()
    with file.open("a") as opened:
        opened.write("999999,999999,50.0,1")  # would read as a return of 1 instead of, say, 187
    with caplog.at_level(logging.WARNING):
        assert run.episodes().equals(whole)
    assert caplog.text == ""


def test_missing_and_empty_files_are_empty_tables(make_run):
    path = make_run()
    (path / "episodes.csv").write_text("frames,agent_st")  # killed inside the header
    (path / "eval.csv").write_text("")
    (run,) = load_runs(path)
    for table, columns in (
        (run.episodes(), EPISODE_COLUMNS),
        (run.metrics(), METRIC_COLUMNS),
        (run.evaluations(), EVALUATION_COLUMNS),
        (run.lag(), LAG_COLUMNS),
        (run.lag_histogram(), HISTOGRAM_COLUMNS),
    ):
        assert table.empty
        assert list(table.columns) == list(columns)


def test_a_file_with_a_header_only_is_an_empty_table(make_run):
    path = make_run()
    (path / "episodes.csv").write_text(",".join(EPISODE_COLUMNS) + "\n")
    (run,) = load_runs(path)
    assert run.episodes().empty
    assert (run.episodes().dtypes == "float64").all()


def test_damaged_rows_are_counted_and_dropped(make_run, caplog):
    path = make_run()
    header = ",".join(EPISODE_COLUMNS)
    (path / "episodes.csv").write_bytes(f"{header}\n1,1,1,10,1\n".encode() + b"\0\0\0,\xff,x,,\n" + b"3,3,3,30,3\n")
    (run,) = load_runs(path)
    with caplog.at_level(logging.WARNING):
        assert run.episodes()["episode_return"].tolist() == [10.0, 30.0]
    assert "1 damaged rows" in caplog.text


def test_a_table_without_its_columns_is_named_and_empty(make_run, caplog):
    path = make_run()
    (path / "episodes.csv").write_text("step,reward\n1,2\n")
    (run,) = load_runs(path)
    with caplog.at_level(logging.WARNING):
        assert run.episodes().empty
    assert "has no column frames" in caplog.text


def test_rows_out_of_order_are_sorted(make_run):
    path = make_run()
    (path / "episodes.csv").write_text(",".join(EPISODE_COLUMNS) + "\n5,5,5,50,1\n3,3,3,30,1\n5,5,5,51,1\n")
    (run,) = load_runs(path)
    assert run.episodes()["episode_return"].tolist() == [30.0, 50.0, 51.0]


def test_a_status_without_a_state_is_unknown(make_run):
    path = make_run()
    (path / "status.json").write_text(json.dumps({}))
    assert load_runs(path)[0].state == "unknown"


def test_analysis_imports_nothing_of_the_suite():
    for file in Path(analysis.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "a3c_bench"], file


def test_a_label_of_many_settings_gives_way_to_the_name(make_run, tmp_path):
    many = {f"a_setting_with_a_long_name_{i}": 1 for i in range(5)}
    for name, settings in (("one", many), ("two", dict.fromkeys(many, 2))):
        for seed in (0, 1):
            make_run(name=name, seed=seed, settings=settings)
    assert [run.label for run in load_runs(tmp_path)] == ["name=one"] * 2 + ["name=two"] * 2
    make_run(name="two", seed=2, settings=many)  # the name alone would mix two configurations
    assert "a_setting_with_a_long_name_0=1" in load_runs(tmp_path)[-1].label


def test_a_word_that_says_little_keeps_the_one_before_it(make_run, tmp_path):
    for kind in ("adam", "rmsprop"):
        make_run(overrides=kind, settings={"optimizer": {"kind": kind}})
    assert {run.label for run in load_runs(tmp_path)} == {"optimizer.kind=adam", "optimizer.kind=rmsprop"}


# --- links


def test_runs_behind_links_are_found_once_and_loops_end(make_run, tmp_path):
    kept = make_run(seed=0, name="scratch")
    linked = tmp_path / "links" / "CartPole-v1" / "paac"
    linked.mkdir(parents=True)
    (linked / "seed0").symlink_to(kept)
    (linked / "again").symlink_to(kept)
    (linked / "loop").symlink_to(tmp_path / "links")
    assert [run.seed for run in load_runs(tmp_path / "links")] == [0]
    assert [run.seed for run in load_runs(tmp_path / "links", tmp_path / "runs")] == [0]
    (tmp_path / "all").symlink_to(tmp_path / "links")
    assert [run.path for run in load_runs(tmp_path / "all")] == [tmp_path / "all" / "CartPole-v1" / "paac" / "again"]


def test_roots_that_overlap_or_are_links_to_each_other_each_hold_runs(make_run, tmp_path):
    path = make_run(seed=0)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    (tmp_path / "none").mkdir()
    roots = [tmp_path / "runs", path, tmp_path / "runs" / "demo", tmp_path / "link", tmp_path / "none"]
    runs, counts = load_and_count(roots)
    assert ([run.path for run in runs], counts) == ([path], [1, 1, 1, 1, 0])
    assert table_main([*map(str, roots[:-1]), "--out", str(tmp_path / "tables")]) == 0
    assert table_main([*map(str, roots), "--out", str(tmp_path / "tables")]) == 2
