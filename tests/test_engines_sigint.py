"""Ctrl-C waits for the end of what must not be broken off, and comes then."""

import signal
import subprocess
import sys
import threading

import pytest

from ser.engines.processes import defer_sigint


def test_it_comes_at_the_end_and_then_as_ever() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_sigint():
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)  # in this thread, whatever others a test before has left
            done.append("all of it")
        done.append("more")
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_is_begun_in_it_never_hears_it() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('on')"
    with defer_sigint():
        begun = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert begun.communicate()[0] == "on\n"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE).returncode == -signal.SIGINT


def test_nobody_presses_anything() -> None:
    handler, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ZeroDivisionError), defer_sigint():
        raise ZeroDivisionError
    with defer_sigint():
        pass
    aside = threading.Thread(target=lambda: defer_sigint().__enter__())  # no main thread: it may set no handler
    aside.start()
    aside.join()
    assert signal.getsignal(signal.SIGINT) is handler and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
