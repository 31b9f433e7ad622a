# SPDX-License-Identifier: Apache-2.0
"""Special ids as three files name them, and ids that a model has no embedding for."""

from __future__ import annotations

from typing import Any

import pytest

from prunec.compiler.model.errors import ModelError
from prunec.compiler.model.special_ids import SpecialIds, check_ids, settle_special_ids

NOBODY: dict[str, Any] = {"bos": None, "eos": None, "pad": None}


def test_the_tokenizer_comes_before_the_configs() -> None:
    config = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4}
    generation = {"bos_token_id": 11, "eos_token_id": 12, "pad_token_id": [14, 15]}
    assert settle_special_ids(config, {}, **NOBODY) == SpecialIds(1, (2, 3), 4)
    assert settle_special_ids(config, generation, **NOBODY) == SpecialIds(11, (12, 2, 3), 14)
    own = settle_special_ids(config, generation, bos=0, eos=3, pad=0)
    assert own == SpecialIds(0, (3, 12, 2), 0)
    assert (own.end, SpecialIds(None, (), None).end) == (3, None)


@pytest.mark.parametrize("value", [None, -1, [], [None], True, "</s>", 2.0])
def test_what_is_no_id_names_none(value: object) -> None:
    config = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), value)
    assert settle_special_ids(config, config, **NOBODY) == SpecialIds(None, (), None)


def test_an_id_beyond_the_vocabulary_is_named_with_its_token() -> None:
    check_ids([], 5, str)
    check_ids([0, 4], 5, str)
    with pytest.raises(ModelError, match=r"'<5>', id 5, and the model's vocabulary ends at id 4"):
        check_ids([0, 5, 2], 5, lambda n: f"<{n}>")
