"""Stop signals, sent to this process."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from a3c_bench.runtime.signals import StopRequest, ended_by_interrupt

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def ignored(number: int, frame: object) -> None:
    """A handler that was there before."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """This process survives all of them."""
    before = {number: signal.signal(number, ignored) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("sent", SIGNALS)
def test_a_signal_is_remembered(sent: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), sent)
        assert stop.signal is sent
    assert [signal.getsignal(number) for number in SIGNALS] == [ignored] * len(SIGNALS)


def test_handlers_come_back_after_an_error() -> None:
    def fail() -> None:
        with StopRequest():
            assert ignored not in [signal.getsignal(number) for number in SIGNALS]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == [ignored] * len(SIGNALS)


def test_the_first_signal_counts() -> None:
    with StopRequest() as stop:
        for sent in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), sent)
        stop.request(signal.SIGTERM)
        assert stop.signal is signal.SIGUSR2


def test_a_second_interrupt_interrupts() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is signal.SIGINT


def test_outside_the_main_thread_it_is_asked() -> None:
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.extend(signal.getsignal(number) for number in SIGNALS)
            stop.request()
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [ignored] * len(SIGNALS) + [signal.SIGTERM]


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_an_interrupt_before_a_run_listens_ends_the_process_without_a_traceback() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ended_by_interrupt():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_ones_handler_for_interrupts_stays() -> None:
    with ended_by_interrupt():
        assert signal.getsignal(signal.SIGINT) is ignored
