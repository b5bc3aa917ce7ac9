"""Threads: reports, standstill, and every way in which one can fail."""

import threading
import time

import pytest

from a3c_bench.errors import WorkerError
from a3c_bench.parallel import crew as crew_module
from a3c_bench.parallel.crew import Crew, Member


def count(member: Member) -> None:
    n_turns = 0

    def report() -> int:
        nonlocal n_turns
        n, n_turns = n_turns, 0
        return n

    member.report = report
    while member.going():
        n_turns += 1
        time.sleep(0.0005)


@pytest.fixture
def given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs is not waited for in the end."""
    monkeypatch.setattr(crew_module, "_SECONDS_TO_END", 0.1)


def run_for(crew: Crew, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        crew.poll(0.01)


def test_every_report_arrives_and_a_standstill_is_one() -> None:
    reported: list[int] = []
    with Crew(reported.append, 10.0) as crew:
        members = [crew.start(f"counter {i}", count) for i in range(3)]
        with crew.standstill():
            assert sum(reported) == 0  # they start paused
        run_for(crew, 0.2)
        assert sum(reported) > 30  # before they are asked to stand still
        assert len(reported) < 0.5 * sum(reported)  # several turns at a time
        with crew.standstill():
            before = sum(reported)
            time.sleep(0.05)
            assert crew.reports.empty()
            assert sum(reported) == before
        run_for(crew, 0.1)
        assert sum(reported) > before
    assert not any(member.thread.is_alive() for member in members)
    assert crew.reports.empty()


def test_pauses_may_follow_each_other_at_once() -> None:
    reported: list[int] = []
    with Crew(reported.append, 10.0) as crew:
        for i in range(3):
            crew.start(f"counter {i}", count)
        for _ in range(30):
            for _ in range(3):
                with crew.standstill():
                    before = sum(reported)
                    time.sleep(0.002)
                    assert crew.reports.empty()
                    assert sum(reported) == before
            run_for(crew, 0.02)


def test_a_thread_is_told_when_a_pause_is_over() -> None:
    resumed: list[str] = []

    def note(member: Member) -> None:
        member.resume = lambda: resumed.append(member.name)
        while member.going():
            time.sleep(0.001)

    with Crew(lambda report: None, 10.0) as crew:
        crew.start("one", note)
        crew.start("two", note)
        for n in (1, 2, 3):
            with crew.standstill():
                assert len(resumed) == 2 * (n - 1)
            run_for(crew, 0.1)
            assert sorted(resumed) == ["one"] * n + ["two"] * n


def test_what_was_done_last_is_reported_though_nobody_asks() -> None:
    reported: list[int] = []
    done = [0, 0, 0]

    def end(member: Member) -> None:
        member.report = lambda: done.pop() if done else 0
        member.going()
        done[:] = [5]  # and ends within the time between two reports

    with Crew(reported.append, 10.0) as crew:
        crew.start("ender", end)
        with crew.standstill():
            assert sum(reported) == 0
        run_for(crew, 0.1)
        assert sum(reported) == 5


def test_one_thread_may_leave() -> None:
    with Crew(lambda report: None, 10.0) as crew:
        first, second = crew.start("first", count), crew.start("second", count)
        with crew.standstill():
            pass
        first.dismissed = True
        first.thread.join(2.0)
        run_for(crew, 0.05)
        assert (first.thread.is_alive(), second.thread.is_alive()) == (False, True)


def raise_error(member: Member) -> None:
    member.going()
    raise ZeroDivisionError("one over nothing")


def test_a_thread_that_raises_ends_the_run_with_its_traceback() -> None:
    with pytest.raises(WorkerError) as caught, Crew(lambda report: None, 10.0) as crew:  # noqa: PT012
        bystander = crew.start("bystander", count)
        crew.start("culprit", raise_error)
        with crew.standstill():
            pass
        run_for(crew, 10.0)
    assert "The culprit raised ZeroDivisionError: one over nothing" in str(caught.value)
    assert "in raise_error" in str(caught.value)
    assert not bystander.thread.is_alive()


def test_a_thread_that_hangs_ends_the_run_with_its_stack(given_up_soon: None) -> None:
    release = threading.Event()

    def hang_here(member: Member) -> None:
        member.going()
        release.wait(30.0)

    started = time.monotonic()
    with pytest.raises(WorkerError) as caught, Crew(lambda report: None, 0.3) as crew:  # noqa: PT012
        crew.start("hanger", hang_here)
        with crew.standstill():
            pass
        run_for(crew, 20.0)
    assert "The hanger said nothing for 0.3 seconds" in str(caught.value)
    assert "hang_here" in str(caught.value)
    assert time.monotonic() - started < 10
    release.set()


def test_a_thread_that_is_hired_on_the_way_and_hangs_is_found_before_any_pause(given_up_soon: None) -> None:
    release = threading.Event()

    def hang_here(member: Member) -> None:
        member.going()
        release.wait(30.0)

    with pytest.raises(WorkerError, match=r"The hired said nothing for 0\.3 seconds") as caught:  # noqa: PT012, SIM117
        with Crew(lambda report: None, 0.3) as crew:
            crew.start("counter", count)
            with crew.standstill():
                pass
            crew.start("hired", hang_here)
            run_for(crew, 5.0)
    assert "hang_here" in str(caught.value)
    release.set()


def test_a_thread_may_take_longer_to_start_than_to_be_found_silent() -> None:
    reported: list[int] = []

    def start_slowly(member: Member) -> None:
        time.sleep(0.5)
        count(member)

    with Crew(reported.append, 0.2) as crew:
        crew.start("first", start_slowly)
        with crew.standstill():
            assert sum(reported) == 0
        hired = crew.start("hired", start_slowly)
        run_for(crew, 0.7)
        with crew.standstill():
            assert hired.stands_in == crew.pause
    assert sum(reported) > 10


def test_a_thread_that_never_starts_is_found(given_up_soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_SECONDS_TO_GET_READY", 0.4)
    release = threading.Event()
    with pytest.raises(WorkerError, match=r"The sleeper said nothing for 0\.4 seconds"):  # noqa: PT012, SIM117
        with Crew(lambda report: None, 0.2) as crew:
            crew.start("sleeper", lambda member: release.wait(30.0) and None)
            with crew.standstill():
                pass
    release.set()


@pytest.mark.parametrize("takes_turns", [True, False])
def test_one_thread_at_a_time_has_a_turn_in_a_crew_that_takes_turns(takes_turns: bool) -> None:
    present = most = 0
    guard = threading.Lock()

    def work(member: Member) -> None:
        nonlocal present, most
        while member.going():
            with member.turn():
                with guard:
                    present += 1
                    most = max(most, present)
                time.sleep(0.001)
                with guard:
                    present -= 1

    with Crew(lambda report: None, 10.0, takes_turns) as crew:
        for i in range(3):
            crew.start(f"worker {i}", work)
        for _ in range(2):
            with crew.standstill():
                assert present == 0
            run_for(crew, 0.1)
    assert (most == 1) is takes_turns


def test_who_is_aside_lets_others_have_their_turn_and_comes_back_alone() -> None:
    inside = n_met = n_had = 0
    done = threading.Event()

    def step_aside(member: Member) -> None:
        nonlocal inside, n_met
        while member.going():
            with member.turn():
                with member.aside():
                    met = n_had
                    done.wait(0.5)  # long enough for the other to have one
                    done.clear()
                    n_met += n_had > met
                inside += 1
                time.sleep(0.001)
                inside -= 1

    def take_it(member: Member) -> None:
        nonlocal n_had
        while member.going():
            with member.turn():
                assert inside == 0
                n_had += 1
            done.set()

    with Crew(lambda report: None, 10.0, takes_turns=True) as crew:
        crew.start("learner", step_aside)
        crew.start("other", take_it)
        with crew.standstill():
            pass
        run_for(crew, 0.2)
    assert n_met > 3


def test_who_waits_for_a_turn_is_not_the_one_that_is_silent(given_up_soon: None) -> None:
    release = threading.Event()

    def hang_here(member: Member) -> None:
        with member.turn():
            member.going()
            release.wait(30.0)

    def wait_here(member: Member) -> None:
        while member.going():
            with member.turn():
                pass

    with pytest.raises(WorkerError, match=r"The hanger said nothing for 0\.5 seconds"):  # noqa: PT012, SIM117
        with Crew(lambda report: None, 0.5, takes_turns=True) as crew:
            crew.start("hanger", hang_here)
            crew.start("waiter", wait_here)
            with crew.standstill():
                pass
            run_for(crew, 10.0)
    release.set()


def test_a_turn_ends_with_an_error_in_it() -> None:
    def fail(member: Member) -> None:
        with member.turn():
            member.going()
            raise ZeroDivisionError

    with pytest.raises(WorkerError, match="The culprit raised"), Crew(lambda report: None, 10.0, True) as crew:  # noqa: PT012
        crew.start("culprit", fail)
        with crew.standstill():
            pass
        assert crew.turns is not None
        assert crew.turns.acquire(timeout=5.0)
        run_for(crew, 10.0)
