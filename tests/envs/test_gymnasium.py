"""Gymnasium's environments behind the face of EnvPool's: in place and in processes, first come or all in lock step."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from a3c_bench import build, play
from a3c_bench.algos.a3c import A3CConfig
from a3c_bench.algos.dqn import DQNConfig
from a3c_bench.algos.ga3c import GA3CConfig
from a3c_bench.algos.gorila import GorilaConfig
from a3c_bench.algos.paac import PAACConfig
from a3c_bench.algos.settings import GorilaReplayConfig
from a3c_bench.calibration import calibrate
from a3c_bench.envs import Step, VectorEnv, find_spec
from a3c_bench.envs.backends import episode_limit_frames
from a3c_bench.errors import ConfigError, WorkerError
from a3c_bench.evaluate import main as evaluate_main
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import Config, EnvConfig, ReplayConfig
from a3c_bench.train import train

OWN = "tests.envs.own"
CARTPOLE = EnvConfig(id="CartPole-v1", backend="gymnasium")
CORRIDOR = EnvConfig(id=f"{OWN}:Corridor")
ROOT = Path(__file__).parents[2]


def make(config: EnvConfig, n_envs: int, batch_size: int | None = None, **changes: Any) -> VectorEnv:
    run = replace(Config(algo=PAACConfig()), env=config, **changes)
    return build.make_envs(run, n_envs, np.random.SeedSequence(0), n_threads=2, batch_size=batch_size)


def random_steps(config: EnvConfig, n_steps: int, n_envs: int = 3) -> list[Step]:
    envs = make(config, n_envs)
    rng = np.random.default_rng(0)
    envs.reset()
    steps = [envs.step(rng.integers(envs.n_actions, size=n_envs)) for _ in range(n_steps)]
    envs.close()
    return steps


def test_steps_are_those_of_the_environments_themselves() -> None:
    """Beside a plain loop: seeds, phantom steps, a limit, and a pole that falls at the limit, which has fallen."""
    n_envs, limit = 3, 12
    config = replace(CARTPOLE, max_episode_frames=limit)
    seeds = [int(s) for s in np.random.SeedSequence(0).generate_state(n_envs) % np.uint32(2**31 - 1)]
    plain = [gymnasium.make("CartPole-v1").unwrapped for _ in range(n_envs)]
    envs = make(config, n_envs)
    first = [env.reset(seed=seed)[0] for env, seed in zip(plain, seeds, strict=True)]
    np.testing.assert_array_equal(envs.reset(), np.stack(first))
    rng, age, games = np.random.default_rng(1), [0] * n_envs, [0] * n_envs
    ended = [False] * n_envs
    n_cut = n_fell_at_limit = 0
    for _ in range(400):
        actions = (rng.random(n_envs) < 0.3).astype(np.int64)
        step = envs.step(actions)
        for i, env in enumerate(plain):
            if ended[i]:
                seen, reward, fell = env.reset()[0], 0.0, False
                assert not step.valid[i]
                age[i], ended[i] = 0, False
            else:
                seen, reward, fell, *_ = env.step(int(actions[i]))
                age[i] += 1
                ended[i] = fell or age[i] == limit
                assert step.valid[i]
                n_cut += ended[i] and not fell
                n_fell_at_limit += fell and age[i] == limit
                games[i] += ended[i]
            np.testing.assert_array_equal(step.observations[i], seen)
            assert (step.rewards[i], step.terminated[i]) == (reward, fell)
            assert step.truncated[i] == (ended[i] and not fell)
        lengths = [(e.env_id, e.episode_length) for e in step.episodes]
        assert lengths == [(i, age[i]) for i in range(n_envs) if ended[i]]
    envs.close()
    assert min(n_cut, n_fell_at_limit, *games) > 3


@pytest.mark.parametrize("config", [replace(CARTPOLE, max_episode_frames=9), CORRIDOR], ids=lambda config: config.id)
def test_processes_simulate_the_same(config: EnvConfig) -> None:
    in_place = random_steps(config, 60, n_envs=5)
    in_processes = random_steps(replace(config, simulate="processes"), 60, n_envs=5)
    assert sum(len(step.episodes) for step in in_place) > 10
    for one, other in zip(in_place, in_processes, strict=True):
        for a, b in zip(one[:-1], other[:-1], strict=True):
            np.testing.assert_array_equal(a, b)
        assert one.episodes == other.episodes


@pytest.mark.parametrize("simulate", ["in_place", "processes"])
def test_the_first_b_of_n_are_received(simulate: str) -> None:
    config = replace(CORRIDOR, simulate=simulate, max_episode_frames=4, reward_clip=0.5)
    envs = make(config, 5, batch_size=2)
    envs.start()
    served, returns, lengths = np.zeros(5, dtype=int), set(), set()
    ended = np.ones(5, dtype=bool)
    for _ in range(200):
        step = envs.receive()
        assert step.observations.shape == (2, 2)
        assert step.valid.tolist() == (~ended[step.env_ids]).tolist()
        assert abs(step.rewards).max() <= 0.5
        ended[step.env_ids] = step.terminated | step.truncated
        served[step.env_ids] += 1
        returns |= {episode.episode_return for episode in step.episodes}
        lengths |= {episode.episode_length for episode in step.episodes}
        envs.send(np.ones(2, dtype=np.int64), step.env_ids)
    envs.close()
    assert served.min() > 20
    assert returns == {0.0, 3.0}  # cut off, or at the right end; not clipped
    assert lengths == {1, 2, 3, 4}


def test_numbers_of_states_and_actions_may_begin_anywhere() -> None:
    envs = make(EnvConfig(id=f"{OWN}:Shifted"), 4)
    first = envs.reset()
    assert (first.shape, first.dtype) == ((4, 7), np.bool_)
    places = first.argmax(1)
    stepped = envs.step(np.array([0, 1, 0, 1])).observations.argmax(1)
    assert (stepped - places).tolist() == [-1, 1, -1, 1]
    envs.close()


def test_one_picture_of_several_things() -> None:
    """Its channels come first, as networks take them."""
    config = EnvConfig(id=f"{OWN}:Pictured", observed_key="picture")
    envs = make(config, 2)
    seen = envs.reset()
    assert envs.observation_shape == seen.shape[1:] == (3, 6, 7)
    assert seen.sum(axis=(2, 3)).tolist() == [[0, 0, 255]] * 2
    assert config.name == f"{OWN}:Pictured-sees-picture"
    envs.close()
    assert find_spec(replace(config, observed_key="place")).observation_shape == (7,)


def test_an_environment_that_ends_itself() -> None:
    steps = random_steps(EnvConfig(id=f"{OWN}:Limited"), 60)
    ends = [(bool(s.terminated[i]), bool(s.truncated[i])) for s in steps for i in range(3)]
    assert set(ends) == {(False, False), (True, False), (False, True)}
    assert {e.episode_length for s in steps for e in s.episodes} == {1, 2}


def test_what_a_task_is() -> None:
    spec = find_spec(CARTPOLE)
    assert (spec.env_id, spec.n_actions, spec.observation_shape) == ("CartPole-v1", 2, (4,))
    assert (spec.limit_agent_steps, episode_limit_frames(CARTPOLE)) == (500, 500)
    assert find_spec(replace(CARTPOLE, max_episode_frames=700)).limit_agent_steps == 700
    spec = find_spec(CORRIDOR)
    assert (spec.observation_dtype, spec.limit_agent_steps, spec.is_atari) == (np.float32, None, False)
    assert find_spec(EnvConfig(id=f"{OWN}:function")).observation_shape == (2,)
    assert find_spec(replace(CORRIDOR, observed=(0,))).observation_shape == (1,)


# --- runs -------------------------------------------------------------------------------------------------------------

REPLAY = {"capacity_agent_steps": 200, "learning_starts_agent_steps": 20, "batch_size": 8}
ALGORITHMS: list[tuple[str, Any]] = [
    ("processes", PAACConfig(n_envs=3, t_max=5)),
    ("in_place", DQNConfig(n_envs=2, update_period_agent_steps=4, replay=ReplayConfig(**REPLAY))),
    ("in_place", GA3CConfig(n_agents=4, n_predictors=2, n_trainers=1, min_training_batch=1)),
    ("processes", GA3CConfig(n_agents=4, n_predictors=2, n_trainers=1, min_training_batch=1)),
    ("processes", A3CConfig(n_workers=2)),  # whose workers simulate in place
    ("in_place", GorilaConfig(n_learners=1, n_actors=1, replay=GorilaReplayConfig(**REPLAY))),
]


@pytest.mark.parametrize(("simulate", "algo"), ALGORITHMS, ids=lambda value: getattr(value, "name", value))
def test_every_algorithm_trains(tiny: Config, tmp_path: Path, simulate: str, algo: Any) -> None:
    config = replace(tiny, algo=algo, env=replace(CORRIDOR, simulate=simulate, max_episode_frames=20))
    config = replace(config, budget=replace(tiny.budget, frames=120), worker_silence_seconds=100.0)
    status = train(config, tmp_path)
    assert (status["state"], status["frames"] >= 120, status["updates"] > 0) == ("finished", True, True)
    assert -1.0 <= status["final"]["evaluation_mean_return"] <= 3.0


def test_what_comes_after_a_run(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """evaluate, play with a video, calibrate; and the run goes on from its checkpoint."""
    config = replace(tiny, env=replace(CORRIDOR, max_episode_frames=20), budget=replace(tiny.budget, frames=60))
    run = tmp_path / "run"
    train(config, run)
    assert train(replace(config, budget=replace(config.budget, frames=120)), run)["attempts"] == 2
    assert evaluate_main([str(run), "--games", "3"]) == 0
    assert f"{OWN}:Corridor, paac, seed 0, latest checkpoint" in capsys.readouterr().out
    assert play.main([str(run), "--video", str(tmp_path / "game.gif")]) == 0
    assert (tmp_path / "game.gif").stat().st_size > 0
    assert calibrate(config, repeats=1, seconds_per_repeat=0.01).simulation_agent_steps_per_second > 0


def test_an_environment_that_cannot_be_drawn() -> None:
    undrawn = EnvConfig(id=f"{OWN}:function")
    envs = VectorEnv(undrawn, 1, np.random.SeedSequence(0), 1, render=True)
    envs.reset()
    with pytest.raises(ConfigError, match="Corridor cannot be drawn: it has no render_mode rgb_array"):
        envs.frames()
    envs.close()


# --- what goes wrong --------------------------------------------------------------------------------------------------

REFUSED = [
    (f"env.id={OWN}x:Corridor", f"env.id={OWN}x:Corridor: there is no module {OWN}x, neither on sys.path nor in"),
    (f"env.id={OWN}:Coridor", f"env.id={OWN}:Coridor is not an environment of that module: did you mean Corridor?"),
    (f"env.id={OWN}:not_callable", f"env.id={OWN}:not_callable is a dict: it must be a class of gymnasium.Env."),
    (f"env.id={OWN}:os", f"env.id={OWN}:os is a module: it must be a class of gymnasium.Env."),
    ("env.id=builtins:dict", "env.id=builtins:dict makes a dict, which is no gymnasium.Env."),
    ("env.id=CartPol-v1 env.backend=gymnasium", "env.id=CartPol-v1 is not in Gymnasium's registry: did you mean Ca"),
    (f"env.id={OWN}:Continuous", f"env.id={OWN}:Continuous has continuous actions; only tasks with one discrete ac"),
    (f"env.id={OWN}:TwoActions", f"env.id={OWN}:TwoActions takes actions of 2 numbers each; only tasks with one di"),
    (f"env.id={OWN}:SeveralActions", f"env.id={OWN}:SeveralActions takes actions of another kind (Dict); only task"),
    (f"env.id={OWN}:SeveralThings", f"env.id={OWN}:SeveralThings shows a space of kind Tuple; only one array is su"),
    (f"env.id={OWN}:OnlyText", f"env.id={OWN}:OnlyText shows several things at once (mission); only one array is s"),
    (f"env.id={OWN}:Pictured", f"env.id={OWN}:Pictured shows several arrays at once (mission, picture, place): say "
                               "env.observed_key=picture for one of them, only one is supported."),
    (f"env.id={OWN}:Pictured env.observed_key=pictur", f"env.observed_key=pictur is no array that {OWN}:Pictured sh"),
    (f"env.id={OWN}:Pictured env.observed_key=mission", f"env.observed_key=mission is no array that {OWN}:Pictured "),
    (f"env.id={OWN}:Corridor env.observed_key=x", "env.observed_key chooses from several arrays; tests.envs.own:Co"),
    (f"env.id={OWN}:FailsAtReset", f"env.id={OWN}:FailsAtReset cannot be used: its reset raised OSError: there is n"),
    (f"env.id={OWN}:Old", f"env.id={OWN}:Old is for an older interface: reset must give (observation, info)."),
    (f"env.id={OWN}:OldStep", f"env.id={OWN}:OldStep is for an older interface: step must give (observation, rewar"),
    (f"env.id={OWN}:NeedsMore", f"env.id={OWN}:NeedsMore cannot be used: being made raised TypeError: "),
    (f"env.id={OWN}:Corridor env.noop_max=1", f"env.noop_max=1 has no effect on {OWN}:Corridor: only Atari games"),
    (f"env.id={OWN}:Corridor env.frame_skip=4", f"env.frame_skip=4 has no effect on {OWN}:Corridor: only Atari g"),
    ("env.game=Pong env.backend=gymnasium", "Atari games are EnvPool's, with their protocol: leave env.backend=gymn"),
    ("env.simulate=processes", "env.simulate=processes has no effect on CartPole-v1: EnvPool simulates on env.n_th"),
    ("env.id=Pendulum-v1 env.backend=gymnasium", "env.id=Pendulum-v1 has continuous actions; only tasks with one d"),
    ("env.id=tests.envs.own:Corridor env.backend=envpool", "env.id=tests.envs.own:Corridor is not an environment o"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[words for words, _ in REFUSED])
def test_bad_input_is_refused_in_one_sentence(words: str, sentence: str) -> None:
    said = dict(word.removeprefix("env.").split("=") for word in words.split())
    values: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, value in said.items()}
    with pytest.raises(ConfigError) as refused:
        find_spec(EnvConfig(**values))
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith((".", "?"))


def test_the_command_finds_what_lies_in_the_current_directory(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a3c-bench does, on whose sys.path it is not; and a module that needs another or has a fault is told of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    (tmp_path / "own_by_hand.py").write_text(f"from {OWN} import Corridor as Mine\n")
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    (tmp_path / "faulty.py").write_text("1 / 0\n")
    words = ("budget.frames=60", "evaluation.n_games=1", "progress=false", "n_torch_threads=1", "root=runs")
    ended = cli("env.id=own_by_hand:Mine", "env.max_episode_frames=20", *words)
    assert (ended.exit_status, ended.stderr) == (0, "")
    (run,) = (tmp_path / "runs" / "default" / "own_by_hand:Mine").glob("**/seed0")
    assert read_status(run)["state"] == "finished"
    said = {
        "needs_more:Mine": "cannot be imported: needs_more needs no_such_package, which is missing.",
        "faulty:Mine": "cannot be imported: faulty raised ZeroDivisionError: division by zero.",
    }
    for env_id, sentence in said.items():
        ended = cli(f"env.id={env_id}", *words)
        assert (ended.exit_status, ended.stderr) == (2, f"a3c_bench: env.id={env_id} {sentence}\n")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Dies", "Simulator 0 was killed by SIGKILL."),
        ("Midway", "Simulator 0 raised ZeroDivisionError: by hand"),
        ("Hangs", "Simulator 0 said nothing for 1 seconds: an environment hangs, or"),
    ],
)
def test_a_simulator_that_fails_ends_the_run(tiny: Config, tmp_path: Path, name: str, sentence: str) -> None:
    env = EnvConfig(id=f"{OWN}:{name}", simulate="processes", n_threads=1)
    with pytest.raises(WorkerError) as failed:
        train(replace(tiny, env=env, worker_silence_seconds=1.0), tmp_path)
    assert str(failed.value).startswith(sentence)
    assert read_status(tmp_path)["state"] == "failed"


@pytest.mark.slow
def test_simulators_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import numpy as np\n"
        "from tests.envs.test_gymnasium import CORRIDOR, make, replace\n"
        "envs = make(replace(CORRIDOR, simulate='processes'), 4)\n"
        "envs.reset()\n"
        "print(*[simulator._process.pid for simulator in envs._simulation._simulators], flush=True)\n"
        "while True: envs.step(np.ones(4, dtype=np.int64))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    assert len(pids) == 2
    until = time.monotonic() + 20.0
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_a_network_takes_what_is_seen() -> None:
    config = replace(Config(algo=PAACConfig()), env=CORRIDOR)
    network = build.make_network(config, find_spec(config.env), torch.device("cpu"))
    envs = make(CORRIDOR, 3)
    log_probs, _, _ = network(torch.from_numpy(envs.reset()), network.initial_state(3))
    envs.close()
    assert log_probs.shape == (3, 2)
