"""core.compiled: what is captured reads arguments and learning rate anew, and keeps its hands off old results."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tape import CpuTape, tapes
from torch import Tensor

from a3c_bench.core import compiled
from a3c_bench.core.compiled import WARM_UP_CALLS, Compute, padded, rounded_up
from a3c_bench.core.networks import sample_actions
from a3c_bench.core.optim import RMSProp, set_learning_rate
from a3c_bench.core.rollout import Batch

CPU = torch.device("cpu")
GRAPHS = Compute(cuda_graphs=True)


@pytest.fixture(autouse=True)
def on_tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "CudaTape", CpuTape)
    tapes.clear()
    yield
    tapes.clear()


def test_as_written_is_the_function_itself() -> None:
    compute = Compute()
    assert compute.traced(abs) is compute.fixed(abs, CPU) is abs
    assert not compute.fixes_shapes
    assert compute.patience(10.0) == 10.0
    assert GRAPHS.patience(10.0) > 100.0


def test_each_call_has_its_own_arguments_and_results() -> None:
    double = GRAPHS.fixed(lambda x: (2.0 * x, x), CPU)
    results = [double(torch.tensor([float(n)])) for n in range(WARM_UP_CALLS + 3)]
    assert [(float(twice), float(same)) for twice, same in results] == [(2.0 * n, n) for n in range(len(results))]
    (tape,) = tapes
    assert (tape.n_warm_ups, tape.n_replays) == (WARM_UP_CALLS, 3)


def test_effects_are_had_once_per_call() -> None:
    total = torch.zeros(())
    add = GRAPHS.fixed(lambda x: total.add_(x), CPU)
    sums = [float(add(torch.tensor(float(n)))) for n in range(1, 8)]
    assert sums == [1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0]


def test_each_shape_and_each_kind_of_call_has_a_graph() -> None:
    def total(x: Tensor, y: Tensor | None, squared: bool) -> Tensor:
        x = x if y is None else x + y
        return x.square().sum() if squared else x.sum()

    fixed = GRAPHS.fixed(total, CPU)
    for _ in range(WARM_UP_CALLS + 2):
        for x in (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1, 2])):
            for y in (None, x):
                for squared in (False, True):
                    assert float(fixed(x, y, squared)) == float(total(x, y, squared))
    assert len(tapes) == 12
    assert {tape.n_replays for tape in tapes} == {2}


def test_tuples_keep_their_names_and_what_is_missing() -> None:
    part = torch.ones(2, 1)
    batch = Batch(part, part, part, part, part, part, part, part, part)
    fixed = GRAPHS.fixed(lambda b: b._replace(rewards=3.0 * b.rewards), CPU)
    for n in range(WARM_UP_CALLS + 2):
        found = fixed(batch._replace(rewards=n * part))
        assert isinstance(found, Batch)
        assert found.lengths is None
        assert torch.equal(found.rewards, 3.0 * n * part)


def test_the_learning_rate_is_followed_after_it_changed() -> None:
    """What the optimiser was told after its step was captured counts; a number instead of a tensor would not."""
    theta, g = torch.nn.Parameter(torch.zeros(3)), torch.ones(3)
    theta.grad = g
    optimizer = RMSProp([theta], lr=1.0, decay=0.0, epsilon=0.0)
    optimizer.param_groups[0]["lr"] = torch.ones(())
    step = GRAPHS.fixed(lambda: optimizer.step(), CPU)
    for lr in (0.5, 0.25, 4.0, 0.125, 0.0625, 2.0):
        before = theta.detach().clone()
        set_learning_rate(optimizer, lr)
        step()
        torch.testing.assert_close(before - theta.detach(), torch.full((3,), lr))


def test_draws_go_on_where_the_generator_is() -> None:
    log_probs, generator = torch.full((64, 4), 0.25).log(), torch.Generator().manual_seed(3)
    draw = GRAPHS.fixed(lambda x: sample_actions(x, generator), CPU, (generator,))
    drawn = []
    for n in range(WARM_UP_CALLS + 4):
        if n == WARM_UP_CALLS + 2:  # as a run that goes on from a checkpoint
            generator.set_state(torch.Generator().manual_seed(11).get_state())
        drawn.append(draw(log_probs))
    first, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(11)
    expected = [sample_actions(log_probs, first) for _ in range(WARM_UP_CALLS + 2)]
    expected += [sample_actions(log_probs, again) for _ in range(2)]
    assert torch.equal(torch.stack(drawn), torch.stack(expected))
    assert tapes[0].generators == [generator]


@pytest.mark.parametrize("asks", [lambda x: x * float(x.sum()), lambda x: x[x > 0.0], lambda x: x.nonzero()])
def test_who_asks_the_device_cannot_be_captured(asks: Any) -> None:
    fixed = GRAPHS.fixed(asks, CPU)
    for _ in range(WARM_UP_CALLS):
        fixed(torch.ones(2))
    with pytest.raises(RuntimeError, match="cannot be captured"):
        fixed(torch.ones(2))


def test_nobody_is_beside_who_compiles_or_captures() -> None:
    gate, inside = compiled._Gate(), []

    def go(alone: bool) -> None:
        for _ in range(20):
            with gate.alone() if alone else gate.beside():
                inside.append(alone)
                assert not alone or inside == [True]
                assert alone or True not in inside
                time.sleep(0.0001)
                inside.remove(alone)

    failed: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", failed.append)
        threads = [threading.Thread(target=go, args=(alone,)) for alone in (True, False, False, True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
    assert not failed
    assert not inside


def test_few_shapes() -> None:
    assert [rounded_up(n, 4) for n in (1, 4, 5, 8)] == [4, 4, 8, 8]
    array = np.arange(6).reshape(2, 3)
    assert padded(array, 2) is padded(array, 2, 3) is array
    assert padded(array, 3, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0], [0, 0, 0, 0]]
    assert padded(array, 3).tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0]]
