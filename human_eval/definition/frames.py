"""The sites that may show a page in a frame (CSP frame-ancestors)."""

import re
from collections.abc import Iterable

from human_eval.errors import StudyError

_SITE = re.compile(
    r"https?://(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:(\d{1,5}|\*))?", re.ASCII | re.IGNORECASE
)


def check_frames(sites: Iterable[str]) -> tuple[str, ...]:
    """Return the sites, without a slash at their ends.

    Raises:
        StudyError: one of them is not a site. A single page of a site cannot be named.
    """
    found = tuple(site.removesuffix("/") for site in sites)
    for site in found:
        if site != "*" and not _SITE.fullmatch(site):
            raise StudyError(
                f"{site!r} is not a site that can show a page in a frame. Write it as "
                "https://lab.example, https://*.qualtrics.com or * (any site), without a path."
            )
    return found


def parse_frames(text: str) -> tuple[str, ...]:
    """Return the sites of a list that is separated by blanks or commas; see `check_frames`."""
    return check_frames(text.replace(",", " ").split())
