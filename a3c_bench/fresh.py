"""Stale gradients beside fresh ones: how far both point the same way, measured on request.

    stale samples (chosen by an older theta) -> gradient as it is applied --+
                                                                            +--> cosine
    theta just before that update -> fresh samples -> gradient at theta ----+

Fresh samples come from environments and random numbers of their own: what a run computes is the same with and without.
"""

import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.acting.actor import Actor
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters
from a3c_bench.parallel.notes import Notes
from a3c_bench.parallel.tally import Tally
from a3c_bench.runtime.clock import TrainingClock
from a3c_bench.runtime.peers import ALONE, Peers
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.schema import Config


class NoComparison:
    """Compares nothing, as nobody asked for it."""

    def keep(self, gradient: Tensor, theta: Tensor) -> None:
        """Call it just before each update, with its gradient [P], clipped or not, and theta [P]."""

    def cosine(self) -> dict[str, Tensor]:
        """Call it after the update: `gradient_cosine`, a scalar, of an update whose turn it was; else nothing."""
        return {}

    def close(self) -> None:
        """Ends the environments."""


class FreshGradients(NoComparison):
    """Compares the gradient of one update in so many with one of fresh samples.

    Args:
        config: of the run.
        n_envs: B of a fresh rollout, which has t_max steps.
        device: that learns.
        path: tells apart who compares, by attempt and worker.
        n_threads: of the environments.
        end_with_episode: see `Actor`.
        peers: the other ranks, whose fresh samples are compared as one batch with those of this one.
    """

    def __init__(
        self,
        config: Config,
        n_envs: int,
        device: torch.device,
        path: tuple[int, ...],
        n_threads: int | None = None,
        end_with_episode: bool = False,
        peers: Peers = ALONE,
    ) -> None:
        options = config.algo
        assert config.lag.gradient_cosine_every_updates is not None
        self._every = config.lag.gradient_cosine_every_updates
        self._n_updates = 0
        self._kept: tuple[Tensor, Tensor] | None = None
        environments, actions = (sequence(config.seed, Stream.FRESH, *path, what) for what in (0, 1))
        self._peers, first = peers, peers.index * n_envs
        self._envs = build.make_envs(config, n_envs, environments, n_threads=n_threads, first=first)
        network: ActorCritic = build.make_network(config, self._envs, device)
        self.parameters = FlatParameters(network)
        self._learner = build.make_actor_critic_learner(
            config, network, self.parameters, log_epsilon=options.log_epsilon, ratio_clip=options.ratio_clip
        )
        self._notes = Notes(Tally(1, config.env.frame_skip, TrainingClock()), 0)  # nobody reads them
        generator = torch_generator(device, actions)
        rank = peers.index, peers.size
        self._actor = Actor(
            self._envs, network, generator, options.t_max, device, self._notes, end_with_episode, rank=rank
        )

    def keep(self, gradient: Tensor, theta: Tensor) -> None:
        """Copies both, if it is this update's turn: they change while fresh samples are gathered."""
        if self._n_updates % self._every == 0:
            self._kept = gradient.detach().clone(), theta.detach().clone()
        self._n_updates += 1

    def cosine(self) -> dict[str, Tensor]:
        """Gathers and differentiates; nothing is found where there is no gradient to compare."""
        if self._kept is None:
            return {}
        (gradient, theta), self._kept = self._kept, None
        self.parameters.values.data.copy_(theta)
        found = self._learner.differentiate(self._actor.act().batch())
        self._peers.reduce(self.parameters, found.loss.divisor)
        self._notes.take()
        fresh = self.parameters.gradients
        if not (gradient.norm() > 0.0 and fresh.norm() > 0.0):
            return {}
        return {"gradient_cosine": torch.cosine_similarity(gradient, fresh, dim=0)}

    def close(self) -> None:
        """Ends the environments."""
        self._envs.close()


def make_comparison(
    config: Config,
    n_envs: int,
    device: torch.device,
    path: tuple[int, ...],
    n_threads: int | None = None,
    end_with_episode: bool = False,
    peers: Peers = ALONE,
) -> NoComparison:
    """With the arguments of `FreshGradients`; what is not asked for costs nothing."""
    if config.lag.gradient_cosine_every_updates is None or not config.lag.enabled:
        return NoComparison()
    return FreshGradients(config, n_envs, device, path, n_threads, end_with_episode, peers)
