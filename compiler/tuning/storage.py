# SPDX-License-Identifier: Apache-2.0
"""Optuna's storage in an SQLite file that builds share, and what can go wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.tuning.workers import Workers


@contextmanager
def opened(path: Path, workers: Workers) -> Iterator[RDBStorage]:
    """The trials of all studies in a file, which is made if it is not there.

    Raises BuildError for a file that holds no studies.
    """
    try:
        with workers.turn:  # tables are made once
            storage = _storage(path)
    except (SQLAlchemyError, OptunaError, RuntimeError) as error:
        raise _unusable(path, error) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _storage(path: Path) -> RDBStorage:
    # Builds wait for each other's transactions, each a matter of milliseconds.
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})

    def set_up(connection: Any, record: object) -> None:
        """With a log ahead of the file, a dozen small transactions a trial need no flush of the
        disk each; no end of a process loses any."""
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")

    sqlalchemy.event.listen(storage.engine, "connect", set_up)
    storage.remove_session()
    storage.engine.dispose()  # connections that were made before
    return storage


@contextmanager
def quietly(path: Path) -> Iterator[None]:
    """Without Optuna's own words; what its storage cannot do is a BuildError."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"optuna|prunec\.compiler\.tuning")
            yield
    except (SQLAlchemyError, OptunaError) as error:
        raise _unusable(path, error) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def _unusable(path: Path, error: Exception) -> BuildError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BuildError(
        f"trials cannot be kept in {path}: {reason}",
        hint="move the file away, or name another as method.study",
    )
