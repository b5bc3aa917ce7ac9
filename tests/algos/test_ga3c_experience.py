"""What GA3C's agents hand to the trainers: every step once, and the policy, state and value that it was made with."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from ga3c_parts import SMALL, Parts, Rollout, with_algo

from a3c_bench.core.rollout import Batch
from a3c_bench.core.transfer import Transfer


def test_every_agents_steps_follow_each_other_and_each_is_learnt_from_once() -> None:
    """CartPole moves by x' = x + 0.02 v: so no row is missing, doubled or another agent's, the last ones included."""
    parts = Parts(SMALL)
    rollouts: dict[int, list[Rollout]] = {i: [] for i in range(6)}
    for _ in range(900):
        for agent, slot in parts.turn():
            rollouts[agent].append(parts.rollout(slot))
    n_steps = n_games = 0
    for agent, own in rollouts.items():
        games, length, last = [], 0, None
        for rollout in own:
            observations = rollout.observations if last is None else torch.cat([last, rollout.observations])
            torch.testing.assert_close(observations[1:, 0], observations[:-1, 0] + 0.02 * observations[:-1, 1])
            length += len(rollout.actions)
            last = rollout.observations[-1:]
            assert (rollout.rewards == 1.0).all()
            if rollout.terminated or rollout.truncated:
                games.append((agent, length))
                n_steps, length, last = n_steps + length, 0, None
            else:
                assert len(rollout.actions) == 5
        assert games == [game for game in parts.games if game[0] == agent]
        n_steps += length
        n_games += len(games)
    assert n_games > 30
    assert n_steps + parts.experience.lengths[parts.agents.slots].sum() == parts.tally.agent_steps


def test_the_policy_and_the_state_that_acted_are_kept() -> None:
    parts = Parts(replace(SMALL, network=replace(SMALL.network, lstm_size=5)))
    network = parts.predictor.network
    states: dict[int, torch.Tensor] = {}
    n_continued = 0
    for _ in range(200):
        for agent, slot in parts.turn():
            rollout = parts.rollout(slot)
            state = states.get(agent, network.initial_state(1))
            torch.testing.assert_close(rollout.state, state[0])
            n_continued += agent in states
            with torch.no_grad():
                for t in range(len(rollout.actions)):
                    log_probs, _, state = network(rollout.observations[t : t + 1], state)
                    torch.testing.assert_close(log_probs[0], rollout.log_probs[t])
            states[agent] = state
            if rollout.terminated or rollout.truncated:
                del states[agent]
    assert n_continued > 20


def test_the_bootstrap_is_the_value_of_the_state_after_the_last_step() -> None:
    parts = Parts(with_algo(n_agents=1, prediction_batch=1))
    previous: Rollout | None = None
    for _ in range(60):
        for _, slot in parts.turn():
            rollout = parts.rollout(slot)
            if previous is not None and not previous.terminated:
                with torch.no_grad():
                    value = parts.predictor.network(rollout.observations[:1], torch.zeros(1, 0))[1][0]
                assert previous.bootstrap == pytest.approx(float(value), rel=1e-5, abs=1e-6)
            previous = rollout


@pytest.mark.parametrize("lstm_size", [None, 5])
def test_a_fresh_bootstrap_is_the_value_of_the_same_state_to_theta_as_it_learns(lstm_size: int | None) -> None:
    config = with_algo(stale_bootstrap=False)
    parts = Parts(replace(config, network=replace(config.network, lstm_size=lstm_size)))
    slots = parts.collect(6)
    as_seen = torch.from_numpy(parts.experience.bootstrap[slots].copy())
    values = partial(parts.trainer.learner.values, *parts.experience.ends(slots, Transfer(torch.device("cpu"))))
    torch.testing.assert_close(values(), as_seen)  # theta has not changed yet
    parts.trainer.learn(parts.collect(6))
    fresh, seen = values(), []
    assert not torch.allclose(fresh, as_seen)
    differentiate = parts.trainer.learner.differentiate

    def watch(batch: Batch, keep: torch.Tensor | None = None) -> Any:
        seen.append(batch.bootstrap)
        return differentiate(batch, keep)

    parts.trainer.learner.differentiate = watch  # type: ignore[method-assign]
    parts.trainer.learn(slots)
    torch.testing.assert_close(seen[0], fresh)


def test_merging_pads_at_the_end() -> None:
    parts = Parts(replace(SMALL, network=replace(SMALL.network, lstm_size=5)))
    slots = parts.collect(40)
    rollouts = parts.rollouts(slots)
    assert len({len(rollout.actions) for rollout in rollouts}) > 1
    batch = parts.experience.batch(slots, Transfer(torch.device("cpu")))
    log_probs, _ = parts.predictor.network.unroll(batch.observations, batch.state, ~batch.valid)
    for b, rollout in enumerate(rollouts):
        n = len(rollout.actions)
        assert batch.valid[:, b].tolist() == [True] * n + [False] * (5 - n)
        assert batch.terminated[:, b].sum() == rollout.terminated
        torch.testing.assert_close(log_probs[:n, b], rollout.log_probs)


def test_a_batch_is_filled_up_to_few_shapes() -> None:
    """To t_max, and with rollouts of length 0 to a multiple: what was there is there, the rest counts for nothing."""
    parts = Parts(SMALL)
    slots = parts.collect(3)
    experience, here = parts.experience, Transfer(torch.device("cpu"))
    whole, filled = experience.batch(slots, here), experience.batch(slots, here, unit=4)
    n_steps, n = len(whole.rewards), len(slots)
    assert filled.valid.shape == (experience.t_max, -(-n // 4) * 4)
    for name, part in whole._asdict().items():
        by_rollout = name in ("state", "bootstrap", "lengths")
        there = getattr(filled, name)
        assert torch.equal(there[:n] if by_rollout else there[:n_steps, :n], part), name
    assert int(filled.valid.sum()) == int(whole.valid.sum())
    assert filled.lengths is not None
    assert filled.lengths[n:].tolist() == [0] * (filled.valid.shape[1] - n)
