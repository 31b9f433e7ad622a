# SPDX-License-Identifier: Apache-2.0
"""The one error of this package: a model or checkpoint that cannot be used, and why."""

from __future__ import annotations


class ModelError(Exception):
    """A checkpoint that is missing, damaged or unsupported. `hint` says what would help."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
