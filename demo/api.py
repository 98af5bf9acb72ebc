"""What API clients receive: plain JSON, with finished videos as files they can download."""

from typing import Any

from gradio import FileData

from demo.session import Clip, Update


def describe_update(update: Update) -> dict[str, Any]:
    """Return the progress of a computation as JSON."""
    return {
        "stage": update.stage,
        "step": update.step,
        "steps": update.steps,
        "seconds": round(update.seconds, 3),
    }


def describe_clip(clip: Clip) -> dict[str, Any]:
    """Return a finished clip as JSON."""
    return {
        "stage": "done",
        "video": FileData(path=str(clip.path), mime_type="video/mp4").model_dump(),
        "recipe": clip.recipe,
        "seconds": clip.seconds,
        "unet_calls": clip.unet_calls,
    }
