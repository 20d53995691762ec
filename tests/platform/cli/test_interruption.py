import signal
import subprocess
import sys

import pytest
from intarsia_platform.cli.interruption import Interrupted, SignalKeeper

PROGRAM = """
import sys, time
from intarsia_platform.cli.failures import run_command
from intarsia_platform.cli.settings import Settings

settings = Settings()

def command():
    with settings.signals.explained(lambda: "interrupted; something is kept"):
        try:
            print("working", flush=True)
            time.sleep(60)
        finally:
            for _ in range({pauses}):
                print("cleaning", flush=True)
                sys.stdin.readline()
            if {broken}:
                raise RuntimeError("a consequence")

with settings.signals.held():
    code = run_command(command, settings)
sys.exit(code)
"""


def begin(*, pauses: int = 0, broken: bool = False) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(pauses=pauses, broken=broken)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "working\n"
    return child


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_both_signals_end_the_work_in_order(number, code):
    child = begin()
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (code, "intarsia: interrupted; something is kept\n")


def test_a_second_one_lets_the_clean_up_end():
    child = begin(pauses=1)
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "cleaning\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline() == "intarsia: cleaning up; once more ends it at once\n"
    _, err = child.communicate("\n", timeout=30)
    assert (child.returncode, err) == (130, "intarsia: interrupted; something is kept\n")


def test_a_third_one_ends_it_at_once():
    child = begin(pauses=1)
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "cleaning\n"
    for _ in range(2):
        child.send_signal(signal.SIGINT)
        assert "once more" in child.stderr.readline()
    _, err = child.communicate(timeout=30)
    assert child.returncode == 143 and "Traceback" not in err


def test_an_error_after_an_interruption_is_its_consequence():
    child = begin(broken=True)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "intarsia: interrupted; something is kept\n")


def test_an_error_without_an_interruption_stays_itself():
    with pytest.raises(ZeroDivisionError), SignalKeeper().explained(lambda: "interrupted"):
        raise ZeroDivisionError


def test_a_library_s_own_interrupt_keeps_the_first_signal_s_code():
    keeper = SignalKeeper()
    with pytest.raises(Interrupted) as caught, keeper.held(), keeper.explained(lambda: "line"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else
                      signal.default_int_handler)  # fmt: skip
    assert (caught.value.exit_code, caught.value.line) == (143, "line")


def test_a_handler_that_a_library_set_is_replaced_and_the_first_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    keeper = SignalKeeper()
    with keeper.held():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper.take()
        assert signal.getsignal(signal.SIGTERM) == ours
    assert signal.getsignal(signal.SIGTERM) == before
