"""benchmarks/gpu.py: what it compares and counts, by hand; steps that hang; and all of it, tiny, on a CPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import step_targets
import torch
from tape import CpuTape

from a3c_bench.acting.policy import Policy
from a3c_bench.core import compiled
from a3c_bench.core.networks import ActorCritic
from a3c_bench.runtime.machine import usable_cores
from a3c_bench.schema import Config
from benchmarks import gpu, gpu_figures, gpu_steps
from benchmarks.gpu import Job, Step
from benchmarks.gpu_steps import Trained

ROOT = Path(__file__).parents[1]


def make_job(out: Path, step: str = "", seconds: float = 60.0) -> Job:
    return Job(step, out, "cpu", True, "0123abc", seconds, time.monotonic())


def at(*theta: float, updates: int = 50) -> Trained:
    return Trained(torch.tensor(theta, dtype=torch.float64), updates, 1.0)


def test_devices_agree_within_the_tolerance_and_a_tenth_of_the_way() -> None:
    first, on_cpu = torch.tensor([3.0, 3.0], dtype=torch.float64), at(3.0, 4.0)  # of norm 5, one away from the first
    found = gpu_steps.compared(first, on_cpu, at(3.0, 4.0004))
    assert found["difference"] == pytest.approx(0.0004 / 5.0)
    assert found["moved"] == pytest.approx(0.2)
    assert found["agrees"]
    assert not gpu_steps.compared(first, on_cpu, at(3.0, 4.0006))["agrees"]  # 1.2e-4 of the norm
    assert not gpu_steps.compared(first, on_cpu, at(3.0, 4.0, updates=51))["agrees"]
    assert not gpu_steps.compared(first, on_cpu, at(3.0, float("nan")))["agrees"]
    hardly = torch.tensor([3.0, 3.999], dtype=torch.float64)  # theta moved by 0.001
    assert gpu_steps.compared(hardly, on_cpu, at(3.0, 4.00009))["agrees"]
    assert not gpu_steps.compared(hardly, on_cpu, at(3.0, 4.0002))["agrees"]  # a fifth of the way


@pytest.mark.parametrize("algo", ["paac", "ga3c", "dqn"])
def test_two_runs_act_alike_and_part_when_they_learn_otherwise(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one device the difference is 0; with longer steps on the second it is not, and the step says so."""
    monkeypatch.setattr(gpu_steps, "N_UPDATES", (6,))
    job = make_job(tmp_path, f"agree_{algo}")
    gpu_steps.agree(job, algo, "eager", "graphs")  # of which no CPU has the latter: once
    train, rates = gpu_steps.train, iter((0.001, 0.0015))

    def train_otherwise(config: Config, directory: Path) -> dict[str, Any]:
        optimizer = replace(config.algo.optimizer, lr=next(rates))
        return train(replace(config, algo=replace(config.algo, optimizer=optimizer)), directory)

    monkeypatch.setattr(gpu_steps, "train", train_otherwise)
    other = make_job(tmp_path, f"agree_{algo}_otherwise")
    gpu_steps.agree(other, algo, "eager")
    alike, otherwise = gpu.read_results(tmp_path)
    assert (alike["mode"], alike["difference"], alike["agrees"]) == ("eager", 0.0, True)
    assert alike["updates"] == alike["updates_on_device"] >= 6
    assert not otherwise["agrees"]
    assert otherwise["difference"] > 1e-4
    assert not list(tmp_path.rglob("*.pt"))


def test_actions_that_are_drawn_elsewhere_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "sample_actions", lambda log_probs, generator, *part: None)  # nobody uses this one
    config = gpu_steps.agreeing_configuration(make_job(tmp_path), "paac", 1)
    with pytest.raises(RuntimeError, match="paac drew 20 actions, 0 of them alike"):
        gpu_steps.train_alike(config, tmp_path / "run")


def test_rates_are_those_of_the_warm_rows_that_learn() -> None:
    rows = pd.DataFrame(
        {
            "wall_seconds": [1.0, 2.0, 4.0, 6.0],
            "agent_steps": [10, 100, 300, 700],
            "updates": [0, 0, 10, 30],
            "share_simulate": [1.0, 1.0, 0.5, 0.25],
            "share_train": [0.0, 0.0, 0.5, 0.75],
            "share_wait": [float("nan")] * 4,
        }
    )
    found = gpu_steps.rates(rows, 1.5)
    assert (found["agent_steps_per_second"], found["updates_per_second"]) == (200.0, 10.0)
    assert found["shares"] == {"share_simulate": 0.375, "share_train": 0.625}
    assert (found["seconds"], found["warm"]) == (2.0, True)
    cold = gpu_steps.rates(rows, 5.0)  # one row is no stretch: then all of the run
    assert (cold["agent_steps_per_second"], cold["seconds"], cold["warm"]) == (pytest.approx(700 / 6), 6.0, False)


def test_the_draws_of_a_policy_that_is_never_drawn_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_steps.draws(make_job(tmp_path, "agree_draws"))
    monkeypatch.setattr(gpu_steps, "sample_actions", lambda log_probs, generator, *part: log_probs.argmax(-1))
    gpu_steps.draws(make_job(tmp_path, "agree_draws"))
    right, wrong = gpu.read_results(tmp_path)
    assert right["agrees"]
    assert right["difference"] < 0.006
    assert (wrong["difference"], wrong["agrees"]) == (pytest.approx(0.5), False)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_is_ended_with_its_children_and_keeps_its_results(tmp_path: Path) -> None:
    assert gpu.run_step(Step("pong", "", (), 4.0), make_job(tmp_path), target=step_targets.hang) == "limit"
    assert gpu.run_step(Step("parts", "", (), 30.0), make_job(tmp_path), target=step_targets.fail) == "failed"
    first, limit, second, failed = gpu.read_results(tmp_path)
    time.sleep(0.2)
    assert not is_there(first["child"])
    assert not is_there(second["child"])
    assert (limit["step"], limit["kind"], limit["outcome"]) == ("pong", "end", "limit")
    assert 4.0 <= limit["seconds"] < 30.0
    assert limit["reached"]["."] == {"frames": 200.0, "mean_return_100_games": 7.5, "loss": None}
    assert (failed["outcome"], failed["exit_status"], failed["error"]) == ("failed", 3, "OSError: no such thing")


def test_steps_without_time_are_skipped_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.run_steps(gpu.chosen_steps("speed_dqn,agree"), make_job(tmp_path, seconds=5.0)) == ["skipped"] * 5
    lines = gpu.read_results(tmp_path)
    assert [line["step"] for line in lines] == ["agree_paac", "agree_ga3c", "agree_dqn", "agree_draws", "speed_dqn"]
    assert {line["outcome"] for line in lines} == {"skipped"}
    assert "speed_dqn: skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "agree,sped"], "--steps sped is no step: there are agree_paac, "),
        (["--device", "tpu"], "device=tpu is not a device: say cpu, cuda or cuda:0."),
        (["--limit", "1"], "--limit 1 is too short: say at least 10 seconds."),
        ([], "holds results already: choose another --out."),
    ],
)
def test_bad_input_ends_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    assert gpu.main(["--out", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert (tmp_path / "results.jsonl").read_text() == "{}\n"


def test_actions_of_the_table_are_the_same_captured_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured reads on in it; a table that was read while it was recorded would give one row for ever."""
    monkeypatch.setattr(compiled, "CudaTape", CpuTape)
    log_probs = torch.zeros(3, 2)
    config = gpu_steps.agreeing_configuration(make_job(tmp_path), "paac", 1)
    rows = []
    for compute in (compiled.Compute(), compiled.Compute(cuda_graphs=True)):
        with gpu_steps.same_actions(config) as n_drawn:
            policy = Policy(ActorCritic((4,), 2), torch.Generator(), compute=compute)
            rows.append([policy(torch.zeros(3, 4), log_probs[:, :0]).actions.tolist() for _ in range(8)])
            assert n_drawn() == 8 * 4
    assert rows[0] == rows[1]
    assert len({str(row) for row in rows[0]}) > 1


def made_up_results() -> list[dict[str, Any]]:
    machine = {"step": "machine", "kind": "machine", "gpu": "Imaginary GPU", "cpu": "A CPU", "cores": 16}
    shares = {"share_simulate": 0.5, "share_train": 0.3, "share_predict": 0.2}
    speeds = [
        {"step": f"speed_{algo}", "kind": "result", "algo": algo, "way": "plain", "mode": mode, "n_envs": n,
         "agent_steps_per_second": 10.0 * n, "raw_agent_steps_per_second": 20.0 * n, "shares": shares}
        for algo in ("paac", "dqn") for mode in ("graphs", "eager") for n in (128, 32)
    ]  # fmt: skip
    return [machine, *speeds, {"step": "pong_paac", "kind": "end", "outcome": "skipped"}]


def test_figures_are_drawn_of_what_was_found_and_no_others(tmp_path: Path) -> None:
    lines = made_up_results()
    assert [file.name for file in gpu_figures.draw(lines, tmp_path)] == ["throughput.png", "time_shares.png"]
    axes = gpu_figures.throughput([line for line in lines if line["kind"] == "result"]).axes
    assert [axis.get_title() for axis in axes] == ["paac", "dqn"]
    graphs, eager, raw = axes[0].get_lines()
    assert (graphs.get_label(), raw.get_label()) == ("plain, graphs", "simulation alone")
    assert graphs.get_xydata().tolist() == [[32.0, 320.0], [128.0, 1280.0]]
    assert raw.get_xydata().tolist() == [[32.0, 640.0], [128.0, 2560.0]]
    assert eager.get_linestyle() != graphs.get_linestyle()


def test_figures_of_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_figures.main([str(tmp_path)]) == 2
    assert "has no results of gpu.py" in capsys.readouterr().err


def test_no_step_measures_what_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU one speed stands for eager and graphs; each way is another configuration."""
    ran: list[Config] = []

    def speed_of(job: Job, config: Config, name: str) -> dict[str, Any]:
        ran.append(config)
        return {"agent_steps_per_second": 100.0 if config.lag.enabled else 125.0}

    monkeypatch.setattr(gpu_steps, "speed_of", speed_of)
    monkeypatch.setattr(gpu_steps, "raw_agent_steps_per_second", lambda config, n, seconds: 400.0)
    gpu_steps.speed(make_job(tmp_path, "speed_paac"), "paac")
    found = gpu.read_results(tmp_path)
    assert [(line["way"], line["mode"]) for line in found] == [
        ("plain", "eager"), ("overlap", "eager"), ("alternate", "eager"), ("alternate and overlap", "eager"),
        ("lag not measured", "eager"),
    ]  # fmt: skip
    assert [config.algo.overlap for config in ran] == [False, True, False, True, False]
    assert [config.algo.alternate for config in ran] == [False, False, True, True, False]
    assert [line["share_of_raw"] for line in found] == [0.25, 0.25, 0.25, 0.25, 0.3125]
    assert found[-1]["lag_cost"] == pytest.approx(0.2)


BLOCKED = (
    "wandb",
    "tensorboard",
    "pytest",
    "_pytest",
    "hypothesis",
    "submitit",
    "imageio",
    "stable_baselines3",
    "ale_py",
    "cv2",
)


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_without_what_a_bare_machine_lacks(tmp_path: Path) -> None:
    """Some minutes on two idle cores, mostly compiling; from another directory, not installed."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))\n"
    (tmp_path / "sitecustomize.py").write_text(block)
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out), "--device", "cpu", "--tiny"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=700)
    lines: list[dict[str, Any]] = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert ended.returncode == 0, (ended.stdout, ended.stderr, lines)
    machine, *rest = lines
    assert (machine["kind"], machine["device"], machine["gpu"]) == ("machine", "cpu", None)
    assert machine["cores"] == usable_cores()
    assert machine["torch"] == torch.__version__
    assert {"cpu", "driver", "cuda", "versions", "commit", "at"} <= set(machine)
    ends = [line for line in rest if line["kind"] == "end"]
    assert [line["step"] for line in ends] == ["machine", *(step.name for step in gpu.STEPS)]
    assert {line["outcome"] for line in ends} == {"done"}
    results = {step.name: [x for x in rest if x["step"] == step.name and x["kind"] == "result"] for step in gpu.STEPS}
    for algo in ("paac", "ga3c", "dqn"):
        for step, mode in (("agree", "eager"), ("compiled", "compiled")):
            few, many = results[f"{step}_{algo}"]
            assert few["updates"] == 1
            assert 50 <= many["updates"] < 60
            assert (many["mode"], many["agrees"]) == (mode, True)
            assert many["moved"] > 10 * gpu_steps.TOLERANCE
            assert mode == "compiled" or many["difference"] == 0.0
        ways = [speed["way"] for speed in results[f"speed_{algo}"]]
        assert ways == [way for way, mode, _ in gpu_steps.SPEEDS[algo] if (way, mode) != ("plain", "eager")]
        for speed in results[f"speed_{algo}"]:
            assert speed["agent_steps_per_second"] > speed["updates_per_second"] > 0.0
            assert speed["agent_steps_per_second"] == speed["share_of_raw"] * speed["raw_agent_steps_per_second"]
            assert sum(speed["shares"].values()) == pytest.approx(1.0, abs=0.01)
            assert ("lag_cost" in speed) == (speed["way"] == "lag not measured")
            assert ("lag_updates_mean" in speed["lag"]) == (speed["way"] != "lag not measured")
    parts = results["ceilings"] + results["ceilings_compiled"]
    assert [part["mode"] for part in parts] == ["eager", "eager", "compiled"]
    for part in parts:
        assert part["forward_agent_steps_per_second"] > part["forward_backward_agent_steps_per_second"] > 0.0
    for algo in ("paac", "ga3c"):
        (pong,) = results[f"pong_{algo}"]
        assert pong["reached"] == ((pong["mean_return_100_games"] or 0.0) >= pong["target_return"])
        assert pong["course"]["frames"][-1] <= pong["frames"]
    assert {file.name for file in out.glob("*.png")} == {f"{name}.png" for name in gpu_figures.FIGURES}
    assert "agree_paac" in ended.stdout
    assert not list(out.rglob("*.pt"))
