# SPDX-License-Identifier: Apache-2.0
"""Builds that work on one study: who is at work, and whose trials were left by the dead.

Locks are files beside the study. The system lets go of them when a process ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Workers:
    """The builds that work on the study `name` in the file `path`, by numbers."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        #: Held while trials are handed out, by one build at a time.
        self.turn = FileLock(path.with_name(f"{path.name}.lock"))

    @contextmanager
    def joined(self) -> Iterator[int]:
        """The number of this build, its own until it leaves."""
        number = 0
        with self.turn:
            while not (lock := self._taken(number)):
                number += 1
        try:
            yield number
        finally:
            with self.turn:
                _leave(lock)

    def is_gone(self, number: int) -> bool:
        """Whether nobody has a number. To be asked in `turn`, by others than its owner."""
        lock = self._taken(number)
        if lock is not None:
            _leave(lock)
        return lock is not None

    def _taken(self, number: int) -> FileLock | None:
        """A number's lock, held; None where another build holds it."""
        lock = FileLock(self._path.with_name(f"{self._path.name}.{self._name}.{number}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock


def _leave(lock: FileLock) -> None:
    """In `turn`, where nobody else can be waiting for the file."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
