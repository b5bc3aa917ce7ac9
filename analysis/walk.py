"""Directories below a root, symbolic links followed: what looks for runs starts here. It imports nothing heavy."""

import os
from collections.abc import Iterator
from pathlib import Path


def below(root: str | Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields as `os.walk` does, in the order of names: a directory, its children (to be cut short) and its files.

    A directory that several paths lead to, as links and loops of links make it, comes once, by the first of them.
    """
    seen: set[tuple[int, int]] = set()
    for directory, children, files in os.walk(root, followlinks=True):
        try:
            found = os.stat(directory)
        except OSError:  # it has gone since
            children.clear()
            continue
        if (found.st_dev, found.st_ino) in seen:
            children.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        children.sort()
        yield Path(directory), children, files
