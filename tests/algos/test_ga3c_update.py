"""GA3C's update against a naive one, and what each option changes in it."""

import functools
from dataclasses import replace

import pytest
import torch
from ga3c_parts import CONSTANT, SMALL, Parts, Rollout, learn, with_algo

from a3c_bench.schema import AdvantageConfig, Config


def naive_update(parts: Parts, config: Config, rollouts: list[Rollout], epsilon: float = 0.0) -> torch.Tensor:
    """Theta after one update: summed loss, n-step returns from the acting bootstrap, RMSProp by hand."""
    options, network = config.algo, parts.trainer.network
    total = torch.zeros(())
    for rollout in rollouts:
        log_probs, values = network.unroll(
            rollout.observations.unsqueeze(1), rollout.state.unsqueeze(0), torch.zeros(len(rollout.actions), 1).bool()
        )
        target = 0.0 if rollout.terminated else float(rollout.bootstrap)
        for t in reversed(range(len(rollout.actions))):
            target = float(rollout.rewards[t]) + options.gamma * target
            pi = log_probs[t, 0].exp()
            advantage = target - float(values[t, 0].detach())
            total = total - (pi[rollout.actions[t]] + epsilon).log() * advantage
            total = total + options.entropy_weight * (pi * (pi + epsilon).log()).sum()
            total = total + options.value_weight * (target - values[t, 0]) ** 2
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])
    square = parts.statistics.tensors["square"] * 0.99 + 0.01 * gradient**2
    return parts.theta - 0.01 * gradient / torch.sqrt(square + 0.1)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("lstm_size", [None, 5])
def test_one_update_equals_the_papers_sums(lstm_size: int | None, epsilon: float) -> None:
    config = with_algo(log_epsilon=epsilon)
    config = replace(config, network=replace(config.network, lstm_size=lstm_size))
    parts = Parts(config)
    for _ in range(3):
        parts.trainer.learn(parts.collect(4))
    slots = parts.collect(15)
    rollouts = parts.rollouts(slots)
    assert any(rollout.terminated for rollout in rollouts)
    expected = naive_update(parts, config, rollouts, epsilon)
    parts.trainer.learn(slots)
    torch.testing.assert_close(parts.theta, expected, rtol=1e-4, atol=1e-6)


def test_one_long_rollout_is_no_end_for_estimators_that_need_one() -> None:
    parts = Parts(replace(SMALL, advantage=AdvantageConfig(kind="monte_carlo")))
    slots = parts.collect(30)
    rollouts = parts.rollouts(slots)
    trained = learn(parts.trainer, slots)
    usable = sum(len(r.actions) for r in rollouts if r.terminated or r.truncated)
    n_samples = sum(len(r.actions) for r in rollouts)
    assert 0 < usable < n_samples
    assert (trained.n_samples, trained.n_discarded, trained.n_unusable) == (n_samples, 0, n_samples - usable)


FAR = with_algo(optimizer=replace(CONSTANT, lr=0.1))  # far enough to clip ratios
VTRACE = replace(FAR, advantage=AdvantageConfig(kind="vtrace"))


def test_vtrace_changes_what_lag_does() -> None:
    thetas = []
    for config in (FAR, VTRACE):
        parts = Parts(config)
        held = parts.collect(5)
        for _ in range(4):
            parts.trainer.learn(held)
        thetas.append(parts.theta)
    assert not torch.allclose(*thetas, atol=1e-4)


@functools.cache
def learnt(config: Config) -> torch.Tensor:
    """Theta after four updates, the last two from samples that lag behind."""
    parts = Parts(config)
    for _ in range(2):
        parts.trainer.learn(parts.collect(6))
    held = parts.collect(6)
    for _ in range(2):
        parts.trainer.learn(held)
    return parts.theta


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (with_algo(t_max=3), SMALL),
        (with_algo(gamma=0.5), SMALL),
        (with_algo(entropy_weight=0.5), SMALL),
        (with_algo(value_weight=0.01), SMALL),
        (with_algo(loss_reduction="mean"), SMALL),
        (with_algo(loss_reduction="mean_over_envs"), SMALL),
        (with_algo(log_epsilon=0.1), SMALL),
        (with_algo(max_lag_updates=0), SMALL),
        (with_algo(stale_bootstrap=False), SMALL),
        (VTRACE, FAR),
        (replace(FAR, algo=replace(FAR.algo, ratio_clip=0.05)), FAR),
        (replace(VTRACE, advantage=replace(VTRACE.advantage, rho_bar=0.5)), VTRACE),
        (replace(VTRACE, advantage=replace(VTRACE.advantage, c_bar=0.5)), VTRACE),
        (with_algo(optimizer=replace(CONSTANT, kind="adam")), SMALL),
        (with_algo(optimizer=replace(CONSTANT, max_grad_norm=0.01)), SMALL),
        (with_algo(optimizer=replace(CONSTANT, lr_range=(1e-4, 1e-3))), SMALL),
        (with_algo(optimizer=replace(CONSTANT, anneal=True)), SMALL),
        (replace(SMALL, advantage=AdvantageConfig(kind="gae")), SMALL),
        (replace(SMALL, advantage=AdvantageConfig(kind="td")), SMALL),
        (replace(SMALL, network=replace(SMALL.network, lstm_size=4)), SMALL),
        (replace(SMALL, network=replace(SMALL.network, bf16=True)), SMALL),
        (replace(SMALL, seed=1), SMALL),
    ],
    ids=lambda config: "plain" if config is SMALL else str(config.algo) + str(config.advantage) + str(config.network),
)
def test_every_option_changes_what_is_learnt(config: Config, plain: Config) -> None:
    theta, changed = learnt(plain), learnt(config)
    assert theta.shape != changed.shape or not torch.allclose(theta, changed)


def test_vtraces_two_bounds_are_not_each_other() -> None:
    bounded = [replace(VTRACE.advantage, **{bar: 0.5}) for bar in ("rho_bar", "c_bar")]  # type: ignore[arg-type]
    thetas = [learnt(replace(VTRACE, advantage=advantage)) for advantage in bounded]
    assert not torch.allclose(*thetas)


def test_one_seed_gives_one_result_if_nothing_runs_at_once() -> None:
    assert torch.equal(learnt(SMALL), learnt.__wrapped__(SMALL))


def test_the_learning_rate_falls_with_the_frames_of_all_attempts() -> None:
    parts = Parts(with_algo(optimizer=replace(CONSTANT, anneal=True)))
    parts.tally.begin(1000, 0)
    for _ in range(3):
        rate = learn(parts.trainer, parts.collect(3)).metrics["learning_rate"]
        assert parts.tally.frames > 1000
        assert rate == pytest.approx(0.01 * (1 - parts.tally.frames / SMALL.budget.frames))
