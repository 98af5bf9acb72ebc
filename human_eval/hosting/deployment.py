"""How the public reaches a server: below which path, through which proxies, in whose frames."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from human_eval.definition.frames import parse_frames
from human_eval.errors import StudyError
from human_eval.hosting.environment import read_setting, read_variable

SPACE_FRAMES = ("https://huggingface.co", "https://*.hf.space")
# Visitors reach a Space only through proxies with addresses that are not public.
PRIVATE = (
    "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,100.64.0.0/10,"
    "::1,fc00::/7,fe80::/10"
)
_ROOT_PATH = re.compile(r"(/(?!\.+(/|$))[\w.~-]+)+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How the public reaches a server."""

    root_path: str = ""  # of the public address, such as "/t2v"; empty: as a trusted proxy says
    proxies: str = ""  # addresses and networks, separated by commas, whose headers are trusted
    frames: tuple[str, ...] = ()  # other sites that may show the pages in a frame


def on_a_space() -> bool:
    """Return whether this is a Hugging Face Space."""
    return read_variable("SPACE_ID") is not None


def read_deployment(
    root_path: str | None,
    frame_ancestors: str | None,
    *,
    frames: Iterable[str] = (),
    proxies: str = "",
) -> Deployment:
    """Return the deployment of the flags and, where one is not given, of the environment.

    Args:
        frames: further sites that may show the pages in a frame.
        proxies: those that are trusted if FORWARDED_ALLOW_IPS is not set.

    Raises:
        StudyError: a flag or a variable cannot be used.
    """
    none: tuple[str, ...] = ()
    named = read_setting(
        "--frame-ancestors", frame_ancestors, "T2V_FRAME_ANCESTORS", parse_frames, none
    )
    return Deployment(
        root_path=read_setting("--root-path", root_path, "T2V_ROOT_PATH", parse_root_path, ""),
        proxies=read_variable("FORWARDED_ALLOW_IPS") or (PRIVATE if on_a_space() else proxies),
        frames=(*frames, *named),
    )


def parse_root_path(text: str) -> str:
    """Return the path that precedes every address, without a slash at its end.

    Raises:
        StudyError: it is not a path.
    """
    path = text.strip().removesuffix("/")
    path = path if path.startswith("/") or not path else f"/{path}"
    if path and not _ROOT_PATH.fullmatch(path):
        raise StudyError(f"{text!r} is not a path such as /t2v. Leave out the scheme and the host.")
    return path
