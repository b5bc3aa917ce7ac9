"""Acting in lock step, learning in between: what PAAC and its relatives are made of, and what each update notes.

    wire(...)        environments, network, theta as one vector, the generator of actions, the learning rate
    wiring.actor()   steps the environments under a network, a rollout at a time
    lag_figures()    how old the samples of an update are: just before it
    add_up()         the gradient of all ranks: between differentiate and apply
    note()           what an update found: just after it

Whoever uses these decides what acts, how it is learnt from, and in which order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench import build
from a3c_bench.acting.actor import Actor
from a3c_bench.build import Net
from a3c_bench.core.compiled import Compute
from a3c_bench.core.lag import Stamp, effective_sample_size
from a3c_bench.core.learning import Backward
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.rollout import Batch, Rollout, divergence
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.runtime.ledger import Figures, Ledger
from a3c_bench.runtime.machine import resolve_device
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.runtime.session import Session
from a3c_bench.schema import Config


@dataclass(frozen=True)
class Wiring(Generic[Net]):
    """What `wire` makes."""

    device: torch.device
    envs: list[VectorEnv]  # algo.n_envs in all; closed by `close`
    network: Net  # at theta
    parameters: FlatParameters  # of it
    compute: Compute
    learning_rate_at: Callable[[int], float]  # of the global count of frames
    generator: torch.Generator  # draws actions; part of a checkpoint
    rank: tuple[int, int]  # of this process, and how many there are

    def actor(
        self,
        acts: ActorCritic | EpsilonGreedy,
        t_max: int,
        ledger: Ledger,
        n_rollouts: int = 1,
        values_every: int = 0,
        values_end: bool = True,
        witness: Callable[[NDArray[np.int64], Step, Stamp], None] | None = None,
    ) -> Actor:
        """Starts the environments; `acts` chooses in them. The other arguments are those of `Actor`."""
        return Actor(
            self.envs,
            acts,
            self.generator,
            t_max,
            self.device,
            ledger,
            n_rollouts=n_rollouts,
            values_every=values_every,
            values_end=values_end,
            compute=self.compute,
            witness=witness,
            rank=self.rank,
        )

    def close(self) -> None:
        """Ends the environments."""
        for envs in self.envs:
            envs.close()


def wire(
    config: Config,
    session: Session,
    make_network: Callable[[Config, VectorEnv, torch.device], Net],
    halves: bool = False,
) -> Wiring[Net]:
    """Environments, network and what draws, from the run's seed; nothing has been started yet.

    Args:
        config: its `algo` has n_envs and an optimizer.
        session: tells the attempt, each of which plays other games.
        make_network: `build.make_network` or `build.make_q_network`.
        halves: the environments are two batches, which may step by turns.
    """
    device, n_envs = resolve_device(config.device), config.algo.n_envs
    seed = sequence(config.seed, Stream.ENVIRONMENTS, session.attempt)
    half, first = n_envs // 2 if halves else 0, session.peers.index * n_envs
    parts = [(half, first), (n_envs - half, first + half)] if half else [(n_envs, first)]
    envs = [build.make_envs(config, size, seed, first=start) for size, start in parts]
    network = make_network(config, envs[0], device)
    return Wiring(
        device,
        envs,
        network,
        FlatParameters(network),
        build.make_compute(config),
        build.make_schedule(config),
        torch_generator(device, sequence(config.seed, Stream.ACTIONS)),
        (session.peers.index, session.peers.size),
    )


class Found(Protocol):
    """What is known of the samples [T, B] of an update just before it, at theta as it is."""

    @property
    def log_probs(self) -> Tensor:
        """[T, B, A], of the policy."""

    @property
    def values(self) -> Tensor:
        """[T, B], V, or max Q."""

    @property
    def mask(self) -> Tensor:
        """[T, B] bool, those that are learnt from."""


def lag_figures(
    session: Session,
    rollout: Rollout,
    batch: Batch,
    found: Found,
    now: Stamp,
    mask: Tensor | None = None,
    taken: int | None = None,
) -> dict[str, Tensor]:
    """Notes the lag of the samples that are about to change theta; gives figures of the update that come of it.

    Args:
        session: has the meter.
        rollout: that the samples are of.
        batch: of the samples; all of the rollout, or a minibatch of it.
        found: of the batch.
        now: just before the update.
        mask: [T, B] bool, which of the rollout's samples these are; None: `found` says it.
        taken: theta's version when the rollout began to be learnt from; None: that of now.
    """
    diverged = divergence(batch, found.log_probs, found.mask, found.values)
    session.lag.add(**rollout.lag(now, found.mask if mask is None else mask, taken), **diverged)
    return effective_sample_size(diverged)


def add_up(session: Session, parameters: FlatParameters, divisor: Tensor | None) -> None:
    """Makes the gradient of this rank that of all ranks' samples together.

    Args:
        session: knows the other ranks; alone, nothing happens.
        parameters: have the gradient.
        divisor: what the loss was divided by, a scalar; None: by nothing.
    """
    if session.peers.size > 1:
        session.timer.lap("train")
        session.peers.reduce(parameters, divisor)
        session.timer.lap("communicate")


def note(session: Session, found: Backward, figures: Figures) -> None:
    """Counts an update of theta, with what it found and what else there is to tell of it."""
    if session.peers.size > 1 and found.loss.divisor is None:  # rows have the mean over ranks of what is a sum here
        figures = {**figures, "loss": found.loss.total * session.peers.size}
    session.updated(figures, found.fit)
    session.ratio("unusable_share", *found.unusable)
    session.ratio("clip_share", *found.cut)
    session.timer.lap("train")
