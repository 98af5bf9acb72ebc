"""Crowd platforms: the parameters they add to our address, and where raters return to.

A platform opens the Rate page with parameters that identify the rater, and expects the browser at
an address of its own when the rater has finished. Nothing else differs between platforms, so a
provider is data in the definition of a study:

[[providers]]
key = "prolific"                # known: its settings are in KNOWN; those given here replace them

[[providers]]
key = "panel"                   # any other platform: name its parameters
rater = "participant"
session = "visit"
keep = ["wave"]
finish = "https://panel.example/back?wave={wave}&person={participant}&code={code}"
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

from human_eval.errors import NotAcceptable, StudyError

MAX_VALUE = 200  # characters of a parameter that are read
RESERVED = ("anonymous", "link", "staff", "simulated", "mturk")  # providers without a platform
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A crowd platform, as its documentation describes it."""

    key: str
    rater: str = ""  # name of the parameter with the rater's identity; not empty
    # Name of the parameter with the session; its value is stored as a keyed hash. A rater who comes
    # in another session answers new pairs; without it, `keep` tells the sessions apart.
    session: str = ""
    keep: tuple[str, ...] = ()  # further parameters that `finish` needs
    pattern: str = ""  # regular expression of a rater's identity; empty accepts any
    placeholder: str = "NAME"  # what the platform replaces by the value of the parameter NAME
    bonus: str = "id,amount"  # first line of a file of bonuses; empty: none
    # https address to return to, with {code} and {parameters}; without {code} it is for raters who
    # are done; empty: raters copy the code.
    finish: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters, without repetition."""
        named = (self.rater, self.session, *self.keep)
        return tuple(dict.fromkeys(name for name in named if name))


KNOWN = {
    provider.key: provider
    for provider in (
        Provider(
            key="prolific",
            rater="PROLIFIC_PID",
            session="SESSION_ID",
            keep=("STUDY_ID",),
            pattern="[0-9a-fA-F]{24}",
            placeholder="{{%NAME%}}",
            bonus="",
            finish="https://app.prolific.com/submissions/complete?cc={code}",
        ),
        Provider(
            key="connect",
            rater="participantId",
            session="assignmentId",
            keep=("projectId",),
            finish="https://connect.cloudresearch.com/participant/project/{projectId}/complete",
        ),
    )
}


def build_provider(**settings: Any) -> Provider:
    """Return the provider with these settings; a known platform has its own where none is given."""
    known = KNOWN.get(settings.get("key", ""))
    return replace(known, **settings) if known else Provider(**settings)


def check_provider(provider: Provider) -> None:
    """Refuse a provider that is no way in or out.

    Raises:
        StudyError: its key, parameters or address of return cannot be used.
    """
    if provider.key in RESERVED:
        raise StudyError(
            f"{provider.key!r} cannot be the key of a provider: {', '.join(RESERVED)} are reserved."
        )
    for name in (provider.rater, *provider.parameters):
        if not NAME.fullmatch(name):
            raise StudyError(
                f"The provider {provider.key!r} has no valid name of a parameter in {name!r}. Set "
                f"rater = ..., or use a known platform: {', '.join(KNOWN)}."
            )
    try:
        re.compile(provider.pattern)
    except re.error as error:
        raise StudyError(
            f"The pattern of {provider.key}, {provider.pattern!r}, is not a regular expression: "
            f"{error}. Correct it."
        ) from error
    _check_finish(provider)


def _check_finish(provider: Provider) -> None:
    address = urlsplit(provider.finish)
    if provider.finish and (address.scheme != "https" or not address.hostname):
        raise StudyError(
            f"The finish of {provider.key}, {provider.finish!r}, is not an https address. Copy it "
            "from the platform."
        )
    unknown = set(re.findall(r"\{(.*?)\}", provider.finish)) - {"code", *provider.parameters}
    if unknown:
        raise StudyError(
            f"The finish of {provider.key} contains {{{sorted(unknown)[0]}}}, which is not one of "
            f"code, {', '.join(provider.parameters)}. Add it to keep = [...], or correct it."
        )


def read_parameters(provider: Provider, given: Mapping[str, str]) -> dict[str, str]:
    """Return the provider's parameters among those of the address that the browser opened.

    Raises:
        NotAcceptable: the rater's identity is missing or has the wrong form.
    """
    found = {name: given[name][:MAX_VALUE] for name in provider.parameters if name in given}
    rater = found.get(provider.rater, "").strip()
    if not rater or (provider.pattern and not re.fullmatch(provider.pattern, rater)):
        raise NotAcceptable(
            "The link has no valid {parameter} from {platform}. Open the study from the "
            "platform's page again.",
            parameter=provider.rater,
            platform=provider.key,
        )
    return {**found, provider.rater: rater}


def session_name(provider: Provider, kept: Mapping[str, str]) -> str:
    """Return what tells a rater's sessions apart: the session's parameter, else the others.

    Args:
        kept: the values of the provider's parameters, by name.
    """
    if kept.get(provider.session):
        return kept[provider.session]
    return "&".join(f"{name}={kept[name]}" for name in provider.keep if kept.get(name))


def finish_address(provider: Provider, kept: Mapping[str, str], code: str, outcome: str) -> str:
    """Return the address that the browser returns to; empty if the rater copies the code.

    An address without {code} tells the platform that the rater has completed the study, so it is
    for the outcome "done" alone. If a value is missing, there is no address.

    Args:
        kept: the values of the provider's parameters, by name.
        code: the completion code; empty if there is none.
        outcome: how the rater's part ends, see `collection.progress.Outcome`.
    """
    values = {**kept, "code": code}
    needed = re.findall(r"\{(\w+)\}", provider.finish)
    if not all(values.get(name) for name in needed):
        return ""
    if "code" not in needed and outcome != "done":
        return ""
    return re.sub(r"\{(\w+)\}", lambda match: quote(values[match[1]], safe=""), provider.finish)


def study_address(provider: Provider, page: str, link: str) -> str:
    """Return the address to enter on the platform, with its own placeholders.

    Args:
        page: address of the Rate page.
        link: signed token that admits this platform's raters.
    """
    blanks = [
        f"{name}={provider.placeholder.replace('NAME', name)}" for name in provider.parameters
    ]
    return "&".join([f"{page}?link={link}", *blanks])
