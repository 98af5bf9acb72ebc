"""The Generate tab: a prompt and a few settings become one looping video."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.context import NO_QUEUE, ONE_AT_A_TIME, PageContext, warn
from demo.models import RequestError, read_request
from demo.session import EngineError, GeneratedClip, Update
from demo.tabs import visit
from demo.tabs.controls import (
    Controls,
    can_download,
    connect_controls,
    lay_out_controls,
    model_choices,
    show_settings,
)
from demo.tabs.dropped import connect_dropped
from demo.tabs.outputs import Outputs, lay_out_outputs
from demo.widgets.history import add_to_history, show_history
from demo.widgets.player import show_clip, show_no_clip
from demo.widgets.status import (
    StatusLine,
    busy_buttons,
    connect_refusal,
    connect_stop,
    idle_buttons,
    show_done,
    show_idle,
    show_refusal,
)

# On a small screen the results are below the controls.
_SCROLL_TO_STATUS = "() => document.querySelector('#status').scrollIntoView({block: 'nearest'})"


def build_generate_tab(context: PageContext, tab: gr.Tab) -> None:
    """Lay out the tab inside the open `gr.Blocks`."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            controls = lay_out_controls(context)
        with gr.Column(scale=6, min_width=320):
            outputs = lay_out_outputs()
    connect_controls(context, controls)
    generating = _connect_generation(context, controls, outputs)
    downloading = _connect_download(context, controls, outputs)
    checking = connect_dropped(context, controls, outputs)
    computing = [generating, downloading, checking]
    for each in computing:
        connect_refusal(each, outputs.status)
    connect_stop(computing, controls.run, controls.stop, outputs.status)
    _connect_history(context, controls, outputs)
    visit.connect_visit(context, controls, outputs, generating, computing, tab)


def _connect_generation(context: PageContext, controls: Controls, outputs: Outputs) -> Dependency:
    def on_generate(
        prompt: str, model: str, steps: int, guidance: float, seed: int, clips: list[GeneratedClip]
    ) -> Iterator[dict[Any, Any]]:
        line = StatusLine()
        try:
            request = read_request(
                context.models, model, prompt, steps=steps, guidance=guidance, seed=seed
            )
            yield {
                outputs.status: line.show(Update(stage="queue")),
                controls.seed: request.seed,
                **busy_buttons(controls.run, controls.stop),
            }
            clip = yield from context.engine.run(
                model, request, lambda update: {outputs.status: line.show(update)}
            )
        except (RequestError, EngineError) as error:
            idle = idle_buttons(controls.run, controls.stop)
            yield {outputs.status: show_refusal(str(error)), **idle}
            title = "Not started" if isinstance(error, RequestError) else "Not finished"
            warn(error, title)
            return
        yield {
            outputs.player: show_clip(clip),
            outputs.status: show_done(clip),
            outputs.recipe: clip.recipe,
            outputs.clips: (clips := add_to_history(clips, clip)),
            outputs.history: show_history(clips),
            **idle_buttons(controls.run, controls.stop),
        }

    triggers = [controls.run.click, controls.prompt.submit]
    # Gradio runs the events of one click in turn, so these must come before the computation.
    gr.on(triggers, None, js=_SCROLL_TO_STATUS, **NO_QUEUE)
    gr.on(triggers, None, js=visit.BEGIN, **NO_QUEUE)
    return gr.on(
        triggers,
        on_generate,
        [*controls.settings, outputs.clips],
        [
            *(outputs.player, outputs.status, outputs.recipe, outputs.clips, outputs.history),
            *(controls.run, controls.stop, controls.seed),
        ],
        **ONE_AT_A_TIME,
        trigger_mode="once",
        show_progress="minimal",  # shows the place in the queue until the first update
        show_progress_on=outputs.status,
        api_visibility="private",
    )


def _connect_download(context: PageContext, controls: Controls, outputs: Outputs) -> Dependency:
    def on_download(model: str) -> Iterator[dict[Any, Any]]:
        if context.download is None or not can_download(context, model):
            yield {outputs.status: show_refusal("This model cannot be downloaded from this page.")}
            return
        yield busy_buttons(controls.run, controls.stop)
        line = StatusLine()
        try:
            with closing(context.download(model)) as updates:
                for update in updates:
                    yield {outputs.status: line.show(update)}
        except EngineError as error:
            idle = idle_buttons(controls.run, controls.stop)
            yield {outputs.status: show_refusal(str(error)), **idle}
            warn(error, "Not downloaded")
            return
        yield {
            outputs.status: show_idle(f"{context.models[model].card.title} is downloaded."),
            controls.model: gr.Dropdown(model_choices(context)),
            controls.download: gr.Button(visible=False),
            **idle_buttons(controls.run, controls.stop),
        }

    return controls.download.click(
        on_download,
        controls.model,
        [outputs.status, controls.model, controls.download, controls.run, controls.stop],
        concurrency_id="download",
        concurrency_limit=1,
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
    )


def _connect_history(context: PageContext, controls: Controls, outputs: Outputs) -> None:
    def on_restore(clips: list[GeneratedClip], event: gr.EventData) -> dict[Any, Any]:
        index = getattr(event, "index", None)
        if not isinstance(index, int) or not 0 <= index < len(clips):
            return {outputs.status: show_idle("This video no longer exists.")}
        clip = clips[index]
        recipe = clip.recipe
        settings = {name: recipe[name] for name in ("steps", "guidance", "seed")}
        shown = {
            **show_settings(context, controls, recipe["model"], recipe["prompt"], **settings),
            outputs.recipe: recipe,
        }
        if context.engine.clips.path_of(clip.path.stem) is None:
            gone = "This video no longer exists. Press Generate to make it again."
            return {**shown, outputs.player: show_no_clip(), outputs.status: show_idle(gone)}
        return {
            **shown,
            outputs.player: show_clip(clip),
            outputs.status: show_done(clip, "Finished"),
        }

    outputs.history.restore(
        on_restore,
        outputs.clips,
        [*controls.shown, outputs.player, outputs.status, outputs.recipe],
        **NO_QUEUE,
    )
