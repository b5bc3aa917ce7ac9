"""What begins before torch is imported: the fork server, where it is needed."""

import json
from pathlib import Path

import pytest

from a3c_bench.config import compose
from a3c_bench.launch import ahead

PROCESSES = ("env.backend=gymnasium", "env.simulate=processes")


@pytest.mark.parametrize(
    ("words", "state", "preloaded"),
    [
        (("algo=a3c",), None, [()]),
        (("algo=gorila", "algo.optimizer.kind=adam"), None, [("torch._dynamo",)]),
        (("algo=a3c",), "preempted", [()]),
        (("algo=a3c",), "finished", []),
        (("algo=paac",), None, []),
        (("algo=paac", *PROCESSES), None, [()]),
    ],
)
def test_the_fork_server_is_started_for_who_will_need_it(
    words: tuple[str, ...],
    state: str | None,
    preloaded: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(ahead, "start_fork_server", started.append)
    if state:
        (tmp_path / "status.json").write_text(json.dumps({"state": state}))
    ahead.start_ahead(compose(["experiment=tiny", *words]), tmp_path)
    assert started == preloaded
