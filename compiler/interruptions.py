# SPDX-License-Identifier: Apache-2.0
"""How a command ends that is told to: Ctrl-C and SIGTERM, while it works and while it is loaded."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: Exit codes, as a shell would have them.
INTERRUPTED, TERMINATED = 130, 128 + signal.SIGTERM

#: Set for workers that `prunec build --workers` has started, to its process id: it says how they
#: ended, and they end with it.
LAUNCHED = "PRUNEC_WORKERS"

#: What is said then, by exit code.
SENTENCES: Mapping[object, str] = {
    INTERRUPTED: "interrupted; the same command goes on where it stopped\n",
    TERMINATED: "terminated; the same command goes on where it stopped\n",
}


def sentence(code: object) -> str:
    """What is said of an exit code: nothing if it is not one of these, or somebody else says it."""
    launched = LAUNCHED in os.environ and "RANK" in os.environ
    return "" if launched else SENTENCES.get(code, "")


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: processes that it started go with it."""
    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process there and then; for imports, which have nothing to put in
    order.

    Some libraries swallow a KeyboardInterrupt while they are imported, and fail on it later.
    """

    def leave(number: int, _: object) -> None:
        code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        os.write(2, sentence(code).encode())
        os._exit(code)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
