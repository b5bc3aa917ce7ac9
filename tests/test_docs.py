"""What docs/ and README.md say of the code: lines, files, keys, columns and commands that there are."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from a3c_bench.algos import algorithm_names, find_algorithm, find_settings
from a3c_bench.config import compose
from a3c_bench.core.lag import UNITS
from a3c_bench.runtime import recorder
from a3c_bench.schema import Config, check
from docs import refresh_lines

ROOT = Path(__file__).parents[1]
ALGORITHMS = ROOT / "docs" / "algorithms"
COLUMNS = {column for name, table in vars(recorder).items() if name.endswith("_COLUMNS") for column in table}
GROUPS = {"algo", "env", "settings", "network", "advantage", "logger", "experiment"}
MODULES = {"a3c_bench", "analysis", "sweeps", "benchmarks"}
COMMANDS = {"python", "make", "demo"}


def test_references_are_up_to_date() -> None:
    wrong = [sentence for page in refresh_lines.pages() for sentence in refresh_lines.refresh(page)[1]]
    assert wrong == [], (
        "Run `make lines` (python docs/refresh_lines.py), which renews the lines of names that are there."
    )


CODE = """\
import torch

A, B = 1, 2


@property
def first() -> None:
    def within() -> None: ...


class Kept:
    size: int = 3

    async def first(self) -> None: ...

    def first(self) -> None: ...
"""


def test_definitions_by_hand() -> None:
    found = refresh_lines.definitions(CODE)
    assert found == {"A": 3, "B": 3, "first": 7, "Kept": 11, "Kept.size": 12, "Kept.first": 14}


def test_a_page_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that moved are written anew; a name that is gone, and a label of another file, are said."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "code.py").write_text(CODE)
    page = tmp_path / "page.md"
    page.write_text("See [code.py:1 Kept](lib/code.py#L11), [lib/code.py:7 first](lib/code.py#L7).\n")
    monkeypatch.setattr(refresh_lines, "pages", lambda: [page])
    assert refresh_lines.main(["--check"]) == 1
    said = "page.md: [code.py:1 Kept](lib/code.py#L11) is out of date, say python docs/refresh_lines.py.\n"
    assert capsys.readouterr().err == said
    assert refresh_lines.main([]) == refresh_lines.main(["--check"]) == 0
    assert page.read_text() == "See [code.py:11 Kept](lib/code.py#L11), [lib/code.py:7 first](lib/code.py#L7).\n"
    page.write_text("[code.py:1 Kept.last](lib/code.py#L1) [mode.py:1 Kept](lib/code.py#L1) [x.py:1 A](x.py#L1)")
    before = page.read_text()
    assert refresh_lines.main([]) == 1
    gone, label, file = capsys.readouterr().err.splitlines()
    assert gone == "page.md: Kept.last is gone from code.py."
    assert label.startswith("page.md: [mode.py:1 Kept](lib/code.py#L1) is to read [core/optim.py:154 ")
    assert file == "page.md: x.py, where A was, is gone."
    assert page.read_text() == before


@pytest.mark.parametrize("page", [ROOT / "README.md", *refresh_lines.pages()], ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    files = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_every_algorithm_has_a_page() -> None:
    named = set(re.findall(r"\]\((\w+)\.md\)", (ALGORITHMS / "README.md").read_text()))
    modules = {find_algorithm(name).train.__module__.split(".")[-1] for name in algorithm_names()}
    assert named >= modules
    assert {page.stem for page in ALGORITHMS.glob("*.md")} == {"README", *modules}


def keys_of(tree: Any, prefix: str = "") -> set[str]:
    """Every key of a configuration, whole sections included."""
    if not isinstance(tree, dict):
        return {prefix}
    return {prefix}.union(*(keys_of(value, f"{prefix}.{key}" if prefix else key) for key, value in tree.items()))


def quoted(text: str) -> list[str]:
    """The words that stand in backticks."""
    return " ".join(re.findall(r"`([^`\n]+)`", text)).split()


def is_right(word: str, keys: set[str]) -> bool:
    """Whether what stands in backticks is a key, a column, a unit of lag, a module, a file or a target of make."""
    name, _, value = word.partition("=")
    if "/" in name:
        return name.startswith("runs/") or (ROOT / name).exists()
    if name == "+sweeps":
        return (ROOT / "sweeps" / f"{value}.yaml").exists()
    if name in GROUPS and value:
        return all((ROOT / "conf" / name / f"{option}.yaml").exists() for option in value.split(","))
    if value:
        return name in keys
    if "." in name:
        return name in keys or name.split(".")[0] in MODULES or name.endswith((".csv", ".json", ".yaml", ".log"))
    return name in keys or name in COLUMNS or name in UNITS or name in COMMANDS or not re.fullmatch(r"[a-z_\d]+", name)


def test_right_words_by_hand() -> None:
    words = quoted(
        "`algo.t_max` `algo.t_min` `lag_updates_p95`, `lag_p95`; `algo=paac env=x` `rate=1` `conf/x.yaml` `+sweeps=x`"
    )
    wrong = [word for word in words if not is_right(word, {"algo.t_max"})]
    assert wrong == ["algo.t_min", "lag_p95", "env=x", "rate=1", "conf/x.yaml", "+sweeps=x"]


def commands(text: str) -> list[str]:
    """The words of each indented `python -m a3c_bench.run`."""
    lines = re.findall(r"^    python -m a3c_bench\.run\b(.*)$", text, re.MULTILINE)
    return [word for line in lines for word in shlex.split(line, comments=True) if word != "-m"]


@pytest.mark.parametrize("page", sorted(ALGORITHMS.glob("*.md")), ids=lambda page: page.stem)
def test_words_are_those_of_the_code(page: Path) -> None:
    """Words of commands and in backticks, with the values of the page's own algorithm; the index names keys of all."""
    words = commands(page.read_text()) + quoted(page.read_text())
    names = [page.stem] if page.stem in algorithm_names() else algorithm_names()
    trees = [asdict(Config(algo=find_settings(name).config_class())) for name in names]
    keys = {key for tree in trees for key in keys_of(tree)}
    assert [word for word in words if not is_right(word, keys)] == []
    if page.stem in names:
        set_keys = [word for word in words if "=" in word and word.partition("=")[0] in keys - GROUPS]
        check(compose([f"algo={page.stem}", "settings=paper", *set_keys]))


def test_commands_by_hand() -> None:
    run = "python -m a3c_bench.run"
    assert commands(f"    {run} -m algo=a3c,paac env.id='x y'  # why\n    {run}\n{run} x\n") == [
        "algo=a3c,paac",
        "env.id=x y",
    ]
