"""Random streams: none overlaps another."""

from typing import Any

import numpy as np
import pytest
import torch

from a3c_bench import build
from a3c_bench.envs import envpool
from a3c_bench.evaluation import evaluation_seed
from a3c_bench.runtime.seeding import GeneratorState, Stream, sequence, torch_generator
from a3c_bench.schema import Config

CPU = torch.device("cpu")


def test_streams_differ() -> None:
    """By seed, consumer and path: all their first numbers are different."""
    keys = [
        (seed, stream, path) for seed in (0, 1, 2) for stream in Stream for path in [(), (0,), (1,), (1, 0), (0, 1)]
    ]
    first = {tuple(sequence(seed, stream, *path).generate_state(4).tolist()) for seed, stream, path in keys}
    assert len(first) == len(keys) == 3 * len(Stream) * 5


def test_a_stream_is_the_same_every_time() -> None:
    """Numbers of results that exist: they change only if somebody renumbers the streams."""
    assert [stream.value for stream in Stream] == list(range(14))
    assert sequence(7, Stream.ACTIONS, 1).generate_state(2).tolist() == [2731737470, 1282171894]


def test_no_environment_seed_comes_twice(monkeypatch: pytest.MonkeyPatch, tiny: Config) -> None:
    """The seeds that EnvPool gets: 64 environments of training, two attempts, and evaluation, for seeds 0, 1, 2."""

    handed: list[int] = []

    def take(env_id: str, seed: list[int], **options: Any) -> None:
        handed.extend(seed)
        raise LookupError  # that is all

    monkeypatch.setattr(envpool.envpool, "make_gymnasium", take)
    for seed in (0, 1, 2):
        streams = [sequence(seed, Stream.ENVIRONMENTS, attempt) for attempt in (1, 2)] + [sequence(seed, Stream.PLAY)]
        for stream in streams:
            with pytest.raises(LookupError):
                build.make_envs(tiny, 64, stream)
    assert len(set(handed)) == len(handed) == 3 * 3 * 64
    assert all(0 <= seed < 2**31 - 1 for seed in handed)


def test_the_same_sequence_draws_the_same() -> None:
    def draw(seed: np.random.SeedSequence) -> list[float]:
        return torch.rand(5, generator=torch_generator(CPU, seed)).tolist()

    assert draw(sequence(0, Stream.ACTIONS)) == draw(sequence(0, Stream.ACTIONS))
    assert draw(sequence(0, Stream.ACTIONS)) != draw(sequence(1, Stream.ACTIONS))


def test_a_generator_goes_on_where_it_was_saved() -> None:
    generator = torch_generator(CPU, sequence(0, Stream.ACTIONS))
    torch.rand(3, generator=generator)
    saved = GeneratorState(generator).state_dict().clone()
    rest = torch.rand(5, generator=generator)
    other = torch_generator(CPU, sequence(5, Stream.ACTIONS))
    GeneratorState(other).load_state_dict(saved)
    torch.testing.assert_close(torch.rand(5, generator=other), rest, rtol=0, atol=0)


def test_evaluations_differ_from_each_other(tiny: Config) -> None:
    states = {tuple(evaluation_seed(tiny, number).generate_state(4).tolist()) for number in range(50)}
    assert len(states) == 50
