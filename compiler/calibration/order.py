# SPDX-License-Identifier: Apache-2.0
"""The order in which the records of several files come: the files' own, or shuffled by a seed.

A shuffled order reads no more than it yields, and a pool: files take turns, the larger ones more
often, and what they yield is shuffled within the pool. A file that can be read anywhere yields its
own blocks in a random order; one that cannot, in its own.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

from prunec.compiler.calibration.document import Record

#: Bytes that a file yields in a turn, about; of records that wait to be drawn from; files that are
#: read side by side (they may be open); turns of all files in a round.
TURN, POOL, _AT_ONCE, _TURNS = 64 * 2**10, 4 * 2**20, 64, 2**18


class Readable(Protocol):
    """A file, or a shard, that yields records."""

    @property
    def size(self) -> int:
        """Bytes, about: what its share of the turns goes by."""

    def records(self, rng: random.Random | None) -> Iterator[Record]:
        """All its records, in its own order or in another."""


def ordered(files: Sequence[Readable], seed: int | None) -> Iterator[Record]:
    """The records of all files: in their order without a seed, else shuffled."""
    if seed is None:
        return chain.from_iterable(file.records(None) for file in files)
    return _pooled(_in_turns(files, random.Random(seed)), random.Random(seed))


def shuffled_numbers(count: int, rng: random.Random | None) -> Sequence[int]:
    """0 … count − 1 in a random order, or in theirs; four bytes each, since files may be large."""
    if rng is None:
        return range(count)
    numbers = array("I", range(count))
    rng.shuffle(numbers)
    return numbers


def _in_turns(files: Sequence[Readable], rng: random.Random) -> Iterator[Record]:
    started: dict[int, Iterator[Record]] = {}
    left = list(range(len(files)))
    while left:
        turn = max(TURN, sum(files[n].size for n in left) // _TURNS)
        turns = [n for n in left for _ in range(max(1, round(files[n].size / turn)))]
        rng.shuffle(turns)
        ended: set[int] = set()
        for number in turns:
            if number in ended or (number not in started and len(started) >= _AT_ONCE):
                continue
            if number not in started:
                own = random.Random(f"{rng.random()} {number}")
                started[number] = files[number].records(own)
            taken = 0
            for record in started[number]:
                yield record
                taken += record.size
                if taken >= TURN:
                    break
            else:
                ended.add(number)
                del started[number]
        left = [number for number in left if number not in ended]


def _pooled(records: Iterator[Record], rng: random.Random) -> Iterator[Record]:
    pool: list[Record] = []
    held = 0
    for record in records:
        pool.append(record)
        held += record.size
        while held > POOL:
            at = rng.randrange(len(pool))
            pool[at], pool[-1] = pool[-1], pool[at]
            drawn = pool.pop()
            held -= drawn.size
            yield drawn
    rng.shuffle(pool)
    yield from pool
