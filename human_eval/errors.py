"""Errors of a study."""


class StudyError(Exception):
    """Something was not as expected; the message says what, what came, and what to do."""
