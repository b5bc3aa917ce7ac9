"""DQN: its update, its counts and schedules, and its bound."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dqn_parts import OPTIMIZER, SMALL, make_dqn, with_algo

from a3c_bench.calibration import calibrate
from a3c_bench.core.learning import QLearner
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.optim import FlatParameters

# --- one update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_one_update_is_what_its_parts_say(double: bool) -> None:
    """The sample that the generator draws, the gradient clipped, centred RMSProp by hand, at the decayed rate."""
    optimizer = replace(OPTIMIZER, max_grad_norm=0.5, anneal=True)
    dqn, session = make_dqn(with_algo(double=double, optimizer=optimizer, loss_reduction="mean"))
    while session.counters.updates < 20:
        dqn.step()
    twin, target = (QNetwork((4,), 2, hidden_sizes=(8,)) for _ in range(2))
    twin.load_state_dict(dqn.network.state_dict())
    target.load_state_dict(dqn.target_network.state_dict())
    assert not torch.equal(dqn.parameters.values, dqn.target_parameters.values)
    generator = np.random.default_rng()
    generator.bit_generator.state = dqn.sampling.bit_generator.state
    parameters = FlatParameters(twin)
    sample = dqn.replay.sample(8, generator)
    learner = QLearner(twin, target, parameters, double=double, td_error_clip=1.0, reduction="mean")
    found = learner.differentiate(sample)
    norm = parameters.gradients.norm()
    gradient = parameters.gradients * min(1.0, 0.5 / float(norm))
    state = dqn.learner.optimizer.state[dqn.parameters.values]
    mean, square = 0.95 * state["mean"] + 0.05 * gradient, 0.95 * state["square"] + 0.05 * gradient**2
    lr = 0.01 * (1 - session.counters.frames / 400)
    expected = dqn.parameters.values.detach() - lr * gradient / (square - mean**2 + 0.01).sqrt()
    dqn.update()
    torch.testing.assert_close(dqn.parameters.values.detach(), expected, rtol=1e-4, atol=1e-6)
    metrics = session.metrics[-1]
    torch.testing.assert_close(metrics["gradient_norm"], norm)
    torch.testing.assert_close(metrics["loss"], found.loss)
    torch.testing.assert_close(metrics["td_error"], found.td_errors.abs().mean())
    assert metrics["learning_rate"] == pytest.approx(lr)


def test_errors_become_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    dqn, session = make_dqn(with_algo(prioritized=True))
    while session.counters.updates < 5:
        dqn.step()
    seen: list[Any] = []
    monkeypatch.setattr(dqn.replay, "update_priorities", lambda *arguments: seen.append(arguments))
    betas: list[float] = []
    real = dqn.replay.sample
    monkeypatch.setattr(dqn.replay, "sample", lambda n, rng, beta: betas.append(beta) or real(n, rng, beta))
    dqn.update()
    (indices, priorities), *_ = seen
    assert len(indices) == 8
    assert float(np.mean(priorities)) == pytest.approx(float(session.metrics[-1]["td_error"]) + 1e-6, rel=1e-5)
    assert betas == [pytest.approx(0.4 + 0.6 * session.counters.frames / 400)]


# --- counts and schedules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_envs", "period"), [(1, 4), (3, 4), (8, 3), (1, 1)])
def test_updates_keep_step_with_agent_steps(n_envs: int, period: int) -> None:
    dqn, session = make_dqn(with_algo(n_envs=n_envs, update_period_agent_steps=period))
    counters = session.counters
    while not dqn.learns:
        assert counters.updates == 0
        dqn.step()
    assert counters.agent_steps - n_envs < 40 <= counters.agent_steps
    before = counters.agent_steps - dqn.n_unused - period * counters.updates
    assert before >= 40 - n_envs
    while counters.agent_steps < 300:
        dqn.step()
        assert counters.updates == (counters.agent_steps - before) // period


def test_the_target_network_follows_in_its_own_time() -> None:
    dqn, session = make_dqn(SMALL)
    target = dqn.target_parameters.values
    assert torch.equal(target, dqn.parameters.values)
    changes = []
    for _ in range(240):
        before, n_steps = target.detach().clone(), session.counters.agent_steps
        dqn.step()
        if not torch.equal(before, target):
            changes.append((session.counters.agent_steps, torch.equal(target, dqn.parameters.values)))
            assert n_steps < session.counters.agent_steps
    assert changes == [(50, True), (100, True), (150, True), (200, True)]


def test_epsilon_falls_from_where_learning_starts() -> None:
    dqn, session = make_dqn(with_algo(epsilon_start=0.9, epsilon_end=0.1))
    for agent_steps, expected in ((0, 0.9), (40, 0.9), (90, 0.7), (140, 0.5), (240, 0.1), (10_000, 0.1)):
        session.counters.agent_steps = agent_steps
        assert dqn.epsilon == pytest.approx(expected)


def test_it_explores_as_often_as_epsilon_says() -> None:
    for epsilon, low, high in ((0.0, 0.0, 0.0), (1.0, 0.45, 0.55), (0.4, 0.16, 0.24)):
        dqn, _ = make_dqn(with_algo(n_envs=50, epsilon_start=epsilon, epsilon_end=epsilon))
        differs, actions = [], []
        real = dqn.envs.send
        dqn.envs.send = lambda a, ids, real=real, actions=actions: actions.append(a) or real(a, ids)  # type: ignore[method-assign,misc]
        for _ in range(40):
            q = dqn.network(torch.from_numpy(dqn.explorer._observations)).argmax(1).numpy()
            dqn.explorer.step(epsilon)
            differs.append((q != actions[-1]).mean())
        assert low <= np.mean(differs) <= high


def test_lag_is_how_old_samples_are() -> None:
    dqn, session = make_dqn(SMALL)
    while session.counters.updates < 30:
        dqn.step()
    assert len(session.lags) == 30
    lag = session.lags[-1]
    assert {len(values) for values in lag.values()} == {8}
    frames = session.counters.frames
    assert lag["replay_age_frames"].max() <= frames
    assert (lag["lag_frames"] - lag["replay_age_frames"] == 1).all()  # inserted one step after it was chosen
    updates_then = np.maximum(0, (frames - lag["lag_frames"] - 40) // 4)  # of one update in four steps
    np.testing.assert_allclose(lag["lag_updates"], 29 - updates_then, atol=1.01)


# --- the bound --------------------------------------------------------------------------------------------------------


def test_calibration_has_the_parts_of_a_q_learner() -> None:
    result = calibrate(SMALL, repeats=3, seconds_per_repeat=0.05)
    assert (result.acting_batch, result.training_batch) == (1, 8)
    parts = (
        result.simulation_agent_steps_per_second,
        result.forward_agent_steps_per_second,
        result.forward_backward_agent_steps_per_second,
    )
    assert result.serial_bound_agent_steps_per_second == pytest.approx(1 / sum(1 / part for part in parts))
    rarer = calibrate(with_algo(update_period_agent_steps=400), repeats=3, seconds_per_repeat=0.05)
    assert rarer.forward_backward_agent_steps_per_second > 20 * result.forward_backward_agent_steps_per_second
