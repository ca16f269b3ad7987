"""Ctrl-C that waits until what may not be left half-way is done."""

import signal
import subprocess
import sys
import threading

import pytest

from ser.engines.interrupts import defer_sigint

INTERRUPT_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('on')"


def test_what_is_begun_while_ctrl_c_is_deferred_never_hears_it() -> None:
    command = [sys.executable, "-c", INTERRUPT_ITSELF]

    with defer_sigint():
        begun = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed, _ = begun.communicate()
    assert printed == "on\n"

    begun_later = subprocess.run(command, stderr=subprocess.PIPE)
    assert begun_later.returncode == -signal.SIGINT


def test_deferred_ctrl_c_comes_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_sigint():
            for _ in range(2):
                # In this thread, whatever others a test before has left.
                signal.raise_signal(signal.SIGINT)
            done.append("all of it")
        done.append("more")

    assert done == ["all of it"]


def defer_in_another_thread() -> None:
    """No main thread: it may set no handler."""
    other = threading.Thread(target=lambda: defer_sigint().__enter__())
    other.start()
    other.join()


def test_the_signals_are_as_they_were_afterwards() -> None:
    handler = signal.getsignal(signal.SIGINT)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    with pytest.raises(KeyboardInterrupt), defer_sigint():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), defer_sigint():
        raise ZeroDivisionError
    defer_in_another_thread()

    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
