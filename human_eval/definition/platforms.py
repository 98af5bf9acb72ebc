"""Where raters come from: what a platform calls its people, and where it wants them back.

A platform opens our page with parameters that say who comes, and expects the browser at an address
of its own in the end. Everything else about platforms is alike, so a provider is data:

[[providers]]
key = "prolific"                # known: its settings are below

[[providers]]
key = "panel"                   # any other one says what its parameters are called
rater = "participant"
session = "visit"
keep = ["wave"]
finish = "https://panel.example/back?wave={wave}&person={participant}&code={code}"
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

from human_eval.errors import NotAcceptable, StudyError

MAX_VALUE = 200  # characters of a parameter
RESERVED = ("anonymous", "link", "staff", "simulated", "mturk")  # providers that are no platform
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A crowd platform, as its documentation describes it."""

    key: str
    rater: str = ""  # the parameter that says who comes; empty for a known platform
    session: str = ""  # the one that tells visits apart; stored as a keyed hash
    keep: tuple[str, ...] = ()  # further ones that `finish` needs
    pattern: str = ""  # regular expression of a rater's name; empty takes any
    placeholder: str = "NAME"  # how the platform is asked to fill in the parameter NAME
    finish: str = ""  # https address for the end, with {code} and {parameters}; or the code alone

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters, each once."""
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
            finish="https://app.prolific.com/submissions/complete?cc={code}",
        ),
        Provider(
            key="connect",
            rater="participantId",
            session="assignmentId",
            keep=("projectId",),
        ),
    )
}


def settle(provider: Provider) -> Provider:
    """Return the provider with what is known of its platform where it says nothing itself.

    Raises:
        StudyError: its settings are no way in, or no way out.
    """
    if not provider.rater and provider.key in KNOWN:
        known = KNOWN[provider.key]
        provider = replace(known, finish=provider.finish or known.finish)
    if provider.key in RESERVED:
        raise StudyError(
            f"Expected a provider other than {', '.join(RESERVED)}, got {provider.key!r}. "
            "Choose another key."
        )
    for name in (provider.rater, *provider.parameters):
        if not NAME.fullmatch(name):
            raise StudyError(
                f"Expected the name of a parameter for the provider {provider.key!r}, got "
                f"{name!r}. Set rater = ..., or take one of {', '.join(KNOWN)}."
            )
    try:
        re.compile(provider.pattern)
    except re.error as error:
        raise StudyError(
            f"Expected a regular expression as the pattern of {provider.key}, got "
            f"{provider.pattern!r}: {error}. Correct it."
        ) from error
    _check_finish(provider)
    return provider


def _check_finish(provider: Provider) -> None:
    address = urlsplit(provider.finish)
    if provider.finish and (address.scheme != "https" or not address.hostname):
        raise StudyError(
            f"Expected an https address for the finish of {provider.key}, got "
            f"{provider.finish!r}. Copy it from the platform."
        )
    unknown = set(re.findall(r"\{(.*?)\}", provider.finish)) - {"code", *provider.parameters}
    if unknown:
        raise StudyError(
            f"Expected {{code}} and {list(provider.parameters)} in the finish of {provider.key}, "
            f"got {sorted(unknown)[0]!r}. Add it to keep = [...], or correct it."
        )


def read_parameters(provider: Provider, given: Mapping[str, str]) -> dict[str, str]:
    """Return the provider's parameters out of those that the browser brought.

    Raises:
        NotAcceptable: the one that says who comes is missing or looks wrong.
    """
    found = {name: given[name][:MAX_VALUE] for name in provider.parameters if name in given}
    rater = found.get(provider.rater, "").strip()
    if not rater or (provider.pattern and not re.fullmatch(provider.pattern, rater)):
        raise NotAcceptable(
            f"Expected {provider.rater} in the link, as {provider.key} writes it, got "
            f"{rater[:40]!r}. Open the study from the platform's page again."
        )
    return {**found, provider.rater: rater}


def finish_address(provider: Provider, kept: Mapping[str, str], code: str) -> str:
    """Return where the browser goes in the end; empty where the rater copies the code."""
    if not code:
        return ""
    values = {**kept, "code": code}
    return re.sub(
        r"\{(\w+)\}", lambda match: quote(values.get(match[1], ""), safe=""), provider.finish
    )


def study_address(provider: Provider, page: str, link: str) -> str:
    """Return the address to give to the platform, in its own notation.

    Args:
        page: address of the Rate page.
        link: signed token that lets this platform's raters in.
    """
    blanks = [
        f"{name}={provider.placeholder.replace('NAME', name)}" for name in provider.parameters
    ]
    return "&".join([f"{page}?link={link}", *blanks])
