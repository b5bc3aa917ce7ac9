"""Q actor-critic: psi and target by hand, the loss sample by sample, the head of Q beside the policy."""

import pytest
import torch
from torch import Tensor

from a3c_bench.core.advantages import estimator
from a3c_bench.core.learning import ActorCriticLearner
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.core.q_actor_critic import QActorCritic
from a3c_bench.core.rollout import Batch

GAMMA, BETA, C = 0.5, 0.01, 0.25
YES, NO = True, False


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(-1)


def test_psi_and_the_target_by_hand() -> None:
    """An end in step 1, a phantom, a time limit in step 3, and a last step that goes on."""
    q, v = column(3.0, -1.0, 9.0, 2.0, 0.5), column(1.0, 0.5, 7.0, 4.0, 8.0, 6.0)  # row 4 of v: where it was cut
    rewards = column(1.0, 2.0, 0.0, 3.0, 4.0)
    terminated, truncated = column(NO, YES, NO, NO, NO).bool(), column(NO, NO, NO, YES, NO).bool()
    outcomes = rewards, v, terminated, truncated, q
    found = estimator("q", GAMMA)(*outcomes)
    rows = [0, 1, 3, 4]  # 2 is nobody's sample
    assert found.advantages[rows, 0].tolist() == [2.0, -1.5, -2.0, -7.5]
    # 1 + 2 / 2; 2 and no more; 3 + 8 / 2, the value where it was cut; 4 + 6 / 2
    assert found.returns[rows, 0].tolist() == [2.0, 2.0, 7.0, 7.0]
    assert found.usable.all()
    raw = estimator("q", GAMMA, q_baseline=False)(*outcomes)
    assert torch.equal(raw.advantages, q)
    assert torch.equal(raw.returns, found.returns)


def network(lstm_size: int | None = None, shared_trunk: bool = True) -> QActorCritic:
    torch.manual_seed(0)
    sizes = {"lstm_size": lstm_size, "shared_trunk": shared_trunk}
    return QActorCritic((5,), 3, hidden_sizes=(8,), initialisation="fan_in", **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("lstm_size", "shared_trunk"), [(None, True), (None, False), (6, True)])
def test_its_value_is_the_mean_of_q_under_its_policy(lstm_size: int | None, shared_trunk: bool) -> None:
    net = network(lstm_size, shared_trunk)
    x, state = torch.randn(4, 2, 5), net.initial_state(2)
    ends = torch.zeros(4, 2, dtype=torch.bool)
    ends[1, 0] = True
    log_probs, q = net.unroll_q(x, state, ends)
    assert q.shape == (4, 2, 3)
    assert q.std() > 0.01
    assert torch.equal(log_probs, net.unroll(x, state, ends)[0])
    values = net.unroll(x, state, ends)[1].detach()
    for t in range(4):
        one, value, state = net(x[t], state)
        torch.testing.assert_close(one, log_probs[t])
        for b in range(2):
            expected = sum(float((log_probs[t, b, a].exp() * q[t, b, a]).detach()) for a in range(3))
            assert float(value[b].detach()) == pytest.approx(expected, abs=1e-6)
            assert float(values[t, b]) == pytest.approx(expected, abs=1e-6)
        state = state.masked_fill(ends[t].unsqueeze(-1), 0.0)


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_over_envs"])
def test_the_gradient_is_that_of_the_papers_sums(reduction: str, baseline: bool) -> None:
    """Sample by sample, with torch's own backward: Q learns of the action that was taken, the policy from psi alone."""
    net = network()
    parameters = FlatParameters(net)
    optimizer = RMSProp([parameters.values], 1.0)
    estimate = estimator("q", GAMMA, q_baseline=baseline)
    learner = ActorCriticLearner(
        net, parameters, optimizer, estimate, entropy_weight=BETA, value_weight=C, reduction=reduction
    )
    x, actions = torch.randn(4, 2, 5), torch.randint(3, (4, 2))
    rewards, bootstrap = torch.randn(4, 2), torch.randn(2)
    terminated, truncated = torch.zeros(2, 4, 2, dtype=torch.bool)
    terminated[1, 0] = truncated[2, 1] = True
    valid = torch.ones(4, 2, dtype=torch.bool)
    valid[2, 0] = valid[3, 1] = False
    behaviour = torch.full((4, 2, 3), 1 / 3).log()
    batch = Batch(
        x, net.initial_state(2), actions, behaviour, rewards, terminated, truncated, valid, bootstrap
    )  # psi is of the policy as it is
    found = learner.differentiate(batch)

    total = torch.zeros(())
    for b in range(2):
        for t in range(4):
            if not valid[t, b]:
                continue
            target, discount = 0.0, 1.0
            for k in range(t, 4):
                target += discount * float(rewards[k, b])
                discount *= GAMMA
                if terminated[k, b]:
                    break
                if truncated[k, b] or k == 3:
                    log_pi, q = net.unroll_q(x[k + 1 : k + 2], net.initial_state(2), valid) if k < 3 else (None, None)
                    end = float(bootstrap[b]) if log_pi is None else float((log_pi[0, b].exp() * q[0, b]).sum())
                    target += discount * end
                    break
            log_probs, q = (part[0, b] for part in net.unroll_q(x[t : t + 1], net.initial_state(2), valid))
            probs = log_probs.exp()
            psi = float(q[actions[t, b]] - baseline * (probs * q).sum())
            total = total - log_probs[actions[t, b]] * psi + BETA * (probs * log_probs).sum()
            total = total + C * (target - q[actions[t, b]]) ** 2
    total = total / {"sum": 1, "mean": 6, "mean_over_envs": 2}[reduction]
    expected = torch.autograd.grad(total, list(net.parameters()))
    torch.testing.assert_close(parameters.gradients, torch.cat([part.flatten() for part in expected]))
    assert float(found.loss.total) == pytest.approx(float(total), rel=1e-5)
    assert parameters.gradients.norm() > 0.1
