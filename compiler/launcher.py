# SPDX-License-Identifier: Apache-2.0
"""Start several workers on this machine, by torchrun's own means, and tell how they ended.

The first worker speaks for all of them. What another one says is read only when it fails.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from prunec.compiler.diagnostics import BuildError
from prunec.compiler.interruptions import LAUNCHED, TERMINATED
from prunec.compiler.passes.workers import WorkerLostError

#: How a worker ends that has nothing to say but that another one is gone.
LOST = 75

_GO_ON = "finished layers and steps are kept; run the same command again"


def launch(arguments: Sequence[str], workers: int) -> int:
    """Run `prunec` with some arguments in so many processes. Returns the first one's exit code.

    BuildError if another one fails, or any is killed: the rest are then ended.
    """
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    os.environ[LAUNCHED] = str(os.getpid())
    logging.disable()  # torchrun's account of how its processes ended: ours is below
    with tempfile.TemporaryDirectory(prefix="prunec-workers-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs, dict.fromkeys(range(1, workers), Std.OUT | Std.ERR)),
        )
        start = elastic_launch(config, sys.executable)
        try:
            start("-m", "prunec.compiler", *arguments)
        except ChildFailedError as error:
            return _judged(error.failures, Path(logs))
        except SignalException as told:
            return 128 + int(told.sigval)
    return 0


@contextmanager
def telling_of_lost_workers() -> Iterator[None]:
    """What a worker says of another one that is gone: nothing if `launch` is there to say it. Where
    that is killed its workers end, too."""
    if LAUNCHED in os.environ:
        Thread(target=_end_with, args=[int(os.environ[LAUNCHED])], daemon=True).start()
    try:
        yield
    except WorkerLostError as error:
        if LAUNCHED in os.environ:
            raise SystemExit(LOST) from error
        raise BuildError(f"another worker is gone: {error}", hint=_GO_ON) from error


def _end_with(parent: int) -> None:
    """What is stored is whole at any moment; and the main thread may be waiting for a worker."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(TERMINATED)


def _judged(failures: Mapping[int, ProcessFailure], logs: Path) -> int:
    """The first worker's exit code if it knew why it ended. BuildError for the one that did not."""
    codes = {rank: failure.exitcode for rank, failure in sorted(failures.items())}
    told = {rank: code for rank, code in codes.items() if code not in (LOST, -signal.SIGTERM)}
    if told.get(0, 0) > 0:
        return told[0]  # it has said why
    rank, code = next(iter((told or codes).items()))
    if code < 0:
        raise BuildError(f"worker {rank} was killed by {signal.Signals(-code).name}", hint=_GO_ON)
    raise BuildError(f"worker {rank}: {_last_words(rank, logs) or f'ended with {code}'}", _GO_ON)


def _last_words(rank: int, logs: Path) -> str | None:
    """The sentence that a worker ended with; a hint may follow it, and warnings come before."""
    said = None
    for path in logs.rglob(f"{rank}/stderr.log"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and not line.startswith("  hint: "):
                said = line.strip()
    return said
