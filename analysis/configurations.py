"""What some runs have in common, in what they differ, and the commands that run them again."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.groups import Member, SeedGroup
from analysis.settings import changes_nothing, flat

_COLUMNS_AT_MOST = 6  # methods beside each other, beyond which the values of all are listed
_VALUES_AT_MOST = 6
_ABSENT = "-"  # of a setting that an algorithm does not have
_BARE = re.compile(r"[\w.+-]*[A-Za-z0-9][\w.+-]*", re.ASCII)  # what Hydra reads as it stands


@dataclass(frozen=True)
class Differences:
    """Settings of some groups of runs; values as one would type them."""

    shared: Mapping[str, str]  # one value everywhere
    columns: Sequence[str]  # a method each, or "values"
    differing: Mapping[str, Sequence[str]]  # every group has the setting; a cell per column
    partial: Mapping[str, Sequence[str]]  # only some algorithms have it; a cell per column


def differences(groups: Sequence[SeedGroup[Member]]) -> Differences:
    """Compares the configurations of groups, at least one; what changes no result is left out, and so is the seed."""
    of_group = [_values(group) for group in groups]
    keys = [key for key in dict.fromkeys(key for one in of_group for key in one) if not changes_nothing(key)]
    shared: dict[str, str] = {}
    differing: dict[str, Sequence[str]] = {}
    partial: dict[str, Sequence[str]] = {}
    several = len({group.env for group in groups}) > 1
    columns = [f"{group.env}: {group.name}" if several else group.name for group in groups]
    in_columns = len(groups) <= _COLUMNS_AT_MOST
    for key in keys:
        cells = [one.get(key, _ABSENT) for one in of_group]
        distinct = list(dict.fromkeys(cells))
        if len(distinct) == 1:
            shared[key] = distinct[0]
        else:
            goal = partial if _ABSENT in distinct else differing
            goal[key] = cells if in_columns else [_listed([cell for cell in distinct if cell != _ABSENT])]
    return Differences(shared, columns if in_columns else ["values"], differing, partial)


def commands(groups: Sequence[SeedGroup[Member]]) -> str:
    """A shell script that runs all of it again, under other names: every setting stands in it, none is a default."""
    configs = [[_settings(run.config) for run in group.runs] for group in groups]
    everything = [config for group in configs for config in group]
    if not everything:
        return ""
    shared = {key: value for key, value in everything[0].items() if all(one.get(key) == value for one in everything)}
    lines = ["shared=(", *_filled(shared), ")"]
    for group, settings in zip(groups, configs, strict=True):
        lines += ["", f"# {group.env}: {group.name}"]
        alike = {key: value for key, value in settings[0].items() if all(one.get(key) == value for one in settings)}
        own = {key: value for key, value in alike.items() if key not in shared}
        for words, seeds in _sweeps(group, settings, alike):
            again = _word(str(group.runs[0].config.get("name", "runs")) + "-again")
            name = shlex.quote(f"name={again}")
            first = f"python -m a3c_bench.run -m algo={group.algo} {name} seed={','.join(map(str, seeds))}"
            lines += [f'{first} "${{shared[@]}}" \\', *_filled(own | words, ending=" \\")]
            lines[-1] = lines[-1].removesuffix(" \\")
    return "\n".join(lines) + "\n"


def _sweeps(
    group: SeedGroup[Member], settings: Sequence[Mapping[str, str]], alike: Mapping[str, str]
) -> list[tuple[dict[str, str], list[int]]]:
    """Seeds that one command runs, with what only they have, for instance a rate that the seed drew."""
    found: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for run, one in zip(group.runs, settings, strict=True):
        own = tuple((key, value) for key, value in one.items() if key not in alike)
        found.setdefault(own, []).append(run.seed)
    return [(dict(own), seeds) for own, seeds in found.items()]


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Overrides by key, without what the command says itself."""
    return {
        key: _word(value) for key, value in flat(config).items() if key not in ("algo.name", "name", "root", "seed")
    }


def _filled(settings: Mapping[str, str], ending: str = "") -> list[str]:
    """Lines of overrides, quoted for a shell."""
    lines = [""]
    for key, value in settings.items():
        word = shlex.quote(f"{key}={value}")
        if len(lines[-1]) + len(word) > 110:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else f"  {word}"
    return [f"{line}{ending}" for line in lines]


def _word(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_word(key)}:{_word(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if isinstance(value, str) and not (_BARE.fullmatch(text) and _is_no_other_value(text)):
        return _quoted(text)
    return text


def _quoted(text: str) -> str:
    """A string between quotes, in which Hydra takes a backslash for itself only before a quote, the last one included.

    `${` would be an interpolation to OmegaConf, unless a backslash stands before it.
    """
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda end: 2 * end[1] + ("\\'" if end[2] else ""), escaped) + "'"


def _is_no_other_value(text: str) -> bool:
    """Whether a bare word is a string to Hydra, not a number or the like."""
    if text.lower() in ("null", "true", "false", "nan", "inf", "yes", "no", "on", "off"):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def _values(group: SeedGroup[Member]) -> dict[str, str]:
    """Of a group's first run; where its seeds differ, all values."""
    found: dict[str, list[str]] = {}
    for run in group.runs:
        for key, value in flat(run.config).items():
            found.setdefault(key, []).append("null" if value is None else str(value))
    return {key: _listed(list(dict.fromkeys(values))) for key, values in found.items()}


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - _VALUES_AT_MOST} more" if len(values) > _VALUES_AT_MOST else ""
    return ", ".join(values[:_VALUES_AT_MOST]) + more
