import pandas as pd
import pytest

from analysis import load_runs
from analysis.cli import NothingToDrawError
from analysis.gallery import HEADLINE, OTHERS, varying, word

KINDS = {kind.name: kind for kind in (*HEADLINE, *OTHERS)}


def test_only_what_varies_within_an_algorithm_is_drawn(make_run, tmp_path):
    for n in (4, 8):
        make_run(algo="ga3c", overrides=str(n), settings={"n_agents": n})
    make_run(algo="a3c", settings={"n_agents": 16})
    make_run()
    runs = load_runs(tmp_path)
    assert {run.algo for run in varying(runs, word("n_agents"), "n_agents")} == {"ga3c"}
    with pytest.raises(NothingToDrawError, match="with 3 or more values of n_agents"):
        varying(runs, word("n_agents"), "n_agents", at_least=3)


def test_learning_rates_need_three_of_them_and_are_those_that_were_set(make_run, tmp_path):
    for rate in (0.1, 0.01):
        make_run(overrides=str(rate), settings={"optimizer": {"lr": rate}})
    with pytest.raises(NothingToDrawError, match="the learning rate"):
        KINDS["learning_rates"].make(load_runs(tmp_path))
    make_run(overrides="more", settings={"optimizer": {"lr": 0.001}}, best_return=100.0)
    _, table = KINDS["learning_rates"].make(load_runs(tmp_path))
    assert table.set_index("learning_rate")["score"].to_dict() == {0.1: 480.0, 0.01: 480.0, 0.001: 100.0}


def test_advantages_compare_what_the_metrics_say_of_gradients(make_run, tmp_path):
    for i, kind in enumerate(("gae", "nstep")):
        run = make_run(overrides=kind)
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(f"{config}advantage: {{kind: {kind}}}\n")
        row = {"frames": 50, "agent_steps": 0, "updates": 0, "wall_seconds": 1.0, "frames_per_second": 1.0}
        row |= {"pps": 1, "tps": 1, "gradient_norm": 3.0 + i, "gradient_variance": 5.0 + i}
        pd.DataFrame([row]).to_csv(run / "metrics.csv", index=False)
    figure, table = KINDS["advantages"].make(load_runs(tmp_path))
    assert table.set_index("advantage.kind")["gradient_variance"].to_dict() == {"gae": 5.0, "nstep": 6.0}
    assert len(figure.subfigs[0].axes) == 4


def test_training_returns_stand_in_where_nothing_was_evaluated(make_run, tmp_path):
    for n in (4, 8, 16):
        run = make_run(overrides=str(n), settings={"optimizer": {"lr": 0.1 / n}})
        (run / "eval.csv").unlink()
    _, table = KINDS["learning_rates"].make(load_runs(tmp_path))
    assert "training_score" in table
