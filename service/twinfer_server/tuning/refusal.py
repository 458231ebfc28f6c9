"""Refusals: what a precision or an acceleration says where a member cannot have it."""


class Refused(Exception):
    """The member cannot have this here; the text says why, and what would help where anything does."""
