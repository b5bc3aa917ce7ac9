"""Measures a machine with a GPU end to end within ten minutes.

    python benchmarks/gpu.py --out DIR                          # on the first GPU
    python benchmarks/gpu.py --out DIR --device cpu --tiny      # tries all of it on CPUs in some minutes
    python benchmarks/gpu.py --out DIR --steps agree,speed_dqn  # some steps: names, or what names begin with
    python benchmarks/gpu.py --out DIR --limit 300              # seconds for the whole
    python benchmarks/gpu_figures.py DIR                        # the figures again, on any machine

Steps run in order of worth, each in a process of its own, which is ended with all of its children when its limit is
over. Each result is a line of DIR/results.jsonl as soon as it is there; the first line is the machine. `kind` says what
a line is: "machine", "result", or "end" of a step with its `outcome`: done, failed, limit (was ended) or skipped (no
time left). DIR/logs has what each step printed, DIR/runs its run directories without their checkpoints, DIR/compiled
what torch.compile made.

Exit status: 0; 1 if a step failed or was ended, or the device and the CPU disagree; 2 for bad input.
"""

import argparse
import faulthandler
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from a3c_bench.errors import UserError  # noqa: E402
from a3c_bench.runtime.machine import check_device, die_with_parent, family  # noqa: E402
from a3c_bench.streams import exit_with  # noqa: E402

Line = Mapping[str, Any]
GRACE_SECONDS = 5.0  # that a step has to leave by itself when its limit is over
LEAST_SECONDS = 10.0  # with less than that a step is not begun


class BenchmarkError(UserError):
    """Something asked for that cannot be measured."""


@dataclass(frozen=True)
class Step:
    """One step: a function of `benchmarks.gpu_steps`, and how long it may take."""

    name: str
    function: str
    arguments: tuple[str, ...]
    limit_seconds: float


STEPS = (
    Step("agree_paac", "agree", ("paac", "graphs", "eager"), 60.0),
    Step("agree_ga3c", "agree", ("ga3c", "graphs", "eager"), 60.0),
    Step("agree_dqn", "agree", ("dqn", "graphs", "eager"), 60.0),
    Step("agree_draws", "draws", (), 30.0),
    Step("speed_paac", "speed", ("paac",), 100.0),
    Step("speed_ga3c", "speed", ("ga3c",), 80.0),
    Step("speed_dqn", "speed", ("dqn",), 100.0),
    Step("pong_paac", "pong", ("paac",), 150.0),
    Step("ceilings", "ceilings", ("eager", "graphs"), 90.0),
    Step("pong_ga3c", "pong", ("ga3c",), 150.0),
    Step("compiled_paac", "agree", ("paac", "compiled"), 180.0),  # each compiles first, on few cores for a minute
    Step("compiled_ga3c", "agree", ("ga3c", "compiled"), 180.0),
    Step("compiled_dqn", "agree", ("dqn", "compiled"), 180.0),
    Step("ceilings_compiled", "ceilings", ("compiled",), 180.0),
)
MACHINE = Step("machine", "machine_facts", (), 60.0)


@dataclass(frozen=True)
class Job:
    """What the process of a step is told."""

    step: str
    out: Path
    device: str
    tiny: bool
    commit: str | None
    limit_seconds: float = 60.0
    started: float = 0.0  # time.monotonic, which all processes of a machine share

    @property
    def runs(self) -> Path:
        """Where the step's run directories go."""
        return self.out / "runs" / self.step

    @property
    def log(self) -> Path:
        """What the step prints."""
        return self.out / "logs" / f"{self.step}.log"

    def seconds_left(self) -> float:
        """Before the step is ended."""
        return self.started + self.limit_seconds - time.monotonic()

    def tell(self, kind: str = "result", **values: Any) -> None:
        """Appends a line to the results, whole and at once."""
        line = json.dumps(_known({"step": self.step, "kind": kind, **values})) + "\n"
        with open(self.out / "results.jsonl", "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _known(value: Any) -> Any:
    """The same with null for what is no number: NaN is no JSON."""
    if isinstance(value, Mapping):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- one step, in its process -----------------------------------------------------------------------------------------


def run_in_this_process(step: Step, job: Job) -> None:
    """The life of a step's process; what it prints goes to its log."""
    os.setsid()
    die_with_parent()
    # The compiler's files, of this step alone: what is ended while it writes one leaves it broken.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.out.resolve() / "compiled" / step.name)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        faulthandler.dump_traceback_later(job.limit_seconds, file=log)  # where it was when its limit was over
        try:
            work: Callable[..., None] = getattr(importlib.import_module("benchmarks.gpu_steps"), step.function)
            work(job, *step.arguments)
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_status)
        finally:
            faulthandler.cancel_dump_traceback_later()


def run_step(step: Step, job: Job, target: Callable[[Step, Job], None] = run_in_this_process) -> str:
    """Runs a step in a process of its own and writes how it ended; gives the outcome."""
    context = multiprocessing.get_context("forkserver")
    job = replace(job, step=step.name, limit_seconds=min(step.limit_seconds, job.seconds_left()))
    job = replace(job, started=time.monotonic())
    process = context.Process(target=target, args=(step, job), name=step.name)
    process.start()
    try:
        process.join(job.limit_seconds)
        timed_out = process.is_alive()
    finally:
        end_with_children(process)
    seconds = round(time.monotonic() - job.started, 2)
    if timed_out:
        job.tell("end", outcome="limit", seconds=seconds, limit_seconds=job.limit_seconds, reached=last_rows(job.runs))
        return "limit"
    if process.exitcode == 0:
        job.tell("end", outcome="done", seconds=seconds)
        return "done"
    job.tell("end", outcome="failed", seconds=seconds, exit_status=process.exitcode, error=last_line(job.log))
    return "failed"


def end_with_children(process: BaseProcess) -> None:
    """Ends a process, if it still runs, and all that it has started: first by asking it, then by force."""
    assert process.pid is not None
    if not process.is_alive():
        with suppress(ProcessLookupError):  # what it left behind in its session
            os.killpg(process.pid, signal.SIGKILL)
        return
    found = set(family(process.pid))
    process.terminate()  # a training run saves and leaves
    process.join(GRACE_SECONDS)
    for pid in found | set(family(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(GRACE_SECONDS)


def last_rows(runs: Path) -> dict[str, dict[str, float]]:
    """How far the runs of a step had come: of each the last row of metrics.csv, without what is empty there."""
    found = {}
    for table in sorted(runs.rglob("metrics.csv")):
        header, *rows = [line.split(",") for line in table.read_text().splitlines()]
        if rows:
            values = {name: value for name, value in zip(header, rows[-1], strict=False) if value}
            found[str(table.parent.relative_to(runs))] = {name: float(value) for name, value in values.items()}
    return found


def last_line(file: Path) -> str:
    """The last words of a log."""
    lines = file.read_text(errors="replace").split("\n") if file.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


# --- all steps --------------------------------------------------------------------------------------------------------


def chosen_steps(words: str | None) -> list[Step]:
    """The steps that are meant by names, or by what names begin with, separated by commas; None: all.

    Raises:
        BenchmarkError: a word means none.
    """
    if words is None:
        return list(STEPS)
    wanted = words.split(",")
    for word in wanted:
        if not any(step.name == word or step.name.startswith(f"{word}_") for step in STEPS):
            names = ", ".join(step.name for step in STEPS)
            raise BenchmarkError(f"--steps {word} is no step: there are {names}, and agree and speed for several.")
    return [step for step in STEPS if any(step.name == word or step.name.startswith(f"{word}_") for word in wanted)]


def run_steps(steps: Sequence[Step], job: Job) -> list[str]:
    """Runs them while there is time; gives the outcomes."""
    outcomes = []
    for step in steps:
        if job.seconds_left() < LEAST_SECONDS:
            replace(job, step=step.name).tell("end", outcome="skipped", seconds=0.0)
            outcomes.append("skipped")
        else:
            outcomes.append(run_step(step, job))
        print(f"{time.monotonic() - job.started:6.1f} s  {step.name}: {outcomes[-1]}", flush=True)
    return outcomes


def read_results(out: Path) -> list[Line]:
    """The lines of a directory's results."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def prepare(out: Path) -> None:
    """Makes the directory.

    Raises:
        BenchmarkError: it cannot be written, or holds results already.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.jsonl").touch()
    except OSError as error:
        raise BenchmarkError(f"--out {out} cannot be written: {error.strerror}.") from error
    if (out / "results.jsonl").stat().st_size:
        raise BenchmarkError(f"{out} holds results already: choose another --out.")


def measure(job: Job, steps: Sequence[Step]) -> int:
    """Runs the steps and prints what they found; gives the exit status.

    Raises:
        BenchmarkError: there is no such device.
    """
    search_path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([search_path] if search_path else [])])
    if (
        job.device == "cpu"
    ):  # Processes need not import torch anew. With a GPU each does: what asked for one cannot fork.
        preload = ["benchmarks.gpu_steps", "torch._dynamo"]
        multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    if run_step(MACHINE, job) != "done":
        raise BenchmarkError(f"There is nothing to measure: {last_line(replace(job, step='machine').log)}")
    outcomes = run_steps(steps, job)
    lines = read_results(job.out)
    print_table(lines)
    draw_figures(job.out)
    print(f"All of it: {job.out / 'results.jsonl'}")
    agrees = all(line.get("agrees", True) for line in lines)
    return 0 if agrees and not {"failed", "limit"} & set(outcomes) else 1


def draw_figures(out: Path) -> None:
    """Draws what was found; where this machine cannot, another one can, from results.jsonl."""
    try:
        from benchmarks.gpu_figures import draw

        files = draw(read_results(out), out)
        print("Figures: " + (", ".join(map(str, files)) or "none, as there is nothing to draw"))
    except ImportError as error:
        print(f"No figures: {error}. Elsewhere: python benchmarks/gpu_figures.py {out}")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets results.jsonl, logs/ and runs/")
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help="CartPole for moments: that everything runs, no figures")
    parser.add_argument("--steps", metavar="A,B", help="some of: " + ", ".join(step.name for step in STEPS))
    parser.add_argument("--limit", type=float, default=570.0, metavar="SECONDS", help="for the whole (570)")
    parser.add_argument("--commit", help="of the source, where it lies in no checkout")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Gives the exit status."""
    chosen = parse(words)
    try:
        check_device(chosen.device)
        steps = chosen_steps(chosen.steps)
        if not chosen.limit >= LEAST_SECONDS:
            raise BenchmarkError(f"--limit {chosen.limit:g} is too short: say at least {LEAST_SECONDS:g} seconds.")
        prepare(chosen.out)
        return measure(
            Job("", chosen.out, chosen.device, chosen.tiny, chosen.commit, chosen.limit, time.monotonic()), steps
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status


# --- the table at the end ---------------------------------------------------------------------------------------------


def print_table(lines: Sequence[Line]) -> None:
    """What was found, a row per result, and which steps did not come to their end."""
    from rich.console import Console
    from rich.table import Table

    (machine,) = (line for line in lines if line["kind"] == "machine")
    table = Table(title=f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}")
    for name in ("step", "of", "found"):
        table.add_column(name)
    for line in lines:
        if line["kind"] == "result":
            table.add_row(line["step"], *_WORDS[line["step"].split("_")[0]](line))
        elif line["kind"] == "end" and line["outcome"] != "done":
            table.add_row(line["step"], "", f"{line['outcome']} after {line['seconds']:.0f} s{_end_words(line)}")
    Console(width=120).print(table)


def _end_words(line: Line) -> str:
    if "error" in line:
        return f": {line['error']}"
    rows = [row for row in line.get("reached", {}).values() if "mean_return_100_games" in row]
    return "".join(f"; {row['mean_return_100_games']:.1f} at {row['frames']:,.0f} frames" for row in rows)


def _agree_words(line: Line) -> tuple[str, str]:
    verdict = "agrees" if line["agrees"] else "DISAGREES"
    if line["step"] == "agree_draws":
        return f"{line['n_draws']:,} draws", f"frequencies off by {line['difference']:.1e} at most: {verdict}"
    moved = f"theta moved by {line['moved']:.1e} of its norm"
    found = f"difference {line['difference']:.1e} of the norm: {verdict} ({moved})"
    return f"{line['mode']}, update {line['updates']}", found


def _ceilings_words(line: Line) -> tuple[str, str]:
    names = {"simulation": "simulate", "forward": "forward", "forward_backward": "forward + backward"}
    found = ", ".join(f"{word} {line[f'{name}_agent_steps_per_second']:,.0f}" for name, word in names.items())
    return f"{line['network']}, {line['mode']}, {line['n_envs']} envs", f"{found} agent steps/s"


def _speed_words(line: Line) -> tuple[str, str]:
    shares = ", ".join(f"{name.removeprefix('share_')} {share:.0%}" for name, share in line["shares"].items())
    cost = f"; measuring lag costs {line['lag_cost']:.1%}" if "lag_cost" in line else ""
    found = f"{line['agent_steps_per_second']:,.0f} agent steps/s, {line['share_of_raw']:.0%} of raw simulation"
    found += "" if line["gpu_memory_mib"] is None else f", {line['gpu_memory_mib']:,.0f} MiB"
    return f"{line['way']}, {line['mode']}, {line['n_envs']} envs", f"{found}; {shares}{cost}"


def _pong_words(line: Line) -> tuple[str, str]:
    how_far = f"{line['frames']:,} frames, {line['wall_seconds']:.0f} s"
    score = "no game" if line["mean_return_100_games"] is None else f"{line['mean_return_100_games']:.1f}"
    return f"to {line['target_return']:g}", f"{score} after {how_far}"


_WORDS: dict[str, Callable[[Line], tuple[str, str]]] = {
    "agree": _agree_words, "compiled": _agree_words, "ceilings": _ceilings_words, "speed": _speed_words,
    "pong": _pong_words,
}  # fmt: skip


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
