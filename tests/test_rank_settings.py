"""The key `ranks`: who may have several, and where such a run lives."""

import pytest

from a3c_bench.checks import check_settings
from a3c_bench.config import compose, run_directory
from a3c_bench.errors import ConfigError


@pytest.mark.parametrize("algo", ["paac", "ppo", "pqn"])
def test_what_learns_in_lock_step_may_have_several_ranks(algo: str) -> None:
    check_settings(compose([f"algo={algo}", "ranks=2"]))


def test_others_are_refused_with_the_names_of_those_that_may() -> None:
    with pytest.raises(ConfigError, match=r"algo=dqn does not train on several ranks: ranks=2 is for .*algo=paac or"):
        check_settings(compose(["algo=dqn", "ranks=2"]))


def test_the_number_of_ranks_is_a_part_of_the_path_whoever_says_it() -> None:
    one, two = compose(["ranks=1"]), compose(["ranks=2"])
    assert run_directory(one, ["ranks=1"]) == run_directory(one, [])
    assert run_directory(two, ["ranks=2"]).parent.name == "ranks=2"
    assert run_directory(two, []) == run_directory(two, ["ranks=2"])


def test_ranks_take_a_gpu_each() -> None:
    with pytest.raises(ConfigError, match=r"device=cuda:1 is one GPU, and ranks=2 take one each: say device=cuda\."):
        check_settings(compose(["ranks=2", "device=cuda:1"]))
