"""Errors of a study. Raters and operators read their messages: what happened, and what to do.

StudyError
  NotYours        the token is forged, or belongs to another rater or assignment
  NotAcceptable   the study does not take this answer: its question, choice or number of loops
  NotFound        what the address names does not exist
  TooLate         the assignment has expired, or was submitted before with other answers
  StudyClosed     the study takes no more answers
    StudyPaused   it assigns no new pairs for now; assigned ones can still be answered
  StudyNotReady   nobody may answer yet: votes could not be kept
  StudyInUse      another process excludes this one from the study while it runs
  StorageBusy     the database is locked or unreachable; nothing was stored, try again
  StorageFull     the disk is full; nothing was stored
  StorageDamaged  the database is damaged; restore a backup
"""

from collections.abc import Sequence

MAX_LISTED = 20  # names in a message


def list_names(names: Sequence[object], separator: str = ", ") -> str:
    """Join the first names of a list for a message, and add how many more there are."""
    listed = separator.join(map(str, names[:MAX_LISTED]))
    more = len(names) - MAX_LISTED
    return f"{listed} and {more:,} more" if more > 0 else listed


class StudyError(Exception):
    """Any error of a study.

    Args:
        message: one or two plain sentences. Where raters read them in the language of a study, its
            catalogue translates the message before the values are filled in.
        values: of the message's {placeholders}; without values, braces have no meaning.
    """

    def __init__(self, message: str = "", **values: object) -> None:
        super().__init__(message.format(**values) if values else message)
        self.message = message
        self.values = values


class NotYours(StudyError):
    """The caller may not do this."""


class NotAcceptable(StudyError):
    """The study does not take this answer."""


class NotFound(StudyError):
    """What the address names does not exist, or not yet."""


class TooLate(StudyError):
    """The time for this answer is over."""


class StudyClosed(StudyError):
    """The study takes no more answers."""


class StudyPaused(StudyClosed):
    """The study assigns no new pairs for now."""


class StudyNotReady(StudyError):
    """Nobody may answer yet; the message says why and may be shown to anyone."""


class StudyInUse(StudyError):
    """Another process holds the lock of the study."""


class StorageBusy(StudyError):
    """Nothing was stored; the same request may be sent again."""


class StorageFull(StudyError):
    """Nothing was stored, and nothing can be until there is disk space."""


class StorageDamaged(StudyError):
    """Nothing was stored, and nothing can be until a backup has been restored."""
