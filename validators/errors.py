# SPDX-License-Identifier: Apache-2.0
"""The one error of this package: something that cannot be measured or inspected, and why."""

from __future__ import annotations


class ValidationError(Exception):
    """A folder or an input that cannot be validated. `hint` says what would help."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
