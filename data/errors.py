"""The one error behind all that can be wrong with data that a user hands in."""

from __future__ import annotations


class DataError(ValueError):
    """Something in the user's data, not in the program: the message is one sentence that says what, and what to do."""
