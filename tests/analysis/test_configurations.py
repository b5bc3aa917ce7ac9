import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from a3c_bench.config import compose, load_config
from a3c_bench.schema import WandbConfig
from analysis import load_runs
from analysis.configurations import _word, commands, differences
from analysis.groups import Member, group_traces


def groups_below(path):
    return group_traces(Member(run) for run in load_runs(path))


def test_what_differs_and_what_is_shared(make_run, tmp_path):
    make_run(settings={"lr": 0.1, "clip": None})
    make_run(settings={"lr": 0.1, "clip": None}, seed=1)
    make_run(algo="a3c", settings={"lr": 0.2, "clip": None, "n_workers": 4})
    found = differences(groups_below(tmp_path))
    assert found.columns == ["A3C", "PAAC"]
    assert found.differing == {"algo.name": ["a3c", "paac"], "algo.lr": ["0.2", "0.1"]}
    assert found.partial == {"algo.n_workers": ["4", "-"]}
    assert (found.shared["algo.clip"], found.shared["env.id"]) == ("null", "CartPole-v1")
    assert not {"seed", "name"} & {*found.shared, *found.differing, *found.partial}


def test_many_methods_are_a_list_of_values(make_run, tmp_path):
    for lr in range(8):
        make_run(settings={"lr": lr}, overrides=str(lr))
    found = differences(groups_below(tmp_path))
    assert found.columns == ["values"]
    assert found.differing == {"algo.lr": ["0, 1, 2, 3, 4, 5 and 2 more"]}


def read_commands(script: str) -> list[list[str]]:
    """The overrides of each command, as a shell would hand them over."""
    shared = shlex.split(re.search(r"shared=\((.*?)\n\)", script, re.DOTALL).group(1))
    found = []
    for line in re.sub(r"\\\n", " ", script.split("\n)\n", 1)[1]).splitlines():
        if line.startswith("python"):
            words = shlex.split(line)
            assert words[:4] == ["python", "-m", "a3c_bench.run", "-m"]
            found.append([part for word in words[4:] for part in (shared if word == "${shared[@]}" else [word])])
    return found


def write_config(overrides: list[str], path: Path) -> None:
    """A run directory that only says what was asked for."""
    path.mkdir(parents=True)
    config = dataclasses.asdict(compose(overrides))
    (path / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(yaml.dump(config, Dumper=_Plain))))
    (path / "status.json").write_text("{}")


class _Plain(yaml.SafeDumper):
    """Tuples as lists, as Hydra writes them."""


_Plain.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["algo=paac", "network.hidden_sizes=[32]"], ["algo=ga3c", "algo.optimizer.max_grad_norm=null"]),
        (["experiment=pong", "algo=paac"], ["experiment=pong", "algo=dqn", "algo.double=true"]),
        (["experiment=universe", "algo=a3c", "logger.wandb.tags=[a b,'1']"], ["algo=gorila", "name=it is"]),
    ],
)  # fmt: skip
def test_the_commands_give_the_same_configurations(tmp_path, first, second):
    for i, overrides in enumerate((first, second)):
        for seed in (3, 4):
            write_config([*overrides, f"seed={seed}"], tmp_path / str(i) / str(seed))
    script = commands(groups_below(tmp_path))
    found = read_commands(script)
    assert len(found) == 2
    asked = [load_config(run.path) for group in groups_below(tmp_path) for run in group.runs]
    for overrides, config in zip(found, (asked[0], asked[2]), strict=True):
        assert "seed=3,4" in overrides
        single = [word for word in overrides if not word.startswith(("seed=", "name="))]
        again = compose([*single, "seed=3"])
        changed = {"name": config.name, "root": config.root}
        assert dataclasses.replace(again, **changed) == config


@pytest.mark.parametrize(
    "name",
    [
        *("größe", "日本", "a\\b", "end\\", "it's", "\\'", "a\\\\'b\\\\", 'say "x"'),
        *("${oc.env:HOME}", "\\${x}", "1e3", "yes", "a,b", ""),
    ],
)
def test_any_word_can_be_read_back(name):
    assert compose([f"logger.wandb.entity={_word(name)}", f"logger.wandb.tags=[{_word(name)}]"]).logger.wandb == (
        WandbConfig(entity=name, tags=[name])
    )


def test_a_script_hands_any_name_over(tmp_path):
    name = "größe a\\b 'c' $HOME"
    write_config([], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) | {"name": name}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (words,) = read_commands(commands(groups_below(tmp_path)))
    assert compose([word for word in words if word.startswith("name=")]).name == f"{name}-again"


def test_seeds_that_drew_something_have_commands_of_their_own(make_run, tmp_path):
    make_run(settings={"lr": 0.1})
    make_run(settings={"lr": 0.1}, seed=1)
    make_run(settings={"lr": 0.2}, seed=2)
    lines = commands(groups_below(tmp_path))
    assert "seed=0,1" in lines
    assert "seed=2" in lines
    assert "algo.lr=0.2" in lines
