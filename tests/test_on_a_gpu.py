"""What only a GPU can show: the same numbers as on the CPU, as written, compiled and captured; graphs and their chance.

`pytest -m gpu -n 0` runs them; without a GPU they are skipped.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from a3c_bench.core.compiled import WARM_UP_CALLS, Compute
from a3c_bench.core.networks import sample_actions
from a3c_bench.core.optim import RMSProp, set_learning_rate
from a3c_bench.core.transfer import Transfer
from benchmarks import gpu, gpu_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),  # compiling takes a minute
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]
GRAPHS = Compute(cuda_graphs=True)


@pytest.mark.parametrize("mode", ["eager", "graphs", "compiled"])
@pytest.mark.parametrize("algo", ["paac", "ga3c", "dqn"])
def test_the_gpu_agrees_with_the_cpu(algo: str, mode: str, tmp_path: Path) -> None:
    """On CartPole; `benchmarks/gpu.py --steps agree` does it on Pong."""
    gpu_steps.agree(gpu.Job("agree", tmp_path, "cuda", True, None, 600.0, time.monotonic()), algo, mode)
    found = gpu.read_results(tmp_path)
    assert [line["mode"] for line in found] == [mode] * len(gpu_steps.N_UPDATES)
    assert all(line["agrees"] for line in found), found


def test_a_graph_draws_what_would_be_drawn_without_and_goes_on_from_a_checkpoint() -> None:
    device = torch.device("cuda")
    log_probs = torch.full((64, 4), 0.25, device=device).log()
    generator, other = (torch.Generator(device).manual_seed(3) for _ in range(2))
    draw = GRAPHS.fixed(lambda x: sample_actions(x, generator), device, (generator,))
    for n in range(WARM_UP_CALLS + 4):
        if n == WARM_UP_CALLS + 2:
            generator.set_state(torch.Generator(device).manual_seed(11).get_state())
            other.manual_seed(11)
        assert torch.equal(draw(log_probs), sample_actions(log_probs, other)), n
    assert torch.equal(generator.get_state(), other.get_state())


@pytest.mark.parametrize("kind", ["rmsprop", "adam", "radam"])
def test_a_captured_step_follows_its_learning_rate(kind: str) -> None:
    device = torch.device("cuda")
    theta = torch.nn.Parameter(torch.zeros(3, device=device))
    theta.grad = torch.ones(3, device=device)
    optimizer: torch.optim.Optimizer = RMSProp([theta], 1.0, decay=0.0, epsilon=0.0)
    if kind == "adam":
        optimizer = torch.optim.Adam([theta], 1.0, eps=0.0, fused=True, capturable=True)
    if kind == "radam":  # with this second moment it never divides by it
        optimizer = torch.optim.RAdam([theta], 1.0, betas=(0.9, 0.5), foreach=False, capturable=True)
    step = GRAPHS.fixed(lambda: optimizer.step(), device)
    for lr in (0.5, 0.25, 4.0, 0.125, 0.0625, 2.0):
        before = theta.detach().clone()
        set_learning_rate(optimizer, lr)
        step()
        torch.testing.assert_close(before - theta.detach(), torch.full_like(before, lr), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_copied_is_what_was_given(beside: bool) -> None:
    to_device = Transfer(torch.device("cuda"), beside)
    array = np.zeros((64, 4, 84, 84), dtype=np.uint8)
    moved = []
    for n in range(20):
        array[:] = n  # at once after the last call: what is on its way must not change
        moved.append(to_device("frames", array))
    assert [int(frames.float().mean()) for frames in moved] == list(range(20))
