"""Being stopped from outside, but never inside an import.

An exception that comes up inside the import of compiled code can end the whole process at once,
without a word and without tidying up.
"""

from __future__ import annotations

import signal
from threading import Timer, main_thread
from types import FrameType

# Seconds until it is looked again whether the import is over.
AGAIN = 0.05


def stop_between_imports() -> None:
    """Let both signals that stop a program raise KeyboardInterrupt as soon as nothing is imported.

    For the main thread of a program; what handled the signals before is replaced.
    """
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        raise KeyboardInterrupt
    later = Timer(AGAIN, _send_again, [number])
    later.daemon = True
    later.start()


def _send_again(number: int) -> None:
    """To the main thread, which may be waiting for something; Windows knows no such way."""
    thread = main_thread().ident
    if thread is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, number)
    else:
        signal.raise_signal(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
