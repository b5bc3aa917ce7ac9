"""Theta in shared memory: copies and their versions, views of workers, and the lock."""

import threading

import torch
from torch import nn

from a3c_bench.core.optim import RMSProp, SharedOptimizerState
from a3c_bench.parallel.hogwild import SharedModel
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.tokens import Tokens
from a3c_bench.runtime.clock import TrainingClock


def shared_model(n_states: int = 1, lock: Tokens | None = None) -> SharedModel:
    theta = torch.arange(5.0)
    states = [SharedOptimizerState(RMSProp([nn.Parameter(theta)], 0.1)) for _ in range(n_states)]
    return SharedModel(theta, states, Tally(2, 1, TrainingClock()), lock)


def test_a_copy_is_not_older_than_its_version_says() -> None:
    shared, copy = shared_model(), torch.zeros(5)
    shared.tally.add(0, updates=3)
    real = shared.theta.clone()

    class Meanwhile(torch.Tensor):
        """A vector into which theta is copied just after others have changed it."""

        def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            source.add_(1.0)
            shared.tally.add(1, updates=1)
            return torch.Tensor.copy_(copy, source)

    assert shared.fetch(torch.zeros(5).as_subclass(Meanwhile)) == 3
    assert torch.equal(copy, real + 1.0)
    assert shared.fetch(copy) == 4


def test_a_worker_sees_one_optimiser_state_its_own_or_that_of_all() -> None:
    for n_states in (1, 2):
        shared = shared_model(n_states)
        for index in range(2):
            view = shared.for_worker(index)
            assert view.state is shared.states[index % n_states]
            assert view.theta is shared.theta


def test_a_copy_waits_for_the_lock() -> None:
    lock = Tokens(1)
    shared, copy = shared_model(lock=lock), torch.zeros(5)
    thread = threading.Thread(target=shared.fetch, args=(copy,))
    with shared.exclusively():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        shared.theta.fill_(7.0)
    thread.join(10.0)
    assert copy.tolist() == [7.0] * 5
