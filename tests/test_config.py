"""Configuration: every preset of conf/, what overrides what, and where a run lives."""

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from a3c_bench import config as config_module
from a3c_bench.algos import algorithm_names, find_algorithm, find_settings
from a3c_bench.algos.paac import PAACConfig
from a3c_bench.config import (
    compose,
    compose_points,
    compose_sweep,
    config_directory,
    from_hydra,
    load_config,
    run_directory,
)
from a3c_bench.envs.spec import ATARI
from a3c_bench.errors import ConfigError, RunDirectoryError
from a3c_bench.launch.options import LocalOptions, SlurmOptions
from a3c_bench.runtime.directory import RunDirectory, plain
from a3c_bench.schema import BudgetConfig, Config, EnvConfig, check
from a3c_bench.train import check_run, check_settings, settings_in_words, train

CONF = config_directory()
TINY = (
    "budget.frames=120",
    "algo.n_envs=2",
    "evaluation.n_games=1",
    "evaluation.n_envs=1",
    "evaluation.max_episode_frames=200",
    "metrics_interval_frames=40",
    "n_torch_threads=1",
    "progress=false",
)


@functools.cache
def composed(*words: str) -> Config:
    """What conf/ as it is gives for these words; composed once, as nobody can change it."""
    return compose(words)


def presets(group: str) -> list[str]:
    """The options of a group, as its files say."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def said(file: Path) -> dict[str, Any]:
    """What a file of conf/ sets."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    return {key: value for key, value in content.items() if key != "defaults"}


def differences(config: Any, wanted: dict[str, Any], path: str = "") -> list[str]:
    """Keys of `wanted` that have another value in the configuration."""
    found = []
    for key, value in wanted.items():
        there = getattr(config, key)
        if isinstance(value, dict):
            found += differences(there, value, f"{path}{key}.")
        elif there != value:
            found.append(f"{path}{key}: {there!r}, not {value!r}")
    return found


def game_of(env: str) -> list[str]:
    """What must be said beside env=<env>."""
    return ["env.game=Qbert"] if env == ATARI else []


# --- presets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", presets("env"))
def test_an_environment_composes_and_is_made(env: str) -> None:
    config = composed(f"env={env}", *game_of(env))
    check_run(config)
    wanted = said(CONF / "env" / f"{env}.yaml")
    if env == ATARI:
        wanted["env"]["game"] = "Qbert"
    assert differences(config, wanted) == []
    if config.env.game is not None:
        assert (config.env.frame_skip, config.network.kind, config.budget.frames) == (4, "nips", 320_000_000)
    else:
        assert (config.env.frame_skip, config.network.kind) == (1, "small" if env == "minigrid" else "mlp")


@pytest.mark.parametrize("group", ["network", "advantage", "logger"])
def test_a_group_composes(group: str) -> None:
    for name in presets(group):
        config = compose([f"{group}={name}"])
        check(config)
        assert differences(getattr(config, group), said(CONF / group / f"{name}.yaml")) == []


@pytest.mark.parametrize("words", ["[wandb,tensorboard]", "[tensorboard,wandb]", "[wandb,files,tensorboard,files]"])
def test_loggers_combine_in_any_order(words: str) -> None:
    logger = compose([f"logger={words}"]).logger
    assert (logger.wandb.mode, logger.wandb.project, logger.tensorboard) == ("offline", "a3c_bench", True)
    assert compose([f"logger={words}", "logger.wandb.mode=online"]).logger.wandb.mode == "online"


def test_one_logger_and_none() -> None:
    chosen = {words: compose([f"logger={words}"]).logger for words in ("wandb", "[tensorboard]", "files", "[]")}
    found = {words: (logger.wandb.mode, logger.tensorboard) for words, logger in chosen.items()}
    off = ("disabled", False)
    assert found == {"wandb": ("offline", False), "[tensorboard]": ("disabled", True), "files": off, "[]": off}


@pytest.mark.parametrize("name", presets("experiment"))
def test_an_experiment_composes_and_trains(name: str, tmp_path: Path) -> None:
    config = composed(f"experiment={name}")
    check_run(config)
    assert differences(config, said(CONF / "experiment" / f"{name}.yaml")) == []
    assert "python -m a3c_bench.run" in (CONF / "experiment" / f"{name}.yaml").read_text()
    for algo in presets(f"experiment/{name}"):
        tuned = compose([f"experiment={name}", f"algo={algo}"])
        assert differences(tuned, said(CONF / "experiment" / name / f"{algo}.yaml")) == []
        check_run(tuned)
    status = train(compose([f"experiment={name}", *TINY]), tmp_path)
    assert status["state"] == "finished"
    assert status["frames"] >= 120


TUNED = [
    (env.name, algo)
    for env in sorted((CONF / "settings" / "tuned").iterdir())
    for algo in presets(f"settings/tuned/{env.name}")
]


@pytest.mark.parametrize(("env", "algo"), TUNED)
def test_what_is_tuned_for_an_environment_belongs_to_it_alone(env: str, algo: str) -> None:
    """It is found by the environment's name, is said by its own, and the paper's settings are one word away."""
    network = ["network=mlp_lstm"] if env == "cartpole_positions" else []
    config = compose([f"env={env}", f"algo={algo}", *network])
    check_run(config)
    assert differences(config, said(CONF / "settings" / "tuned" / env / f"{algo}.yaml")) == []
    assert config.tuned_for == config.env.name
    assert settings_in_words(config).startswith(f"{algo} tuned for {config.env.name}; settings=paper, ")
    paper = composed(f"algo={algo}", f"env={env}", *network, "settings=paper")
    assert differences(paper.algo, said(CONF / "algo" / f"{algo}.yaml")) == []
    assert paper.tuned_for is None
    assert settings_in_words(paper).startswith(f"the paper's (conf/algo/{algo}.yaml)")
    refused = f"tuned for {config.env.name}, and this is MountainCar-v0: say settings=paper"
    with pytest.raises(ConfigError, match=refused):
        check_settings(replace(config, env=EnvConfig(id="MountainCar-v0")))


def test_an_experiment_tuned_for_one_game_is_not_taken_to_another() -> None:
    """`experiment=pong env=breakout` would have Pong's background subtracted from Breakout's frames."""
    with pytest.raises(ConfigError, match="tuned for Pong, and this is Breakout"):
        check_settings(compose(["experiment=pong", "env=breakout"]))
    check_settings(compose(["experiment=pong", "env=breakout", "tuned_for=Breakout"]))
    check_settings(compose(["experiment=pong", "env=atari", "env.game=Pong"]))


@pytest.mark.parametrize("algo", presets("algo"))
def test_an_algorithm_is_said_in_full(algo: str) -> None:
    """Every setting stands in its file, and arrives unless something tunes it."""
    wanted = said(CONF / "algo" / f"{algo}.yaml")
    config = compose([f"algo={algo}", "env=pong"])
    assert differences(config.algo, wanted) == []
    assert set(wanted) == {item.name for item in fields(find_algorithm(algo).config_class)}
    assert algo in algorithm_names()


# The defaults of Python, where an algorithm's YAML brings more than its own section.
BESIDE = {"ppo": ("advantage=nstep",), "pqn": ("network.layer_norm=null",)}


@pytest.mark.parametrize("algo", algorithm_names())
def test_python_begins_with_the_values_of_conf(algo: str) -> None:
    """All of them, but for the budget, which each environment brings."""
    words = (f"algo={algo}", "env=cartpole", "settings=paper", *BESIDE.get(algo, ()))
    by_hand = Config(algo=find_settings(algo).config_class(), budget=BudgetConfig(frames=150_000))
    assert plain(asdict(by_hand)) == plain(asdict(composed(*words)))


@pytest.mark.parametrize(("name", "options"), [("local", LocalOptions), ("slurm_cpu", SlurmOptions)])
def test_a_launcher_is_said_in_full_and_python_begins_with_it(name: str, options: type[Any]) -> None:
    in_full = {item.name for item in fields(options)} - {"_target_"}
    assert set(said(CONF / "hydra" / "launcher" / f"{name}.yaml")) == in_full
    hydra, _ = compose_sweep([f"hydra/launcher={name}", "seed=0,1"])
    assert plain(asdict(options())) == plain(OmegaConf.to_container(hydra.launcher))


def test_an_experiment_tunes_one_algorithm_and_the_plain_environment_keeps_the_papers_settings() -> None:
    tuned, plain = composed("experiment=pong").algo, composed("env=pong").algo
    assert (tuned.n_envs, tuned.loss_reduction, tuned.optimizer.lr) == (16, "mean", 7e-4)
    assert (plain.n_envs, plain.loss_reduction, plain.optimizer.lr) == (32, "mean_over_envs", 0.0224)
    assert composed().algo == plain


@pytest.mark.parametrize(
    "overrides",
    [
        ["env=catch", "advantage=gae"],
        ["env=cartpole", "advantage=baseline", "algo.t_max=50", "budget.frames=1200"],
        ["env=cartpole", "advantage=monte_carlo", "algo.t_max=50", "budget.frames=1200"],
        ["env=lunarlander", "network.shared_trunk=false", "advantage=td", "algo.loss_reduction=sum"],
        ["env=catch", "advantage=q", "network.lstm_size=8"],
        ["env=pong", "network=nature"],
        ["env=cartpole", "budget.frames=null", "budget.wall_clock_seconds=0.3", "algo.optimizer.anneal=false"],
    ],
)
def test_it_trains(overrides: list[str], tmp_path: Path) -> None:
    config = compose([*TINY, *overrides])
    status = train(config, tmp_path)
    assert status["state"] == "finished"
    assert status["frames"] >= (config.budget.frames or 1)
    assert status["final"]["evaluation_games"] == 1


# --- precedence -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to add files to."""
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    monkeypatch.setattr(config_module, "config_directory", lambda: copy)
    return copy


def write(file: Path, n_envs: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# @package _global_\nalgo:\n  n_envs: {n_envs}\n")


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


# --- round trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=pong", "seed=3"],
        ["env=pong", "logger=wandb", "logger.wandb.tags=[a,b]", "algo.optimizer.lr=1e-12"],
        ["network.hidden_sizes=[5]", "env.reward_clip=2.5", "budget.target_return=-1e9", "env.max_episode_frames=7"],
        ["name='a b: #c'", "logger.wandb.entity=null", "device=cpu", "env.n_threads=1"],
    ],
)
def test_a_run_directory_gives_its_configuration_back(overrides: list[str], tmp_path: Path) -> None:
    config = compose(overrides)
    RunDirectory(tmp_path, asdict(config)).close()
    assert load_config(tmp_path) == config
    RunDirectory(tmp_path, asdict(load_config(tmp_path))).close()  # nothing differs


def test_a_configuration_made_in_python_comes_back(tiny: Config, tmp_path: Path) -> None:
    RunDirectory(tmp_path, asdict(tiny)).close()
    loaded = load_config(tmp_path)
    assert isinstance(loaded.algo, PAACConfig)
    assert isinstance(loaded.env, EnvConfig)
    assert replace(loaded, network=tiny.network, logger=tiny.logger) == tiny
    assert list(loaded.network.hidden_sizes) == list(tiny.network.hidden_sizes)
    RunDirectory(tmp_path, asdict(loaded)).close()


def test_a_configuration_is_plain_and_frozen() -> None:
    config = composed()
    yaml.safe_dump(asdict(config))  # no OmegaConf in it
    with pytest.raises(AttributeError, match="cannot assign"):
        config.algo.n_envs = 1


def break_value(content: dict[str, Any]) -> None:
    content["algo"]["n_envs"] = 0


def break_key(content: dict[str, Any]) -> None:
    content["algo"]["n_workers"] = 3


def break_algorithm(content: dict[str, Any]) -> None:
    del content["algo"]["name"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_value, r"config\.yaml does not fit this version: algo\.n_envs=0 must be at least 1\."),
        (break_key, r"config\.yaml does not fit this version: algo\.n_workers is not a key of the configuration"),
        (break_algorithm, r"is no run directory: it has no readable config\.yaml\."),
    ],
)
def test_a_damaged_configuration(damage: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(asdict(composed())))
    damage(content)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RunDirectoryError, match=sentence) as refused:
        load_config(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"a: [", b"\xff\xfe", b"algo: 3"])
def test_no_run_directory(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        load_config(tmp_path)


# --- where a run lives ----------------------------------------------------------------------------------------------


def place(config: Config, overrides: Sequence[str]) -> str:
    return str(run_directory(config, overrides))


LEVELS: list[tuple[list[str], str]] = [  # what was said, and the part of the path for it
    ([], ""),
    (["algo=paac", "env=cartpole", "env.id=CartPole-v1", "env.game=null"], ""),
    (["progress=false", "calibrate=true", "checkpoint_interval_seconds=5", "logger=wandb"], ""),
    (["logger.wandb.mode=online", "logger.wandb.tags=[a]", "retry_diverged=true"], ""),
    (["evaluation.n_games=2", "budget.frames=4000", "metrics_interval_frames=10", "lag.enabled=false"], ""),
    (["algo.n_envs=64"], "algo.n_envs=64/"),
    (["++algo.n_envs=64"], "algo.n_envs=64/"),
    (["algo.n_envs=3", "algo.n_envs=64"], "algo.n_envs=64/"),
    (["network=nature", "algo.t_max=7", "algo=paac"], "algo.t_max=7,network=nature/"),
    (["algo.t_max=7", "network=nature"], "algo.t_max=7,network=nature/"),
    (["network.hidden_sizes=[64, 64]", "device=cuda:0"], "device=cuda:0,network.hidden_sizes=[64,64]/"),
    (["device=a/b"], "device=a_b/"),
    (["env.reward_clip=1"], "env.reward_clip=1/"),
    (["env.reward_clip=1.0"], "env.reward_clip=1/"),
    (["algo.optimizer.lr=1e-3"], "algo.optimizer.lr=0.001/"),
    (["algo.optimizer.lr=0.00100"], "algo.optimizer.lr=0.001/"),
    (["algo.optimizer.lr=0.00001"], "algo.optimizer.lr=1e-05/"),
    (["network.shared_trunk=true"], "network.shared_trunk=True/"),
    (["network.shared_trunk=True"], "network.shared_trunk=True/"),
    (["network.shared_trunk=yes"], "network.shared_trunk=True/"),
    (["algo.optimizer.max_grad_norm=null"], "algo.optimizer.max_grad_norm=null/"),
]


@pytest.fixture(scope="module")
def configs() -> list[Config]:
    """Of LEVELS, composed together."""
    fixed = ["root=r", "name=n", "seed=3"]
    compose([])  # registers the schemas
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        master = hydra_compose("config", overrides=fixed, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        points = compose_points(loader, master, [[*overrides, *fixed] for overrides, _ in LEVELS])
    return [from_hydra(point) for point in points]


@pytest.mark.parametrize("i", range(len(LEVELS)), ids=[" ".join(overrides) for overrides, _ in LEVELS])
def test_paths(i: int, configs: list[Config]) -> None:
    overrides, level = LEVELS[i]
    assert place(configs[i], overrides) == f"r/n/CartPole-v1/paac/{level}seed3"


def test_paths_leave_out_what_is_hydras(tiny: Config) -> None:
    words = ["hydra/launcher=submitit_slurm", "hydra.verbose=true", "+sweeps=headline", "~algo.n_envs"]
    assert place(tiny, words) == "runs/default/CartPole-v1/paac/algo.n_envs/seed0"


@pytest.mark.parametrize(
    ("name", "level"), [("tiny", ""), ("mine", "experiment=tiny/")], ids=["of its own", "that says nothing of it"]
)
def test_paths_tell_experiments_apart(name: str, level: str, tiny: Config) -> None:
    assert place(replace(tiny, name=name), ["experiment=tiny"]) == f"runs/{name}/CartPole-v1/paac/{level}seed0"


def test_one_run_has_one_directory_however_it_is_started(cli: Callable[..., Any], tmp_path: Path) -> None:
    """The words alone, and as a point of a sweep, which gives Hydra's spelling."""
    words = [*TINY, "algo.optimizer.lr=1e-3", "network.shared_trunk=false", f"root={tmp_path}", "progress=false"]
    assert cli(*words).exit_status == 0
    (directory,) = (file.parent for file in tmp_path.rglob("config.yaml"))
    ended = cli("-m", *words, "seed=0")
    assert ended.exit_status == 0, ended
    assert "is finished already" in ended.stdout
    assert [file.parent for file in tmp_path.rglob("config.yaml")] == [directory]


@pytest.mark.parametrize(
    ("words", "key"),
    [(("evaluation.policy=sample,greedy",), "evaluation.policy"), (("budget.frames=200,400",), "budget.frames")],
)
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_points_that_would_be_one_run_are_refused(
    words: Sequence[str], key: str, launcher: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    others = [word for word in TINY if not word.startswith(key)]
    ended = cli("-m", *others, *words, f"root={tmp_path}/runs", f"hydra/launcher={launcher}")
    assert ended.exit_status == 2
    place = f"{tmp_path}/runs/default/CartPole-v1/paac/algo.n_envs=2,n_torch_threads=1/seed0"
    assert ended.stderr == (
        f"a3c_bench: Two points of the sweep are the same run, {place}: they differ in {key} alone, with which a run "
        f"only goes on; give each a name of its own: 'name=mine-${{{key}}}'.\n"
    )
    assert not list(tmp_path.rglob("config.yaml"))
    if launcher == "basic":  # the way out, which knows of none
        _, points = compose_sweep([*others, *words, f"name=mine-${{{key}}}"])
        assert len({run_directory(config, overrides) for overrides, config in points}) == 2


def test_points_that_differ_in_their_experiment_alone_are_two_runs(own_conf: Path) -> None:
    for i in (3, 4):
        write(own_conf / "experiment" / f"mine{i}.yaml", i)
    _, points = compose_sweep(["experiment=mine3,mine4", "root=r"])
    assert [str(run_directory(config, overrides)) for overrides, config in points] == [
        f"r/default/CartPole-v1/paac/experiment=mine{i}/seed0" for i in (3, 4)
    ]


@pytest.mark.parametrize("level", ["algo.optimizer.lr=1e-3", "algo.optimizer.lr=1e-3,budget.frames=4000"])
def test_a_directory_of_an_older_version_stays_a_runs_place(level: str, tmp_path: Path) -> None:
    words = level.split(",")
    config = compose([*words, f"root={tmp_path}"])
    new = run_directory(config, words)
    assert new.parent.name == "algo.optimizer.lr=0.001"
    old = new.parents[1] / level / "seed0"
    RunDirectory(old, asdict(replace(config, seed=1))).close()
    assert run_directory(config, words) == new  # it holds another run
    shutil.rmtree(old)
    RunDirectory(old, asdict(config)).close()
    assert run_directory(config, words) == old
    assert run_directory(config, ["algo.optimizer.lr=0.001"]) == new  # typed otherwise, it was another directory


def test_paths_name_the_game(tiny: Config) -> None:
    pong = replace(tiny, env=replace(tiny.env, id=ATARI, game="Pong"))
    assert place(pong, ["env=pong"]) == "runs/default/Pong/paac/seed0"
    slash = replace(tiny, env=replace(tiny.env, id="phys2d/CartPole-v1"))
    assert place(slash, []) == "runs/default/phys2d_CartPole-v1/paac/seed0"


def test_paths_tell_what_is_seen(tiny: Config) -> None:
    config = replace(tiny, env=replace(tiny.env, observed=(0, 2)))
    assert run_directory(config, []).parts[-3] == f"{tiny.env.id}-sees-0-2"


def test_many_overrides_still_have_a_short_name_of_their_own(tiny: Config) -> None:
    many = [f"algo.setting_number_{i}=value{i}" for i in range(30)]
    others = [*many[:-1], "algo.setting_number_29=another"]
    first, second = run_directory(tiny, many), run_directory(tiny, others)
    assert first != second
    assert run_directory(tiny, many[::-1]) == first
    for path in (first, second):
        assert len(path.parent.name) == 150
        assert path.parent.name.startswith("algo.setting_number_0=value0,")
        assert path.parent.parent == run_directory(tiny, []).parent
