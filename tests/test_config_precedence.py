"""What overrides what in a configuration, and what holds if nothing is said."""

from pathlib import Path

from composing import composed, said, write

from a3c_bench.config import compose


def test_what_overrides_what(own_conf: Path) -> None:
    """Command line, local, experiment for the algorithm, experiment, what is tuned for an environment, the paper."""
    chosen = ["experiment=mine"]
    write(own_conf / "experiment" / "mine.yaml", 102)
    assert said(own_conf / "algo" / "paac.yaml")["n_envs"] == 32
    assert compose(["env=breakout"]).algo.n_envs == 32
    assert compose([]).algo.n_envs == 32
    write(own_conf / "settings" / "tuned" / "cartpole" / "paac.yaml", 101)
    assert compose([]).algo.n_envs == 101
    assert compose(["settings=paper"]).algo.n_envs == 32
    assert compose(["env=catch"]).algo.n_envs == 32
    assert compose(chosen).algo.n_envs == 102
    write(own_conf / "experiment" / "mine" / "paac.yaml", 103)
    assert compose(chosen).algo.n_envs == 103
    write(own_conf / "experiment" / "mine" / "a3c.yaml", 99)  # of another algorithm
    assert compose(chosen).algo.n_envs == 103
    write(own_conf / "local" / "default.yaml", 104)
    assert compose(chosen).algo.n_envs == 104
    assert compose([*chosen, "algo.n_envs=105"]).algo.n_envs == 105
    assert compose(["algo.n_envs=105", *chosen]).algo.n_envs == 105


def test_the_command_line_chooses_groups_too() -> None:
    config = compose(["experiment=universe", "network=nature", "env=breakout", "advantage=td"])
    assert (config.network.kind, config.env.game, config.advantage.kind) == ("nature", "Breakout", "td")
    assert config.name == "universe"


def test_the_defaults() -> None:
    config = composed()
    assert (config.algo.name, config.env.id, config.seed, config.name, config.root) == (
        "paac",
        "CartPole-v1",
        0,
        "default",
        "runs",
    )
    assert config.logger.wandb.mode == "disabled"
    assert config.budget.frames == 150_000
