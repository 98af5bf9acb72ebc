"""The status strip: which stage, which step of how many, how long it will still take.

Gradio hides its own progress bar once a generator has yielded, so this strip is an output of ours.
"""

from demo.session import Clip, Update
from demo.widgets.html import escape

_STAGES = {
    "load": "Loading the model",
    "text": "Reading the prompt",
    "denoise": "Denoising",
    "decode": "Decoding the frames",
    "encode": "Writing the video",
    "download": "Downloading",
    "check": "Checking what came",
    "convert": "Converting",
}
_BYTES = ("download", "check", "convert")  # stages that count bytes


class StepClock:
    """Foretells the end of one computation from the pace of its steps."""

    def __init__(self) -> None:
        self._first: Update | None = None

    def remaining(self, update: Update) -> float | None:
        """Return the seconds that the steps to come will take; None until two steps are known."""
        if update.stage != "denoise":
            return None
        if self._first is None:
            self._first = update
        done = update.step - self._first.step
        if done < 1:
            return None
        pace = (update.seconds - self._first.seconds) / done
        return pace * (update.steps - update.step)


def show_idle(text: str = "Ready when you are.") -> str:
    """Return the strip of a page that computes nothing."""
    return _strip(escape(text), kind="idle")


def show_refusal(message: str) -> str:
    """Return the strip of a request that was refused or failed."""
    return _strip(escape(message), kind="refused")


def show_update(update: Update, remaining: float | None, prefix: str = "") -> str:
    """Return the strip of a running computation."""
    label = prefix + _STAGES.get(update.stage, update.stage)
    if update.stage == "denoise":
        label += f": step {update.step} of {update.steps}"
    if update.stage in _BYTES:
        label += f": {update.step / 1e9:.2f} of {update.steps / 1e9:.2f} GB"
    clock = f"{update.seconds:.1f} s"
    if remaining is not None:
        clock += f" · about {remaining:.1f} s of steps left"
    share = update.step / update.steps if update.steps else 0.0
    return _strip(f"<b>{escape(label)}</b><span>{clock}</span>", kind="running", share=share)


def show_done(clip: Clip, prefix: str = "Done") -> str:
    """Return the strip of a finished computation: the timing line."""
    parts = " · ".join(
        f"{stage} {_duration(clip.seconds[stage])}"
        for stage in ("text", "steps", "decode", "encode")
        if stage in clip.seconds
    )
    calls = f"{clip.unet_calls} network call{'' if clip.unet_calls == 1 else 's'}"
    total = _duration(clip.seconds["total"])
    return _strip(
        f"<b>{escape(prefix)} in {total}</b><span>{parts} · total {total} · {calls}</span>",
        kind="done",
        share=1.0,
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _strip(content: str, *, kind: str, share: float = 0.0) -> str:
    return (
        f'<div class="strip {kind}" role="status" aria-live="polite">'
        f'<div class="strip-text">{content}</div>'
        f'<div class="strip-bar"><i style="width:{100 * share:.0f}%"></i></div></div>'
    )
