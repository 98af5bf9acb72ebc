"""Take a video that is dropped on the page: fill in its recipe, and check it on request."""

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.context import NO_QUEUE, ONE_AT_A_TIME, PageContext
from demo.dropped_clips import DropError
from demo.models import RequestError
from demo.recipe_link import read_recipe
from demo.session import EngineError, GeneratedClip, Update
from demo.tabs.controls import Controls, show_request
from demo.tabs.outputs import Outputs
from demo.widgets.history import add_to_history, show_history
from demo.widgets.player import show_clip
from demo.widgets.status import StatusLine, busy_buttons, idle_buttons, show_idle, show_refusal


def connect_dropped(context: PageContext, controls: Controls, outputs: Outputs) -> Dependency:
    """Fill in the settings of a dropped video, and check it against a video made with them.

    Returns:
        The event of the check.
    """
    dropped = outputs.dropped

    def on_drop(event: gr.EventData) -> dict[Any, Any]:
        name = getattr(event, "clip", None)
        shown: dict[Any, Any] = {dropped.check: gr.Button(visible=False)}
        try:
            shown[outputs.recipe] = recipe = context.dropped.recipe(name)
            model, request = read_recipe(recipe, context.models)
        except (DropError, RequestError) as refusal:
            return {**shown, outputs.status: show_refusal(str(refusal))}
        return {
            **shown,
            **show_request(context, controls, model, request),
            outputs.status: show_idle("The settings of the video are filled in."),
            dropped.name: name,
            dropped.check: gr.Button(visible=True),
        }

    def on_check(name: str, clips: list[GeneratedClip]) -> Iterator[dict[Any, Any]]:
        line = StatusLine()
        idle = idle_buttons(controls.run, controls.stop)
        yield {
            outputs.status: line.show(Update(stage="queue")),
            **busy_buttons(controls.run, controls.stop),
        }
        try:
            recipe = context.dropped.recipe(name)
            model, request = read_recipe(recipe, context.models)
            clip = yield from context.engine.run(
                model, request, lambda update: {outputs.status: line.show(update)}
            )
            found = context.dropped.compare(name, clip.path)
        except (DropError, RequestError, EngineError) as error:
            yield {outputs.status: show_refusal(str(error)), **idle}
            return
        verdict = describe_comparison(found, recipe, clip.recipe)
        same = found["kind"] == "file"
        yield {
            outputs.status: show_idle(verdict) if same else show_refusal(verdict),
            outputs.player: show_clip(clip),
            outputs.recipe: clip.recipe,
            outputs.clips: (clips := add_to_history(clips, clip)),
            outputs.history: show_history(clips),
            **idle,
        }

    dropped.zone.upload(
        on_drop,
        None,
        [*controls.shown, outputs.recipe, outputs.status, dropped.name, dropped.check],
        **NO_QUEUE,
    )
    return dropped.check.click(
        on_check,
        [dropped.name, outputs.clips],
        [
            *(outputs.player, outputs.status, outputs.recipe, outputs.clips, outputs.history),
            *(controls.run, controls.stop),
        ],
        **ONE_AT_A_TIME,
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=outputs.status,
        api_visibility="private",
    )


def describe_comparison(
    found: Mapping[str, Any], dropped: Mapping[str, Any], made: Mapping[str, Any]
) -> str:
    """Return what the comparison of a dropped video with ours means, in words.

    Args:
        found: the fields of `turbo.provenance.Comparison`.
        dropped: the recipe that the dropped video carries.
        made: the recipe of our video.
    """
    if found["kind"] == "file":
        return "Made by this recipe, bit for bit."
    numbers = (
        f"{found['different']} of {found['frames']} frames differ; frame {found['worst']} differs "
        f"most, by {found['largest']} of 255 levels."
    )
    text = {
        "frames": "Its frames are made by this recipe, bit for bit. The rest of the file is not.",
        "encoded again": "This video was encoded again, by another program or with other settings.",
        "other frames": f"Not made by this recipe: {numbers}",
        "other size": "Not made by this recipe: the video has another size.",
    }[found["kind"]]
    if found["kind"] == "encoded again" and found["frames"]:
        text += f" {numbers}"
    fields = sorted(name for name in {*dropped, *made} if dropped.get(name) != made.get(name))
    if fields:
        text += " Its recipe differs from the one made here in: " + ", ".join(
            f"{name[:30]} ({_short(dropped.get(name))}; here {_short(made.get(name))})"
            for name in fields[:6]
        )
        text += "."
    return text


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
