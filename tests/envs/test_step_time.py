"""Time that is added to steps: how much, who waits for it, that nothing else changes, and what is refused."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from a3c_bench import build
from a3c_bench.algos.dqn import DQNConfig
from a3c_bench.algos.ga3c import GA3CConfig
from a3c_bench.algos.paac import PAACConfig
from a3c_bench.calibration import calibrate
from a3c_bench.envs import Step, VectorEnv, step_time
from a3c_bench.envs.step_time import Draw, Slow, make_draw
from a3c_bench.errors import ConfigError
from a3c_bench.evaluation import evaluation_config
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.schema import BudgetConfig, Config, EnvConfig, ReplayConfig, StepTimeConfig
from a3c_bench.train import check_run, train

CARTPOLE = EnvConfig(id="CartPole-v1")
BACKENDS = {
    "envpool": CARTPOLE,
    "gymnasium": replace(CARTPOLE, backend="gymnasium"),
    "processes": replace(CARTPOLE, backend="gymnasium", simulate="processes"),
}
CONSTANT = StepTimeConfig("constant", 0.001)
LONG = 0.25  # seconds: beside what a step takes on a busy machine


def make(env: EnvConfig, n_envs: int, batch_size: int | None = None, stream: tuple[int, ...] = (1,)) -> VectorEnv:
    seed = sequence(0, Stream.ENVIRONMENTS, *stream)
    return build.make_envs(Config(algo=PAACConfig(), env=env), n_envs, seed, n_threads=2, batch_size=batch_size)


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`take(*seconds)` gives each environment its time, whatever the distribution; gives the environments that drew."""

    def install(*seconds: float) -> list[int]:
        drew: list[int] = []
        numbers = iter(range(len(seconds)))

        def made(options: StepTimeConfig, seed: Any) -> Draw:
            number = next(numbers)
            return lambda: drew.append(number) or seconds[number]  # type: ignore[func-returns-value]

        monkeypatch.setattr(step_time, "make_draw", made)
        return drew

    return install


# --- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "deviation", "median"),
    [
        (StepTimeConfig("constant", 0.01), 0.0, 0.01),
        (StepTimeConfig("exponential", 0.01), 0.01, 0.01 * np.log(2)),
        (StepTimeConfig("lognormal", 0.01, 0.02), 0.02, 0.01 / np.sqrt(5)),
        (StepTimeConfig("lognormal", 0.01, 0.005), 0.005, 0.01 / np.sqrt(1.25)),
    ],
    ids=str,
)
def test_times_have_the_distribution_that_was_asked_for(
    options: StepTimeConfig, deviation: float, median: float
) -> None:
    draw, again, other = (make_draw(options, np.random.SeedSequence(seed)) for seed in (0, 0, 1))
    times = [draw() for _ in range(20_000)]
    assert min(times) > 0
    assert np.mean(times) == pytest.approx(0.01, rel=0.03)
    assert np.std(times) == pytest.approx(deviation, rel=0.15, abs=1e-12)
    assert np.median(times) == pytest.approx(median, rel=0.03)
    assert [again() for _ in range(5)] == times[:5]
    assert (other() != times[0]) == (options.distribution != "constant")


def test_each_environment_has_times_of_its_own_and_each_attempt_others(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    real = make_draw

    def noting(options: StepTimeConfig, seed: np.random.SeedSequence) -> Draw:
        drawn.append(real(options, seed)())
        return lambda: 0.0

    monkeypatch.setattr(step_time, "make_draw", noting)
    env = replace(CARTPOLE, step_time=StepTimeConfig("exponential", 0.01))
    for stream in ((1,), (1,), (2,), (1, 0)):
        make(env, 3, stream=stream).close()
    assert drawn[:3] == drawn[3:6]
    assert len({*drawn}) == 3 * 3


# --- who waits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_lock_step_waits_for_the_slowest_and_not_for_the_sum(backend: str, take: Callable[..., list[int]]) -> None:
    take(LONG, 0.0, LONG, LONG / 2)
    envs = make(replace(BACKENDS[backend], step_time=CONSTANT), 4)
    envs.reset()
    begun = time.monotonic()
    step = envs.step(np.zeros(4, dtype=np.int64))
    took = time.monotonic() - begun
    envs.close()
    assert step.env_ids.tolist() == [0, 1, 2, 3]
    assert LONG <= took < 2.4 * LONG  # 2.5 in all


def test_what_is_done_meanwhile_is_not_waited_for() -> None:
    envs = make(replace(CARTPOLE, step_time=StepTimeConfig("constant", LONG)), 2)
    envs.reset()
    begun = time.monotonic()
    envs.send(np.zeros(2, dtype=np.int64), np.arange(2, dtype=np.int32))
    sent = time.monotonic() - begun
    time.sleep(LONG)
    envs.receive()
    assert sent < LONG / 2
    assert time.monotonic() - begun < 1.8 * LONG
    envs.close()


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_who_is_quick_is_received_first_and_goes_on_meanwhile(backend: str, take: Callable[..., list[int]]) -> None:
    take(2 * LONG, 0.0, LONG)
    envs = make(replace(BACKENDS[backend], step_time=CONSTANT), 3, batch_size=1)
    envs.start()
    begun, seen = time.monotonic(), []
    for step in (envs.receive() for _ in range(3)):  # resets
        envs.send(np.zeros(1, dtype=np.int64), step.env_ids)
    for n_turns in range(5):
        step = envs.receive()
        seen += step.env_ids.tolist()
        if n_turns < 2:
            envs.send(np.zeros(1, dtype=np.int64), step.env_ids)
    assert seen == [1, 1, 1, 2, 0]
    assert time.monotonic() - begun >= 2 * LONG
    envs.close()


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_reset_takes_no_time(batch_size: int | None, take: Callable[..., list[int]]) -> None:
    """Of the first game, after an end, and after a limit that is kept here; so there is a time per agent step."""
    drew = take(0.0, 0.0)
    envs = make(replace(CARTPOLE, max_episode_frames=12, step_time=CONSTANT), 2, batch_size)
    envs.start()
    steps: list[Step] = []
    for turn in range(80):
        steps.append(envs.receive())
        envs.send(np.full(len(steps[-1].env_ids), turn % 30 < 15), steps[-1].env_ids)
    steps += [envs.receive() for _ in range(2 if batch_size else 1)]  # all that are on their way
    assert any(step.terminated.any() for step in steps)
    assert any(step.truncated.any() for step in steps)
    assert len(drew) == sum(int(step.valid.sum()) for step in steps) > 40
    envs.close()


# --- nothing else changes ---------------------------------------------------------------------------------------------


SMALL = Config(
    algo=PAACConfig(n_envs=3, t_max=4),
    env=CARTPOLE,
    network=replace(Config(algo=None).network, hidden_sizes=(8,)),
    budget=BudgetConfig(frames=300),
    evaluation=replace(Config(algo=None).evaluation, n_games=1, n_envs=1, max_episode_frames=50),
    metrics_interval_frames=100,
    n_torch_threads=1,
    progress=False,
)
REPLAY = ReplayConfig(capacity_agent_steps=200, learning_starts_agent_steps=40, batch_size=8)


@pytest.mark.parametrize(
    "algo",
    [SMALL.algo, replace(SMALL.algo, overlap=True), DQNConfig(n_envs=2, replay=REPLAY)],
    ids=["paac", "overlap", "dqn"],
)
def test_a_run_in_lock_step_computes_the_same_and_takes_longer(algo: Any, tmp_path: Path) -> None:
    found = {}
    for name, options in {"plain": StepTimeConfig(), "slow": StepTimeConfig("lognormal", 0.002, 0.001)}.items():
        config = replace(SMALL, algo=algo, env=replace(CARTPOLE, step_time=options))
        status = train(config, tmp_path / name)
        parts = torch.load(tmp_path / name / "checkpoint" / "latest.pt", weights_only=True)["parts"]
        theta = torch.cat([tensor.flatten() for tensor in parts["network"].values()])
        metrics = pd.read_csv(tmp_path / name / "metrics.csv")
        found[name] = (theta, status["final"], metrics)
        if name == "slow":
            n_steps = 300 / algo.n_envs
            assert status["wall_seconds"] > 0.002 * n_steps  # of the slowest of each step even more
            assert metrics.share_simulate.min() > 0.2
    (theta, final, metrics), (slow_theta, slow_final, slow_metrics) = found["plain"], found["slow"]
    assert torch.equal(theta, slow_theta)
    for key in ("evaluation_mean_return", "mean_return_100_games"):
        assert final[key] == slow_final[key]
    for column in ("loss", "gradient_norm", "mean_return_100_games"):
        assert metrics[column].equals(slow_metrics[column])
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []


def test_an_asynchronous_run_ends(tmp_path: Path) -> None:
    algo = GA3CConfig(n_agents=4, n_predictors=2, n_trainers=1, t_max=4)
    env = replace(CARTPOLE, step_time=StepTimeConfig("exponential", 0.002))
    status = train(replace(SMALL, algo=algo, env=env), tmp_path)
    assert status["state"] == "finished"
    assert status["wall_seconds"] > 0.002 * 300 / 4 / 2  # four side by side; the mean of 75 has half of it to spare
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []


def test_calibration_measures_it_as_simulation() -> None:
    env = replace(CARTPOLE, step_time=StepTimeConfig("constant", 0.01))
    found = calibrate(replace(SMALL, env=env), repeats=1, seconds_per_repeat=0.02)
    assert 10 < found.simulation_agent_steps_per_second < 3 / 0.01  # three environments side by side


def test_evaluation_games_take_no_longer() -> None:
    slow = replace(SMALL, env=replace(CARTPOLE, step_time=StepTimeConfig("constant", 5.0)))
    assert evaluation_config(slow).env == evaluation_config(SMALL).env
    assert evaluation_config(slow).env.step_time == StepTimeConfig()


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Broken:
    """A simulation that takes no actions."""

    closed = False

    def send(self, actions: Any, env_ids: Any) -> None:
        raise RuntimeError("the simulator is gone")

    def close(self) -> None:
        self.closed = True


def test_what_the_simulation_raises_is_told_to_who_receives() -> None:
    simulation: Any = Broken()
    slow = Slow(simulation, [lambda: 0.01], lock_step=True)
    ids = np.zeros(1, dtype=np.int32)
    slow.send(ids, ids)
    with pytest.raises(RuntimeError, match="the simulator is gone"):
        slow.receive()
    with pytest.raises(RuntimeError, match="the simulator is gone"):
        slow.send(ids, ids)
    slow.close()
    assert simulation.closed


def test_environments_are_closed_while_somebody_waits() -> None:
    envs = make(replace(CARTPOLE, step_time=StepTimeConfig("constant", 60.0)), 1)
    envs.reset()
    envs.send(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int32))
    said: list[str] = []

    def wait() -> None:
        try:
            envs.receive()
        except RuntimeError as error:
            said.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    envs.close()
    waiting.join(20.0)
    assert said == ["the environments were closed"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            StepTimeConfig(mean_seconds=0.01),
            "env.step_time.mean_seconds=0.01 has no effect without a distribution: say",
        ),
        (StepTimeConfig(deviation_seconds=0.01), "env.step_time.deviation_seconds=0.01 has no effect without"),
        (StepTimeConfig("constant"), "env.step_time.distribution=constant needs a mean: say"),
        (StepTimeConfig("lognormal", 0.01), "distribution=lognormal needs a standard deviation: say .*seconds=0.03"),
        (
            StepTimeConfig("exponential", 0.01, 0.01),
            "deviation_seconds=0.01 is for distribution=lognormal: that of exp",
        ),
        (StepTimeConfig("constant", 0.01, 0.01), "deviation_seconds=0.01 is for distribution=lognormal: that of const"),
        (StepTimeConfig("constant", -0.01), "env.step_time.mean_seconds=-0.01 must be greater than 0.0"),
        (StepTimeConfig("constant", 0.0), "env.step_time.mean_seconds=0.0 must be greater than 0.0"),
        (
            StepTimeConfig("pareto", 0.01),
            "env.step_time.distribution=pareto is not known: choose one of none, constant",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: StepTimeConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        check_run(replace(SMALL, env=replace(CARTPOLE, step_time=options)))
    assert "\n" not in str(refused.value)
