"""Asynchronous Q-learners: targets and updates by hand and by naive loops, and the faults that others' codes had."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from common import FakeSession, small
from torch import Tensor

from a3c_bench.acting.policy import Exploration
from a3c_bench.algos import async_q
from a3c_bench.algos.async_q import Worker, epsilon_at, final_epsilons, mean_epsilon
from a3c_bench.algos.settings import NStepQConfig, OneStepQConfig, OneStepSarsaConfig
from a3c_bench.core.q_learning import q_returns
from a3c_bench.core.rollout import Rollout
from a3c_bench.parallel.hogwild import SharedTarget
from a3c_bench.schema import Config, OptimizerConfig

CONSTANT = OptimizerConfig(lr=0.01, epsilon=0.1, anneal=False)
COMMON: dict[str, Any] = {
    "n_workers": 2,
    "optimizer": CONSTANT,
    "target_period_frames": 100,
    "epsilon_ends": (0.3,),
    "epsilon_shares": (1.0,),
    "epsilon_horizon_frames": 100,
}
ONE_STEP, SARSA, N_STEP = (made(**COMMON) for made in (OneStepQConfig, OneStepSarsaConfig, NStepQConfig))
ALL = {options.name: options for options in (ONE_STEP, SARSA, N_STEP)}


def configured(options: Any, **changes: Any) -> Config:
    return small(replace(options, **changes), n_torch_threads=1)


def make_workers(config: Config, n_workers: int = 1) -> list[Worker]:
    """Workers in this process, on one theta."""
    torch.set_num_threads(1)
    config = replace(config, algo=replace(config.algo, n_workers=n_workers))
    _, shared, target = async_q.assemble(config, FakeSession(config))  # type: ignore[arg-type]
    return [Worker(config, shared.for_worker(index), target, index, attempt=1) for index in range(n_workers)]


def act(worker: Worker, epsilon: float = 0.3) -> Rollout:
    worker.synchronise()
    return worker.actor.act(epsilon)


def shake(worker: Worker, size: float = 0.5) -> None:
    """theta and theta^- as no start has them, and unlike each other."""
    torch.manual_seed(5)
    for vector in (worker.shared.theta, worker.target._values):
        vector.add_(size * torch.randn_like(vector))


# --- targets ----------------------------------------------------------------------------------------------------------


def test_the_three_targets_by_hand() -> None:
    """Three steps of one environment, gamma 1/2: one step, n steps, and a game that a time limit cut."""
    rewards, values = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[10.0], [20.0], [40.0]])
    none, last = torch.zeros(3, 1).bool(), torch.tensor([[False], [False], [True]])

    def targets(terminated: Tensor, ends: Tensor) -> list[float]:
        return q_returns(rewards, values, terminated, ends, 0.5)[:, 0].tolist()

    assert targets(none, ~none) == [6.0, 12.0, 24.0]  # r + gamma Q^-(s')
    assert targets(last, ~none) == [6.0, 12.0, 4.0]
    assert targets(none, last) == [8.0, 14.0, 24.0]  # 4 + 20; 2 + 12; 1 + 7
    assert targets(last, last) == [3.0, 4.0, 4.0]
    cut = torch.tensor([[True], [False], [False]])
    assert targets(none, cut | last) == [6.0, 14.0, 24.0]
    assert targets(cut, last) == [1.0, 14.0, 24.0]


def naive_loss(worker: Worker, rollout: Rollout) -> tuple[Tensor, list[float]]:
    """The loss of a rollout sample by sample, as the paper's algorithms have it, and its TD errors."""
    options, batch = worker.options, rollout.batch()
    online, target = worker.network, worker.learner.target_network
    n_steps, n_envs = batch.rewards.shape
    losses, errors = [], []
    for b in range(n_envs):
        done = [*batch.actions[:, b].tolist()]
        if worker.actor.ahead is not None:
            done.append(int(worker.actor.ahead.actions[b]))
        for t in range(n_steps):
            if not batch.valid[t, b]:
                continue
            y, discount = 0.0, 1.0
            for k in range(t, n_steps):
                y += discount * float(batch.rewards[k, b])
                discount *= options.gamma
                if batch.terminated[k, b]:
                    break
                one_step = not isinstance(options, NStepQConfig)
                if one_step or batch.truncated[k, b] or k == n_steps - 1:
                    seen = rollout.observations[k + 1, b : b + 1]
                    q = target(seen)[0].tolist()
                    best = online(seen)[0] if getattr(options, "double", False) else target(seen)[0]
                    y += discount * q[done[k + 1] if isinstance(options, OneStepSarsaConfig) else int(best.argmax())]
                    break
            error = y - online(rollout.observations[t, b : b + 1])[0, batch.actions[t, b]]
            size = error.abs()
            clip = options.td_error_clip
            quadratic = clip is None or float(size.detach()) <= clip
            losses.append(0.5 * error**2 if quadratic else clip * (size - 0.5 * clip))
            errors.append(float(error.detach()))
    total = torch.stack(losses).sum()
    return (total / len(losses) if options.loss_reduction == "mean" else total), errors


@pytest.mark.parametrize(
    ("name", "dueling", "changes"),
    [
        ("one_step_q", False, {}),
        ("one_step_q", True, {"double": True, "envs_per_worker": 3, "t_max": 7, "td_error_clip": 0.4}),
        ("one_step_sarsa", False, {}),
        ("one_step_sarsa", False, {"envs_per_worker": 3, "loss_reduction": "mean"}),
        ("n_step_q", True, {}),
        ("n_step_q", False, {"double": True, "envs_per_worker": 3, "t_max": 7}),
    ],
)
def test_one_update_equals_the_papers_sums(name: str, dueling: bool, changes: dict[str, Any]) -> None:
    """The gradient is of theta', with theta^- in the targets, and is applied to what theta has become meanwhile."""
    config = configured(ALL[name], optimizer=replace(CONSTANT, max_grad_norm=0.5), **changes)
    config = replace(config, network=replace(config.network, dueling=dueling))
    config = replace(config, env=replace(config.env, max_episode_frames=11))  # games that are cut
    (worker,) = make_workers(config)
    shake(worker)
    for _ in range(8):
        worker.learn(act(worker))
    shake(worker)
    worker.target_version = None  # theta^- is another
    n_cut = n_over = 0
    for _ in range(8):
        rollout = act(worker)
        worker.target_parameters.values.data.copy_(worker.target._values)
        worker.shared.theta.add_(0.1)  # somebody else's update
        theta, square = worker.shared.theta.clone(), worker.shared.state.tensors["square"].clone()
        total, errors = naive_loss(worker, rollout)
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(total, list(worker.network.parameters()))])
        norm = gradient.norm()
        gradient = gradient * min(1.0, 0.5 / float(norm))
        square = 0.99 * square + 0.01 * gradient**2
        n_cut, n_over = n_cut + int(rollout.batch().truncated.sum()), n_over + int(rollout.batch().terminated.sum())
        worker.learn(rollout)
        torch.testing.assert_close(worker.shared.theta, theta - 0.01 * gradient / torch.sqrt(square + 0.1))
        found = worker.notes.pending.figures[-1]
        torch.testing.assert_close(found["loss"], total.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["gradient_norm"], norm, rtol=1e-4, atol=1e-6)
        assert float(found["td_error"]) == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert n_cut + n_over > 0


def test_where_each_value_comes_from() -> None:
    """Double asks theta' for the action and theta^- for its value; SARSA takes the one that is done."""
    for options, best in ((ONE_STEP, 7.0), (replace(ONE_STEP, double=True), 3.0), (SARSA, 5.0)):
        (worker,) = make_workers(configured(options, gamma=1.0, t_max=1))
        rollout = act(worker)
        for parameters, row in ((worker.parameters, [1.0, 2.0]), (worker.target_parameters, [7.0, 3.0])):
            parameters.values.data.zero_()
            network = worker.network if parameters is worker.parameters else worker.learner.target_network
            network.head.bias.data.copy_(torch.tensor(row))
        batch = rollout.batch()._replace(actions=torch.zeros(1, 1, dtype=torch.int64))
        taken = torch.tensor([[1]]) if options is SARSA else None
        if options is SARSA:
            worker.learner.target_network.head.bias.data[1] = 5.0
        found = worker.learner.differentiate(batch, rollout.observations[:2], taken)
        assert found.td_errors.tolist() == [1.0 + best - 1.0]  # CartPole's reward, and Q(s, a_0) of theta'
        assert float(found.loss) == pytest.approx(0.5 * best**2)


@pytest.mark.parametrize(("name", "errors"), [("one_step_q", [3.0, 3.0]), ("n_step_q", [2.5, 3.0])])
def test_an_update_by_hand(name: str, errors: list[float]) -> None:
    """Q is 0, Q^- is 4, gamma 1/2, rewards are 1: y is 1 + 4/2, and of two steps 1 + (1 + 4/2) / 2.

    The gradient of the head's bias is minus the sum of the errors of an action, and RMSProp's first step is
    lr g / sqrt(0.01 g^2 + 0.1).
    """
    (worker,) = make_workers(configured(ALL[name], gamma=0.5, t_max=2))
    worker.shared.theta.zero_()
    worker.target._values.zero_()
    target = worker.learner.target_network
    worker.target_parameters.values.data.zero_()
    target.head.bias.data.fill_(4.0)
    worker.target.load_state_dict({"values": worker.target_parameters.values.data, "passed": torch.zeros(1)})
    rollout = act(worker)
    actions = rollout.actions[:, 0].tolist()
    worker.learn(rollout)
    assert worker.notes.pending.lags[-1]["gradient_staleness_updates"].tolist() == [0]
    worker.synchronise()
    gradients = [-sum(e for e, action in zip(errors, actions, strict=True) if action == a) for a in (0, 1)]
    steps = [-0.01 * g / (0.01 * g * g + 0.1) ** 0.5 for g in gradients]
    assert worker.network.head.bias.tolist() == pytest.approx(steps)
    assert float(worker.notes.pending.figures[-1]["loss"]) == pytest.approx(sum(e * e / 2 for e in errors))


# --- what others' codes got wrong -------------------------------------------------------------------------------------


def test_sarsas_next_action_is_drawn_once_and_then_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    real = Exploration.__call__

    def drawing(policy: Exploration, observations: Any, epsilon: float) -> Any:
        found = real(policy, observations, epsilon)
        drawn.append(found[0].tolist())
        return found

    monkeypatch.setattr(Exploration, "__call__", drawing)
    (worker,) = make_workers(configured(SARSA))
    sent: list[list[int]] = []
    send = worker.envs.send_all
    monkeypatch.setattr(worker.envs, "send_all", lambda actions: (sent.append(actions.tolist()), send(actions))[1])
    valued = []
    for _ in range(40):
        rollout = act(worker, epsilon=1.0)
        assert worker.actor.ahead is not None
        valued.append((len(sent), worker.actor.next_actions()[-1].tolist()))
        worker.learn(rollout)
    assert drawn[: len(sent)] == sent  # each as it was drawn, none more than the one that is ahead
    assert len(drawn) == len(sent) + 1
    assert all(sent[place] == action for place, action in valued[:-1])


def test_the_action_ahead_has_the_stamp_of_who_drew_it() -> None:
    """An update lies between it and the rest of its rollout."""
    (worker,) = make_workers(configured(SARSA, t_max=3))
    lags = []
    while len(lags) < 8:
        worker.learn(act(worker, epsilon=0.0))
        lags.append(worker.notes.pending.lags[-1]["lag_updates"].tolist())
    assert lags[0] == [0.0] * 3
    assert [1.0, 0.0, 0.0] in lags[1:]
    (worker,) = make_workers(configured(ONE_STEP, t_max=3))
    for _ in range(8):
        worker.learn(act(worker))
        assert set(worker.notes.pending.lags[-1]["lag_updates"]) == {0.0}


def test_the_target_is_renewed_when_the_frames_of_all_pass_a_multiple_and_by_one_worker() -> None:
    """Five steps at a time, and others' in between: most multiples of 7 are jumped over."""
    first, second = make_workers(configured(ONE_STEP, target_period_frames=7), 2)
    renewed = []
    for turn in range(60):
        worker = (first, second)[turn % 2]
        before, version = worker.target._values.clone(), worker.target.version
        start = worker.shared.tally.frames
        worker.learn(act(worker))
        end = worker.shared.tally.frames
        assert worker.target.version == end // 7
        assert (worker.target.version > version) == (end // 7 > start // 7)
        changed = not torch.equal(worker.target._values, before)
        assert changed == (end // 7 > start // 7)
        if changed:
            assert torch.equal(worker.target._values, worker.shared.theta)
            renewed.append(turn)
    assert 10 < len(renewed) < 60


def test_of_two_workers_that_see_it_due_one_renews() -> None:
    theta = torch.zeros(3)
    target = SharedTarget(theta, 10)
    assert not target.renew(theta + 1.0, 9)
    assert target.renew(theta + 2.0, 10)
    assert not target.renew(theta + 3.0, 12)
    assert target._values.tolist() == [2.0] * 3
    real = target._turn

    class Beaten:
        """While this one waits for its turn, another has had it."""

        def __enter__(self) -> None:
            target._passed.fill_(5)

        def __exit__(self, *error: Any) -> None: ...

    target._turn = Beaten()  # type: ignore[assignment]
    assert not target.renew(theta + 4.0, 57)
    target._turn = real
    assert target._values.tolist() == [2.0] * 3
    other = SharedTarget(theta, 10)
    other.load_state_dict(target.state_dict())
    assert (other.version, other._values.tolist()) == (5, [2.0] * 3)


def test_a_worker_values_with_the_targets_newest_copy() -> None:
    first, second = make_workers(configured(ONE_STEP, target_period_frames=12), 2)
    for _ in range(20):
        version = first.target.version
        kept = first.target._values.clone()
        second.learn(act(second))
        assert second.target_version == version
        assert torch.equal(second.target_parameters.values.data, kept)


def test_the_gradient_is_of_the_copy_that_acted_and_not_of_a_pass_before(monkeypatch: pytest.MonkeyPatch) -> None:
    (worker,) = make_workers(configured(N_STEP))
    rollout = act(worker)
    worker.shared.theta.add_(1.0)
    seen = []
    forward = worker.network.forward
    monkeypatch.setattr(
        worker.network, "forward", lambda x: (seen.append(worker.parameters.values.detach().clone()), forward(x))[1]
    )
    copy = worker.parameters.values.detach().clone()
    worker.learn(rollout)
    assert len(seen) == 1
    assert torch.equal(seen[0], copy)


def test_the_epsilons_are_the_papers_shares() -> None:
    """0.1, 0.01 and 0.5 with 0.4, 0.3 and 0.3: exactly with ten workers, to within one with others."""
    options = OneStepQConfig()
    for seed in range(20):
        assert sorted(final_epsilons(options, 10, seed)) == [0.01] * 3 + [0.1] * 4 + [0.5] * 3
        for n_workers in (1, 2, 3, 4, 16):
            ends = final_epsilons(options, n_workers, seed)
            for end, share in zip(options.epsilon_ends, options.epsilon_shares, strict=True):
                assert abs(ends.count(end) - share * n_workers) < 1.0
    drawn = [final_epsilons(options, 1, seed)[0] for seed in range(400)]
    for end, share in zip(options.epsilon_ends, options.epsilon_shares, strict=True):
        assert drawn.count(end) / 400 == pytest.approx(share, abs=0.07)
    assert final_epsilons(options, 4, 3) == final_epsilons(options, 4, 3)


def test_epsilon_falls_on_the_frames_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(ONE_STEP, epsilon_ends=(0.2, 0.4), epsilon_shares=(0.5, 0.5), epsilon_horizon_frames=100)
    assert [epsilon_at(options, 0.2, n) for n in (0, 50, 100, 500)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert mean_epsilon(options, [0.2, 0.4], 100) == pytest.approx(0.3)
    first, second = make_workers(configured(options), 2)
    assert (first.epsilon_end, second.epsilon_end) == (0.2, 0.4)
    first.shared.tally.begin(1000, 0)
    used = []
    for worker in (first, second):
        worker.actor.act = lambda epsilon, worker=worker: (
            used.append(epsilon) or type(worker.actor).act(worker.actor, 0)
        )  # type: ignore[method-assign]
        worker.update()
    assert used == pytest.approx([0.2, 0.4])


def test_workers_see_games_and_draws_of_their_own() -> None:
    first, second = make_workers(configured(ONE_STEP), 2)
    rollouts = [act(worker, epsilon=1.0) for worker in (first, second)]
    assert not torch.equal(rollouts[0].observations[0], rollouts[1].observations[0])
    draws = [[act(worker, epsilon=1.0).actions.flatten().tolist() for _ in range(6)] for worker in (first, second)]
    assert draws[0] != draws[1]
