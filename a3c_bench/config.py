"""Hydra in, plain frozen dataclasses out; and every configuration error as one sentence.

Nothing below this module (and `run.py`) ever sees a DictConfig.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from a3c_bench.algos import algorithm_names, find_algorithm
from a3c_bench.errors import ConfigError, RunDirectoryError
from a3c_bench.schema import PRESENTATION_KEYS, Config, check, nearest

# Parts of a command line that the path of a run directory already says, or that change nothing in it.
_NOT_IN_PATH = ("algo", "env", "env.id", "env.game", "seed", "experiment", "hydra", *PRESENTATION_KEYS)
_LONGEST_NAME = 150  # characters of a directory; file systems take 255


def config_directory() -> Path:
    """`conf/`: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "conf"


def register_schemas() -> None:
    """Tells Hydra the types: `config_schema`, and one schema in the group `algo` per algorithm.

    An algorithm of another package that brings no YAML can be named too: its defaults are those of its dataclass.
    """
    store = ConfigStore.instance()
    store.store(name="config_schema", node=_open_schema(Config))
    for name in algorithm_names():
        node = _open_schema(find_algorithm(name).config_class)
        store.store(group="algo", name=f"{name}_schema", node=node)
        if not (config_directory() / "algo" / f"{name}.yaml").exists():
            store.store(group="algo", name=name, node=node)


def from_hydra(composed: DictConfig) -> Config:
    """The configuration that Hydra composed, checked.

    Raises:
        ConfigError: in one sentence.
    """
    return _to_config(composed)


def compose(overrides: Sequence[str]) -> Config:
    """The configuration of a command line, without running Hydra's application.

    Raises:
        ConfigError: in one sentence.
    """
    register_schemas()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
            return from_hydra(hydra_compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error)) from error


def load_config(run: Path) -> Config:
    """The configuration of a run directory.

    Raises:
        RunDirectoryError: there is none, or it is broken.
    """
    file = run / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text())
        algorithm = find_algorithm(content["algo"]["name"])
    except (OSError, TypeError, KeyError, UnicodeDecodeError, yaml.YAMLError):
        raise RunDirectoryError(f"{run} is no run directory: it has no readable config.yaml.") from None
    schema = _open_schema(Config)
    schema.algo = _open_schema(algorithm.config_class)
    try:
        return _to_config(OmegaConf.merge(schema, content))
    except (OmegaConfBaseException, ConfigError) as error:
        raise RunDirectoryError(f"{file} does not fit this version: {explain(error)}") from error


def run_directory(config: Config, overrides: Sequence[str]) -> Path:
    """Where a run lives: <root>/<name>/<env>/<algo>[/<other overrides>]/seed<k>, the same at each start.

    Args:
        config: of the run.
        overrides: of the command line, e.g. ["algo=paac", "algo.n_envs=64", "seed=0"].
    """
    others = sorted({text.lstrip("+~") for text in overrides if not _said_by_path(text)})
    name = ",".join(others).replace("/", "_").replace(" ", "")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    env = (config.env.game or config.env.id).replace("/", "_")
    return Path(config.root) / config.name / env / config.algo.name / name / f"seed{config.seed}"


def explain(error: BaseException) -> str:
    """What a Hydra, OmegaConf or other configuration error means, in one sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = sorted(option for option in error.options if not option.endswith("_schema"))
        return f"{group}={name} is not known: {nearest(name, options)}"
    key = _full_key(error)
    root = _deepest(error)
    text = str(root).split("\n")[0].rstrip(".")
    if isinstance(root, OverrideParseException):
        return f"{root.override} cannot be read as key=value: {text}."
    if isinstance(root, OmegaConfBaseException) and type(root).__name__ in ("ConfigKeyError", "ConfigAttributeError"):
        parent, _, name = str(root.full_key or key).rpartition(".")  # the part of the key that is not known
        known = sorted(_keys_of(root))
        hint = f": {nearest(name, known)}" if known else "."
        return f"{f'{parent}.' if parent else ''}{name} is not a key of the configuration{hint}"
    if isinstance(root, OmegaConfBaseException):
        return f"{key}: {text}." if key else f"{text}."
    return f"{text}."


def _to_config(composed: DictConfig | ListConfig) -> Config:
    try:
        missing = OmegaConf.missing_keys(composed)
        if missing:
            raise ConfigError(f"{min(missing)} has no value: set it.")
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except dataclasses.FrozenInstanceError as error:  # a key added with +, which the schema does not have
        raise ConfigError(f"A key was added that the configuration does not have: {error}.") from error
    assert isinstance(config, Config)
    check(config)
    return config


def _open_schema(cls: type) -> DictConfig:
    """A structured node of a frozen dataclass whose values may still be set; OmegaConf takes frozen for read-only."""
    node = OmegaConf.structured(cls)

    def unlock(part: DictConfig) -> None:
        OmegaConf.set_readonly(part, None)
        for key in part:
            child = part._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                unlock(child)

    unlock(node)
    return node


def _said_by_path(override: str) -> bool:
    key = override.lstrip("+~").split("=", 1)[0].split("@")[0]
    return any(key == known or key.startswith((f"{known}/", f"{known}.")) for known in _NOT_IN_PATH[4:]) or (
        key in _NOT_IN_PATH
    )


def _deepest(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _full_key(error: BaseException) -> str:
    """The dotted key that a chain of errors is about: what Hydra says of an override, else what OmegaConf knows."""
    text = str(error)
    if isinstance(error, ConfigCompositionException) and "override '" in text:
        return text.split("override '", 1)[1].split("'", 1)[0]
    if isinstance(error, ConfigCompositionException) and "override " in text:
        return text.split("override ", 1)[1].split("=", 1)[0].strip("+~'")
    root = _deepest(error)
    return str(getattr(root, "full_key", "") or "")


def _keys_of(error: BaseException) -> list[str]:
    parent: Any = getattr(error, "parent_node", None)
    object_type = getattr(error, "object_type", None)
    if dataclasses.is_dataclass(object_type):
        return [item.name for item in dataclasses.fields(object_type)]
    return [str(key) for key in parent] if isinstance(parent, DictConfig) else []
