# SPDX-License-Identifier: Apache-2.0
"""Where the work on a model lies while it is done: in memory, or in files if that is too small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """What is held at once. It changes how long a build takes and what it needs, not what it finds,
    but for `batch_tokens`: batches of another size round otherwise.

    batch_tokens: tokens of one forward pass; small enough for a laptop, large enough for full
        matrix products
    vocabulary_stays: the embedding and the head stay in memory between their uses
    states_on_host: hidden states of all windows lie in the host's memory, but for those of a batch
    states_in_file: hidden states of all windows lie in a file, but for those of a batch
    matrices_in_file: a Gram matrix lies in a file while its inverse is worked on
    cut_bytes: sublayers cut to size that a search keeps in memory; what is beyond goes into a file
    cut_file_bytes: and of these, those that are kept in the file
    state_bytes: hidden states of a search's base that are kept in memory
    scratch: the folder of these files; they have no name there, and are gone with the process
    """

    batch_tokens: int = 8192
    vocabulary_stays: bool = True
    states_on_host: bool = False
    states_in_file: bool = False
    matrices_in_file: bool = False
    cut_bytes: int = 2 * GIB
    cut_file_bytes: int = 32 * GIB
    state_bytes: int = GIB
    scratch: Path | None = None


#: All of it in memory, as fast as can be.
ROOMY = Placement()
