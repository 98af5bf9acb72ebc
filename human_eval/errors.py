"""Errors of a study. Each message says what was expected, what came, and what to do.

StudyError
  NotYours        the token is forged, or belongs to another rater or another turn
  NotAcceptable   an answer that the study does not take: a question, choice or loop count
  TooLate         the lease has ended, or the answer was already given and differs
  StudyClosed     the study takes no more answers
    StudyPaused   it hands out no pairs for a while; those handed out can still be answered
  StorageBusy     the database is locked or away; nothing was stored, try again
  StorageFull     the disk is full; nothing was stored
  StorageDamaged  the database is no sound one; a backup must take its place
"""


class StudyError(Exception):
    """Something was not as expected; the message says what, what came, and what to do."""


class NotYours(StudyError):
    """The caller has no right to do this."""


class NotAcceptable(StudyError):
    """The answer is not one that the study takes."""


class TooLate(StudyError):
    """The time for this answer has passed."""


class StudyClosed(StudyError):
    """The study takes no more answers."""


class StudyPaused(StudyClosed):
    """The study hands out no pairs for now."""


class StorageBusy(StudyError):
    """Nothing was stored; the same request may be sent again."""


class StorageFull(StudyError):
    """Nothing was stored, and nothing can be until there is space."""


class StorageDamaged(StudyError):
    """Nothing was stored, and nothing can be until a backup has been restored."""
