"""Halves that alternate: the same games, no lag, and one half simulates while the policy answers the other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from common import TIMES, FakeSession, small
from torch import Tensor

from a3c_bench.acting import policy as policy_module
from a3c_bench.acting.policy import Policy
from a3c_bench.algos.paac import PAAC
from a3c_bench.algos.settings import ForcedLagConfig, PAACConfig
from a3c_bench.envs import VectorEnv
from a3c_bench.errors import ConfigError
from a3c_bench.schema import Config, EnvConfig, OptimizerConfig, StepTimeConfig
from a3c_bench.train import train

OPTIMIZER = OptimizerConfig(lr=0.01, anneal=False)
HALVES = small(PAACConfig(n_envs=5, t_max=3, alternate=True, optimizer=OPTIMIZER), n_torch_threads=1)


def with_algo(config: Config = HALVES, **changes: Any) -> Config:
    return replace(config, algo=replace(config.algo, **changes))


def make_paac(config: Config) -> tuple[PAAC, FakeSession]:
    torch.set_num_threads(1)
    session = FakeSession(config)
    return PAAC(config, session), session  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("env", "lstm_size"),
    [("CartPole-v1", None), ("CartPole-v1", 5), ("Catch-v0", None), ("Catch-v0", 5)],
)
def test_without_chance_halves_play_and_learn_as_the_whole(
    env: str, lstm_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All games of Catch end after 9 steps: each third rollout begins with resets alone, which are left out."""

    def last_digit(log_probs: Tensor, generator: torch.Generator, *part: int) -> Tensor:
        del generator, part
        return (log_probs.sum(-1).mul(1e3).round().long() % log_probs.shape[-1]).abs()

    monkeypatch.setattr(policy_module, "sample_actions", last_digit)
    config = replace(HALVES, env=EnvConfig(id=env), network=replace(HALVES.network, lstm_size=lstm_size))
    whole, halves = make_paac(with_algo(config, alternate=False))[0], make_paac(config)[0]
    assert [envs.n_envs for envs in halves.envs] == [2, 3]
    n_phantoms, n_ends, n_actions = 0, 0, 0
    for _ in range(12):
        batches = []
        for paac in (whole, halves):
            rollout = paac.act()
            batches.append(rollout.batch()._asdict())
            batches[-1] = {name: part.clone() for name, part in batches[-1].items() if part is not None}
            paac.learn(rollout)
        for name, part in batches[0].items():
            torch.testing.assert_close(batches[1][name], part, rtol=1e-4, atol=1e-5)
        n_phantoms += int((~batches[0]["valid"]).sum())
        n_ends += int((batches[0]["terminated"] & batches[0]["valid"]).sum())
        n_actions += int(batches[0]["actions"].sum())
    assert (n_phantoms > 0) == (env == "CartPole-v1")
    assert n_ends > 0
    assert n_actions > 0
    torch.testing.assert_close(halves.parameters.values, whole.parameters.values, rtol=1e-3, atol=1e-4)
    whole.close()
    halves.close()


def test_all_samples_are_of_theta_and_a_half_knows_what_the_other_has_done() -> None:
    paac, session = make_paac(HALVES)
    for version in range(5):
        rollout = paac.act()
        mask = rollout.batch().valid
        stamps = rollout._stamps
        assert [stamp.version for stamp in stamps] == [version] * 6  # of three steps and two halves
        counted = mask[:, :2].sum(-1).tolist(), mask[:, 2:].sum(-1).tolist()
        frames = [stamp.frames - stamps[0].frames for stamp in stamps]
        if version == 0:  # no game has ended: step for step 2 environments have answered, then 3
            assert counted == ([2, 2, 2], [3, 3, 3])
            assert frames == [0, 0, 2, 5, 7, 10]
            ages = 15 - torch.tensor(frames).repeat_interleave(torch.tensor([2, 3] * 3))
            assert sorted(rollout.lag(paac.now(), mask)["lag_frames"]) == sorted(ages.tolist())
        paac.learn(rollout)
        assert set(session.lags[-1]["lag_updates"]) == {0}
        assert len(session.lags[-1]["lag_frames"]) == int(mask.sum())
    paac.close()


def test_a_half_simulates_while_the_policy_answers_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody simulates while theta is changed."""
    flying: set[int] = set()
    seen: list[int] = []
    paac, _ = make_paac(HALVES)
    choose, send, receive = Policy.__call__, VectorEnv.send_all, VectorEnv.receive

    def choosing(self: Policy, *arguments: Any) -> Any:
        seen.append(len(flying))
        return choose(self, *arguments)

    def sending(self: VectorEnv, actions: Any) -> None:
        flying.add(id(self))
        send(self, actions)

    def receiving(self: VectorEnv, *arguments: Any) -> Any:
        flying.discard(id(self))
        return receive(self, *arguments)

    monkeypatch.setattr(Policy, "__call__", choosing)
    monkeypatch.setattr(VectorEnv, "send_all", sending)
    monkeypatch.setattr(VectorEnv, "receive", receiving)
    rollout = paac.act()
    assert seen == [0, 1, 1, 1, 1, 1]
    assert flying == set()
    paac.learn(rollout)
    paac.close()


def theta_of(directory: Path) -> list[float]:
    parts = torch.load(directory / "checkpoint" / "latest.pt", weights_only=True)["parts"]
    return torch.cat([tensor.flatten() for tensor in parts["network"].values()]).tolist()


def test_one_seed_gives_one_result_with_overlap_too(tmp_path: Path) -> None:
    runs = {"halves": HALVES, "again": HALVES,
            "overlap": with_algo(overlap=True), "forced": with_algo(lag=ForcedLagConfig(updates=1))}  # fmt: skip
    for name, config in runs.items():
        train(config, tmp_path / name)
    theta = {name: theta_of(tmp_path / name) for name in runs}
    assert theta["halves"] == theta["again"]
    assert theta["overlap"] == theta["forced"] != theta["halves"]
    tables = [pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=TIMES) for name in ("halves", "again")]
    pd.testing.assert_frame_equal(*tables)


def test_times_that_are_added_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment i draws the same times, whoever steps beside it."""
    from a3c_bench.envs import step_time

    drawn: dict[bool, list[float]] = {}
    for alternate in (False, True):
        made: list[Any] = []
        real = step_time.make_draw
        monkeypatch.setattr(step_time, "make_draw", lambda *a, real=real, made=made: made.append(real(*a)) or made[-1])
        slow = EnvConfig(id="CartPole-v1", step_time=StepTimeConfig("exponential", mean_seconds=1e-3))
        make_paac(with_algo(replace(HALVES, env=slow), alternate=alternate))[0].close()
        monkeypatch.undo()
        drawn[alternate] = [draw() for draw in made]
    assert len(set(drawn[True])) == 5
    assert drawn[True] == drawn[False]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (with_algo(n_envs=1), "algo.alternate=true needs two halves: say algo.n_envs=2 or more, not 1"),
        (
            replace(HALVES, env=EnvConfig(id="CartPole-v1", backend="gymnasium")),
            "algo.alternate=true has nothing to do where environments are simulated by who acts: say env.simulate=pro",
        ),
    ],
)
def test_what_cannot_alternate_is_refused(config: Config, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
