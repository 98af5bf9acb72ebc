"""The clock of a clip: its frame rate, and which frame is shown at each of its ticks."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, gcd, lcm

import av

from human_eval.errors import StudyError

MAX_FPS = 60  # of a clip whose frames last unequally; screens show no more
MAX_SECONDS = 600
NICE = {1, 2, 1001}  # denominators of the usual frame rates


@dataclass(frozen=True)
class Clock:
    """A constant rate, and the number of the frame that is shown at each tick."""

    fps: Fraction
    numbers: Sequence[int]


def find_clock(times: Sequence[Fraction | None], stream: av.VideoStream) -> Clock:
    """Return the rate of frames that follow each other evenly; else sample them evenly.

    A container rounds times to its unit (a GIF to 1/100 s), so an even rate is one that every time
    fits to within a unit.

    Args:
        times: when each frame is shown, in seconds, rising; None if the file does not say.
    """
    average = Fraction(stream.average_rate or 0)
    known = [time for time in times if time is not None]
    if len(known) < len(times) or any(b <= a for a, b in pairwise(known)):
        return Clock(average, range(len(times)))  # formats without times, such as raw AVI
    since = [time - known[0] for time in known]
    measured = Fraction(len(since) - 1) / since[-1]
    rates = [average, Fraction(stream.guessed_rate or 0), Fraction(round(measured))]
    rates = [rate for rate in rates if rate.denominator in NICE]
    rates += [average, measured.limit_denominator(1001)]
    unit, last = Fraction(stream.time_base or 0), _last_seconds(since, known[0], stream)
    for fps in rates:
        if (
            fps
            and last < 2 / fps
            and all(abs(time - number / fps) <= unit for number, time in enumerate(since))
        ):
            return Clock(fps, range(len(since)))
    return _sample(since, last)


def _last_seconds(since: Sequence[Fraction], start: Fraction, stream: av.VideoStream) -> Fraction:
    """Return how long the last frame is shown; as long as the one before if the file is silent."""
    before = since[-1] - since[-2]
    if not stream.duration or not stream.time_base:
        return before
    end = (stream.duration + (stream.start_time or 0)) * stream.time_base
    left = end - start - since[-1]
    return left if left > 0 else before


def _sample(since: Sequence[Fraction], last: Fraction) -> Clock:
    """Sample at the rate whose ticks meet every frame; at `MAX_FPS` if that is too fast."""
    seconds = since[-1] + last
    if seconds > MAX_SECONDS:
        raise StudyError(f"The video lasts {float(seconds):,.0f} seconds. Shorten it.")
    steps = [b - a for a, b in pairwise(since)]
    common = lcm(*(step.denominator for step in steps))
    divisor = gcd(*(int(step * common) for step in steps))
    fps = min(Fraction(common, divisor), Fraction(MAX_FPS))
    numbers, at = [], 0
    for tick in range(ceil(seconds * fps)):
        while at + 1 < len(since) and since[at + 1] <= tick / fps:
            at += 1
        numbers.append(at)
    return Clock(fps, numbers)
