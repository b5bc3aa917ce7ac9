"""The finished runs of a sweep as one small file, to publish or to go on from elsewhere.

    python -m sweeps.pack runs/forced_lag_pong --out forced_lag_pong.tar.xz
    tar -xf forced_lag_pong.tar.xz -C runs    # elsewhere: figures draw, and the sweep does what is missing

Of each run it takes the configuration, the status and the tables, which is all that analysis reads: no checkpoint and
no log. Runs that are not over are named and left out. Failed ones are taken: leaving them out would flatter the others.
The same runs give the same file to the bit. Exit status: 0; 2 if no run is over, or the file cannot be written.
"""

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import yaml
from yaml import YAMLError

from a3c_bench.runtime.directory import read_status, read_yaml
from a3c_bench.streams import exit_with
from sweeps.status import run_directories

OVER = ("finished", "failed")


def members(directory: Path) -> dict[str, bytes]:
    """Names and contents of what is taken of one run.

    The directory above all runs, which is a path of the machine they ran on, becomes the default.
    """
    config = read_yaml(directory / "config.yaml") | {"root": "runs"}
    status = json.dumps(read_status(directory), indent=2) + "\n"
    text = {"config.yaml": yaml.safe_dump(config, sort_keys=False), "status.json": status}
    tables = {table.name: table.read_bytes() for table in sorted(directory.glob("*.csv"))}
    return {name: content.encode() for name, content in text.items()} | tables


def pack(root: Path, directories: Sequence[Path], file: Path) -> None:
    """Writes an archive, whole or not at all; its paths begin with the root's own name.

    Args:
        root: holds the runs.
        directories: of the runs, below the root.
        file: a .tar.xz; a file that is there is replaced.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    top = PurePosixPath(root.resolve().name)
    try:
        with tarfile.open(unfinished, "w:xz", preset=9) as archive:
            for directory in sorted(directories):
                for name, content in members(directory).items():
                    member = tarfile.TarInfo(str(top / directory.relative_to(root).as_posix() / name))
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))  # mtime 0 and nobody's, as TarInfo begins
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.pack", description="The finished runs of a sweep as one small file."
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="holds runs, for instance runs/headline")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: ROOT's name with .tar.xz, here")
    options = parser.parse_args(arguments)
    file = options.out or Path(f"{options.root.resolve().name}.tar.xz")
    if not file.name.endswith(".tar.xz"):
        print(f"{file} must end with .tar.xz.", file=sys.stderr)
        return 2
    over = []
    for directory in run_directories(options.root):
        if read_status(directory).get("state") in OVER:
            over.append(directory)
        else:
            print(f"{directory} is left out: it is not over.", file=sys.stderr)
    if not over:
        print(f"{options.root} holds no run that is over.", file=sys.stderr)
        return 2
    try:
        pack(options.root, over, file)
    except YAMLError as error:
        print(f"A config.yaml below {options.root} is damaged: {' '.join(str(error).split())}.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{file} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    print(f"{file}: {len(over)} run{'' if len(over) == 1 else 's'}, {file.stat().st_size / 1024:,.0f} KiB.")
    return 0


if __name__ == "__main__":
    exit_with(main)
