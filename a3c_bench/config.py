"""Hydra in, plain frozen dataclasses out; and every configuration error as one sentence.

Nothing below this module (and `run.py`) ever sees a DictConfig.
"""

import copy
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from a3c_bench import plugins
from a3c_bench.algos import algorithm_names, find_settings
from a3c_bench.algos.settings import SETTINGS
from a3c_bench.errors import ConfigError, RunDirectoryError
from a3c_bench.runtime.directory import differing_keys, is_one_of, plain, read_yaml, runs_below
from a3c_bench.runtime.older import INSTEAD, part_of_path, upgraded
from a3c_bench.schema import (
    ADVANTAGE_KINDS,
    NETWORK_KINDS,
    PRESENTATION_KEYS,
    WATCHING_KEYS,
    AdvantageConfig,
    Config,
    NetworkConfig,
    check,
    nearest,
)

# Parts of a command line that the path of a run directory already says, or that change nothing in it.
_SAID_BY_PATH = ("algo", "env", "env.id", "env.game", "seed", "ranks")
_NOT_IN_PATH = ("sweeps", "hydra", *PRESENTATION_KEYS)
_PLUGGED_IN: dict[str, tuple[str, type, tuple[str, ...]]] = {  # their group, our class and our kinds
    "network": (plugins.NETWORKS, NetworkConfig, NETWORK_KINDS),
    "advantage": (plugins.ADVANTAGES, AdvantageConfig, ADVANTAGE_KINDS),
}
_MOST_RUNS_LISTED = 20
_LONGEST_NAME = 150  # characters of a directory; file systems take 255


def config_directory() -> Path:
    """`conf/`: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "conf"


def sweeps_directory() -> Path:
    """`sweeps/`, with the named sweeps: beside this package, installed or in a checkout."""
    return Path(__file__).parents[1] / "sweeps"


def register_schemas() -> None:
    """Tells Hydra the types: `config_schema`, and one schema in the group `algo` per algorithm; and the named sweeps.

    What another package adds without YAML can be named too: its defaults are those of its dataclass.
    """
    _register_what_is_ours(sweeps_directory())
    store = ConfigStore.instance()
    for name in algorithm_names():
        if name not in SETTINGS:
            node = open_schema(find_settings(name).config_class)
            store.store(group="algo/schema", name=name, node=node)
            if not (config_directory() / "algo" / f"{name}.yaml").exists():
                store.store(group="algo", name=name, node=node)
    for part in _PLUGGED_IN:
        for kind in plugins.names(_PLUGGED_IN[part][0]):
            store.store(group=part, name=kind, node=_schema_of(part, kind))


@functools.cache  # for the first of many compositions
def _register_what_is_ours(sweeps: Path) -> None:
    store = ConfigStore.instance()
    vars(store)["__deepcopy__"] = lambda memo: store  # Hydra copies it for each look at a group, and changes no copy
    store.store(name="config_schema", node=open_schema(Config))
    for name, settings in SETTINGS.items():
        store.store(group="algo/schema", name=name, node=open_schema(settings.config_class))
    OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("pick", lambda key, values, other: values.get(key, other), replace=True)
    OmegaConf.register_new_resolver("algorithms", lambda: ",".join(algorithm_names()), replace=True)
    OmegaConf.register_new_resolver("options", _options, replace=True)
    for file in sweeps.rglob("*.yaml"):  # not by Hydra's search path, on which all beside them would lie
        group = file.parent.relative_to(sweeps.parent).as_posix()
        store.store(group=group, name=file.stem, node=OmegaConf.create(read_yaml(file)), package="_global_")


def _schema_of(part: str, kind: str) -> DictConfig:
    """The schema of `network` or `advantage` that goes with another package's kind."""
    group, ours, _ = _PLUGGED_IN[part]
    node = open_schema(plugins.load(group, kind).config_class or ours)
    node.kind = kind
    return node


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


def compose_points(loader: ConfigLoader, master: DictConfig, points: Sequence[Sequence[str]]) -> list[DictConfig]:
    """What Hydra composes for each point of a sweep, without its own node `hydra`.

    Points that choose the same options of groups share one composition, which takes a tenth of a second or more; the
    values that they set beside these are set in a copy.

    Args:
        loader: Hydra's.
        master: the configuration of the command line without the points.
        points: overrides of each, as the sweeper gives them.

    Raises:
        HydraException, OmegaConfBaseException: Hydra's own, of the first point that cannot be composed.
    """
    parser = OverridesParser.create(config_loader=loader)
    groups: dict[str, bool] = {}
    shared: dict[tuple[str, ...], DictConfig] = {}

    def only_sets_a_value(override: Override) -> bool:
        key = override.key_or_group
        if key not in groups:
            groups[key] = bool(loader.get_group_options(key))
        prefixed = override.is_add() or override.is_force_add() or override.is_delete() or override.package is not None
        return not (prefixed or groups[key] or key.split(".")[0] == "hydra")

    def composed(point: Sequence[str]) -> DictConfig:
        config = loader.load_sweep_config(master, list(point))
        with open_dict(config):
            del config["hydra"]
        return config

    def one(point: Sequence[str]) -> DictConfig:
        overrides = parser.parse_overrides(list(point))
        values = [override for override in overrides if only_sets_a_value(override)]
        chosen = tuple(text for text, override in zip(point, overrides, strict=True) if override not in values)
        try:
            if chosen not in shared:
                shared[chosen] = composed(chosen)
            config = copy.deepcopy(shared[chosen])
            for override in values:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except (HydraException, OmegaConfBaseException):
            return composed(point)  # raises what Hydra says of the point
        return config

    return [one(point) for point in points]


def compose_configs(loader: ConfigLoader, master: DictConfig, points: Sequence[Sequence[str]]) -> list[Config]:
    """The checked configuration of each point of a sweep, as `from_hydra` of what `compose_points` gives.

    Points that differ in their seed only are one composition, unless some value is made of the seed: composing takes
    some 30 ms, and a large sweep has each point with five seeds.
    """
    interpolated = OmegaConf.to_yaml(master).replace("${hydra", "")
    if re.search(r"\$\{[^\n]*\bseed\b", interpolated) or any("${" in text for point in points for text in point):
        return [from_hydra(config) for config in compose_points(loader, master, points)]
    seeds = [[text for text in point if re.fullmatch(r"seed=\d+", text)] for point in points]
    others = [tuple(text for text in point if text not in said) for point, said in zip(points, seeds, strict=True)]
    first = dict(zip(reversed(others), reversed(points), strict=True))  # point by what it says but for the seed
    found = zip(first, compose_points(loader, master, list(first.values())), strict=True)
    configs = {other: from_hydra(config) for other, config in found}
    return [
        dataclasses.replace(configs[other], seed=int(said[-1].removeprefix("seed="))) if said else configs[other]
        for other, said in zip(others, seeds, strict=True)
    ]


def compose_sweep(overrides: Sequence[str]) -> tuple[DictConfig, list[tuple[list[str], Config]]]:
    """A sweep's command line, without running it.

    Returns:
        Hydra's own node of the configuration, and each point: its overrides, and its configuration.

    Raises:
        ConfigError: in one sentence.
    """
    register_schemas()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
            single = OverridesParser.create().parse_overrides(for_each_point(overrides))
            fixed = [o.input_line for o in single if not o.is_sweep_override() and o.input_line is not None]
            loader = GlobalHydra.instance().config_loader()
            master = hydra_compose("config", overrides=fixed, return_hydra_config=True)
            params = master.hydra.sweeper.params or {}
            words = [f"{key}={value}" for key, value in params.items()]
            task = master.hydra.overrides.task
            words += [task._get_node(i)._value() for i in range(len(task))]  # as it stands: ${seed} is a point's own
            words += [o.input_line for o in single if o.is_sweep_override() and o.input_line is not None]
            (points,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
            return master.hydra, list(zip(points, compose_configs(loader, master, points), strict=True))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error)) from error


def load_config(run: Path) -> Config:
    """The configuration of a run directory.

    Raises:
        RunDirectoryError: there is none, or it is broken; a directory that holds runs names them.
    """
    file = run / "config.yaml"
    below = [] if file.exists() else runs_below(run)
    if below:
        shown = [f"\n  {path}" for path in below[:_MOST_RUNS_LISTED]]
        left = len(below) - len(shown)
        more = f"\n  ... and {left} more" if left else ""
        runs = "1 run: name it" if len(below) == 1 else f"{len(below)} runs: name one of them"
        raise RunDirectoryError(f"{run} holds {runs}.{''.join(shown)}{more}")
    try:
        content = read_yaml(file)
        algorithm = find_settings(content["algo"]["name"])
    except (OSError, TypeError, KeyError, UnicodeDecodeError, yaml.YAMLError):
        raise RunDirectoryError(f"{run} is no run directory: it has no readable config.yaml.") from None
    schema = open_schema(Config)
    schema.algo = open_schema(algorithm.config_class)
    for part, (group, _, kinds) in _PLUGGED_IN.items():
        section = content.get(part)
        kind = section.get("kind") if isinstance(section, dict) else None
        if kind not in kinds and kind in plugins.names(group):
            schema[part] = _schema_of(part, kind)
    try:
        return _to_config(OmegaConf.merge(schema, upgraded(content)))
    except (OmegaConfBaseException, ConfigError) as error:
        raise RunDirectoryError(f"{file} does not fit this version: {explain(error)}") from error


def run_directory(config: Config, overrides: Sequence[str]) -> Path:
    """Where a run lives: <root>/<name>/<env>/<algo>[/<other overrides>]/seed<k>, the same at each start.

    Other overrides have the value that the configuration has, however it was spelled; those that only watch are left
    out, and so is an experiment that the name tells. A directory that an older version made for this run, under the
    words as they were typed or with keys that are called otherwise now, stays its place.

    Args:
        config: of the run.
        overrides: of the command line, e.g. ["algo=paac", "algo.n_envs=64", "seed=0"].
    """
    place = Path(config.root) / config.name / config.env.name.replace("/", "_") / config.algo.name
    seed = f"seed{config.seed}"
    names = [name for text in overrides if (name := _named(config, text)) is not None]
    names += [f"ranks={config.ranks}"] if config.ranks > 1 else []  # whether a launcher or the command line says so
    as_typed = [text.lstrip("+~") for text in overrides if not _was_left_out(text)]
    directory = place / _short(names) / seed
    for older in (as_typed, map(part_of_path, names)):
        candidate = place / _short(older) / seed
        if candidate != directory and _holds(candidate, config):
            return candidate
    return directory


def _short(names: Iterable[str]) -> str:
    """One name of a directory from several."""
    name = ",".join(sorted(set(names))).replace("/", "_").replace(" ", "")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def _named(config: Config, text: str) -> str | None:
    """An override as a part of a path; None if it is no part of it."""
    key, _, spelled = text.lstrip("+~").partition("=")
    group = key.split("@")[0]
    if key in _SAID_BY_PATH or is_one_of(group.replace("/", "."), (*_NOT_IN_PATH, *WATCHING_KEYS)):
        return None
    if text.startswith("~"):
        return group
    value: Any = config
    for part in key.split("."):
        value = value.get(part, MISSING) if isinstance(value, dict) else getattr(value, part, MISSING)
    if value == MISSING or dataclasses.is_dataclass(value):  # a group
        value = spelled.strip("'\"")
        if key == "experiment" and value in (config.name, "null"):
            return None
    return f"{key}={_spelled(value)}"


def _spelled(value: Any) -> str:
    """A value in the one way in which paths spell it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spelled, value))}]"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _was_left_out(override: str) -> bool:
    """Whether older versions, which took the words as they were typed, left an override out of a path."""
    key = override.lstrip("+~").split("=", 1)[0].split("@")[0]
    return key in (*_SAID_BY_PATH, "experiment") or is_one_of(
        key.replace("/", "."), ("seed", "experiment", *_NOT_IN_PATH)
    )


def _holds(directory: Path, config: Config) -> bool:
    """Whether there is a run of this configuration; numbers that it leaves to the machine may be anything there."""
    try:
        there = read_yaml(directory / "config.yaml")
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    asked = plain(dataclasses.asdict(config))
    return isinstance(there, dict) and all(new is None for _, _, new in differing_keys(upgraded(there, asked), asked))


def explain(error: BaseException) -> str:
    """What a Hydra, OmegaConf or other configuration error means, in one sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if name.endswith("_schema"):  # a user's own YAML, written for an older version
            return f"{group}/{name} is now {group}/schema/{name.removesuffix('_schema')}@_here_."
        return f"{group}={name} is not known: {nearest(name, sorted(error.options))}"
    key = _full_key(error)
    root = _deepest(error)
    text = str(root).split("\n")[0].rstrip(".")
    if isinstance(root, OverrideParseException):
        return f"{root.override} cannot be read as key=value: {text}."
    loggers = re.match(r"Ambiguous value for argument 'logger=([\w,]+)'", text)
    if loggers:
        several = loggers[1]
        return f"logger={several} would be a sweep over loggers: say 'logger=[{several}]' to have them all."
    several_values = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if several_values:
        key, values = several_values.groups()
        a_list = f", or say '{key}=[{values}]' for a list" if "." in key else ""
        return f"{key}={values} is a sweep: add -m to run one after the other{a_list}."
    if text.startswith("Could not override 'sweeps'"):
        said = re.search(r"\+sweeps=[\w/]+", str(root))
        return f"A named sweep is added with a plus: say {said[0] if said else '+sweeps=headline'}."
    if isinstance(root, OmegaConfBaseException) and type(root).__name__ in ("ConfigKeyError", "ConfigAttributeError"):
        whole = str(root.full_key or key)
        if whole in INSTEAD:
            return f"{whole} is no key any more: say {INSTEAD[whole]}."
        parent, _, name = whole.rpartition(".")  # the part of the key that is not known
        known = sorted(_keys_of(root))
        hint = f": {nearest(name, known)}" if known else "."
        return f"{f'{parent}.' if parent else ''}{name} is not a key of the configuration{hint}"
    if isinstance(root, OmegaConfBaseException):
        return f"{key}: {text}." if key else f"{text}."
    return f"{text}."


def for_each_point(words: Sequence[str]) -> list[str]:
    """A sweep's words such that keys of the algorithm are set in each point, and not in the default one before.

    Hydra composes the words that do not vary first, with the default algorithm, which may not have these keys; those
    that vary come later. So `algo.double=true` becomes a choice of one value.
    """
    return [re.sub(r"^(algo\.[\w.]+)=([\w.+-]+)$", r"\1=choice(\2)", word) for word in words]


def _options() -> str:
    """The groups and their options, one group a line, for --help."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in (*sorted(loader.list_groups("")), "hydra/launcher"):
        options = loader.get_group_options(group)
        if options and group != "hydra":
            lines.append(f"{'+' if group == 'sweeps' else ''}{group}: {', '.join(sorted(options))}")
    return "\n".join(lines)


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


def open_schema(cls: type) -> DictConfig:
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
