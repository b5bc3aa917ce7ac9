"""Keeps the line numbers in docs/ where the code is.

    python docs/refresh_lines.py            # make lines: writes the numbers anew
    python docs/refresh_lines.py --check    # only compares; tests/test_docs.py does the same

A reference names a file, a line and what is defined there, a function, a class or a constant of a module or class:

    [core/optim.py:154 RMSProp._update](../../a3c_bench/core/optim.py#L154)

The name is what counts. Exit status: 0, or 1 with one sentence for each reference that is out of date or leads nowhere.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
COMMAND = "python docs/refresh_lines.py"
_LINK_TO_LINE = re.compile(r"\[(?P<label>[^\[\]]*)\]\((?P<path>[^()\s#]+\.py)#L(?P<line>\d+)\)")
_LABEL = re.compile(r"(?P<file>[\w/]+\.py):(?P<line>\d+) (?P<name>[\w.]+)")


def pages() -> list[Path]:
    """Every page of docs/."""
    return sorted(DOCS.rglob("*.md"))


def definitions(source: str) -> dict[str, int]:
    """The line of each function, class and constant, by qualified name (`Class.method`); the first counts."""
    found: dict[str, int] = {}
    for name, line in _defined(ast.parse(source).body, ""):
        found.setdefault(name, line)
    return found


def _defined(body: Iterable[ast.stmt], prefix: str) -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            each = [name for target in targets for name in getattr(target, "elts", [target])]  # A, B = 1, 2
            yield from ((prefix + name.id, node.lineno) for name in each if isinstance(name, ast.Name))


def refresh(page: Path) -> tuple[str, list[str]]:
    """A page's text with the numbers of today, and a sentence for each reference that was not right."""
    said: list[str] = []

    def renewed(link: re.Match[str]) -> str:
        found = _renewed(page, link)
        if isinstance(found, list):
            said.extend(found)
            return link[0]
        if found != link[0]:
            said.append(f"{_place(page)}: {link[0]} is out of date, say {COMMAND}.")
        return found

    return _LINK_TO_LINE.sub(renewed, page.read_text(encoding="utf-8")), said


def _renewed(page: Path, link: re.Match[str]) -> str | list[str]:
    """The link with its line of today; or what is wrong with it, in a list of one sentence."""
    label, file = _LABEL.fullmatch(link["label"]), (page.parent / link["path"]).resolve()
    if label is None or not f"/{link['path']}".endswith(f"/{label['file']}"):
        return [
            f"{_place(page)}: {link[0]} is to read [core/optim.py:154 RMSProp._update](path/to/core/optim.py#L154)."
        ]
    if not file.is_file():
        return [f"{_place(page)}: {link['path']}, where {label['name']} was, is gone{_elsewhere(label['name'])}."]
    line = definitions(file.read_text(encoding="utf-8")).get(label["name"])
    if line is None:
        return [f"{_place(page)}: {label['name']} is gone from {label['file']}{_elsewhere(label['name'])}."]
    return f"[{label['file']}:{line} {label['name']}]({link['path']}#L{line})"


def _elsewhere(name: str) -> str:
    """Where that name is defined now, as the end of a sentence."""
    files = sorted((DOCS.parent / "a3c_bench").rglob("*.py"))
    found = [str(file.relative_to(DOCS.parent)) for file in files if name in definitions(file.read_text("utf-8"))]
    return f": there is one in {', '.join(found)}" if found else ""


def _place(page: Path) -> str:
    return str(page.relative_to(DOCS.parent)) if page.is_relative_to(DOCS.parent) else page.name


def main(words: list[str] | None = None) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description="Keeps the line numbers in docs/ where the code is.")
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args(words).check
    wrong: list[str] = []
    for page in pages():
        text, said = refresh(page)
        if not check and text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            said = refresh(page)[1]
        wrong += said
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
