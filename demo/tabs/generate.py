"""The Generate tab: a prompt and a few settings become one looping video."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.context import NO_QUEUE, ONE_AT_A_TIME, PageContext, warn
from demo.dropped_clips import DropError
from demo.models import ModelInfo, Request, RequestError, draw_seed, read_request
from demo.recipe_link import read_link, read_recipe
from demo.session import EngineError, GeneratedClip, Update
from demo.tabs import visit
from demo.tabs.dropped import DroppedVideo, describe_comparison
from demo.tabs.notice import Notice
from demo.widgets.history import add_to_history, build_history, show_history
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


@dataclass(frozen=True)
class Controls:
    """What a visitor sets, and the buttons."""

    prompt: gr.Textbox
    notice: Notice
    model: gr.Dropdown
    fitted: gr.State  # the model that the sliders belong to
    download: gr.Button  # hidden unless the model can be downloaded
    examples: gr.Dataset
    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Number
    new_seed: gr.Button
    run: gr.Button
    stop: gr.Button


@dataclass(frozen=True)
class Outputs:
    """What a visitor gets."""

    player: gr.HTML
    status: gr.HTML
    recipe: gr.JSON
    clips: gr.State  # the history, newest first
    dropped: DroppedVideo
    history: gr.HTML
    clear: gr.Button


def build_generate_tab(context: PageContext, tab: gr.Tab) -> None:
    """Lay out the tab inside the open `gr.Blocks`."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            controls = _lay_out_controls(context)
        with gr.Column(scale=6, min_width=320):
            outputs = _lay_out_outputs()
    _connect_controls(context, controls)
    generating = _connect_generation(context, controls, outputs)
    downloading = _connect_download(context, controls, outputs)
    checking = _connect_dropped(context, controls, outputs)
    for computing in (generating, downloading, checking):
        connect_refusal(computing, outputs.status)
    connect_stop([generating, downloading, checking], controls.run, controls.stop, outputs.status)
    _connect_history(context, controls, outputs)
    _connect_visit(context, controls, outputs, generating, tab)


def _lay_out_controls(context: PageContext) -> Controls:
    info = context.models[context.default_model]
    prompt = gr.Textbox(
        info.world.examples[0],
        label="Prompt",
        placeholder="Describe the video in a few words",
        lines=2,
        max_lines=4,
        elem_id="prompt",
    )
    with gr.Row(elem_classes="actions"):
        run = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=120)
        stop = gr.Button(
            "Stop", variant="stop", elem_id="stop", scale=1, min_width=80, interactive=False
        )
    notice = Notice(context.models, prompt)
    model = gr.Dropdown(
        model_choices(context),
        value=context.default_model,
        label="Model",
        filterable=False,
        elem_id="model",
    )
    fitted = gr.State(context.default_model)
    download = gr.Button("Download this model", size="sm", visible=False, elem_id="download")
    steps, guidance = build_sliders(info)
    with gr.Row(elem_classes="seed-row"):
        seed = gr.Number(
            0, label="Seed", info="The same seed gives the same video", precision=0, elem_id="seed"
        )
        new_seed = gr.Button("⚄ New seed", elem_id="new-seed", size="sm", scale=0, min_width=120)
    examples = gr.Dataset(
        components=[prompt],
        samples=[[example] for example in info.world.examples],
        label="Examples",
        samples_per_page=12,
        elem_id="examples",
    )
    return Controls(
        *(prompt, notice, model, fitted, download, examples),
        *(steps, guidance, seed, new_seed, run, stop),
    )


def model_choices(context: PageContext) -> list[tuple[str, str]]:
    """Return the label of every model, with its availability, and its name."""
    return [
        (f"{info.card.title} · {context.availability(name)}", name)
        for name, info in context.models.items()
    ]


def can_download(context: PageContext, model: str) -> bool:
    """Return whether visitors may download the model, and it has files to download."""
    return context.download is not None and context.availability(model).endswith("download")


def build_sliders(
    info: ModelInfo, steps: int | None = None, guidance: float | None = None
) -> tuple[gr.Slider, gr.Slider]:
    """Return the sliders of steps and guidance in the model's range. None is its default."""
    card = info.card
    steps_slider = gr.Slider(
        card.min_steps,
        card.max_steps,
        value=card.default_steps if steps is None else steps,
        step=1,
        precision=0,
        label="Steps",
        info=f"The default of this model is {card.default_steps}",
        elem_id="steps",
    )
    guidance_slider = gr.Slider(
        card.min_guidance,
        card.max_guidance,
        value=card.default_guidance if guidance is None else guidance,
        step=0.1,
        label="Guidance",
        info=card.guidance_kind,
        elem_id="guidance",
    )
    return steps_slider, guidance_slider


def _lay_out_outputs() -> Outputs:
    player = gr.HTML(show_no_clip(), elem_id="screen")
    status = gr.HTML(show_idle(), elem_id="status")
    with gr.Accordion("Recipe", open=False):
        recipe = gr.JSON(value={}, show_label=False, elem_id="recipe")
    dropped = DroppedVideo()
    with gr.Row(elem_classes="visit-row"):
        gr.HTML("<h2>This visit</h2>", elem_classes="heading")
        clear = gr.Button("Clear", size="sm", scale=0, min_width=80, elem_id="clear-visit")
    clips = gr.State([], time_to_live=24 * 3600)
    return Outputs(player, status, recipe, clips, dropped, build_history(), clear)


def _connect_controls(context: PageContext, controls: Controls) -> None:
    def on_model(model: str, fitted: str) -> dict[Any, Any]:
        if model == fitted:  # the visit or a video was restored, with its own settings
            return {controls.fitted: gr.skip()}
        info = context.models[model]
        steps, guidance = build_sliders(info)
        return {
            controls.model: gr.Dropdown(model_choices(context)),
            controls.fitted: model,
            controls.download: gr.Button(visible=can_download(context, model)),
            controls.examples: gr.Dataset(samples=[[example] for example in info.world.examples]),
            controls.steps: steps,
            controls.guidance: guidance,
        }

    def on_tick() -> tuple[Any, gr.Timer]:
        if context.engine.readiness(context.default_model) == "loading":
            return gr.skip(), gr.Timer()
        return gr.Dropdown(model_choices(context)), gr.Timer(active=False)

    changed = [controls.download, controls.examples, controls.steps, controls.guidance]
    # Not `input`: Gradio also sends it when the dropdown loses the focus.
    controls.model.change(
        on_model,
        [controls.model, controls.fitted],
        [controls.model, controls.fitted, *changed],
        **NO_QUEUE,
    )
    controls.notice.connect(controls.model, controls.run)
    controls.new_seed.click(draw_seed, None, controls.seed, **NO_QUEUE)
    controls.examples.click(
        lambda sample: sample[0], controls.examples, controls.prompt, **NO_QUEUE
    )
    # The free memory is known when the first model is loaded. Then update the list once.
    timer = gr.Timer(2.0)
    timer.tick(on_tick, None, [controls.model, timer], **NO_QUEUE)


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
        [
            *(controls.prompt, controls.model, controls.steps, controls.guidance, controls.seed),
            outputs.clips,
        ],
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


def _connect_dropped(context: PageContext, controls: Controls, outputs: Outputs) -> Dependency:
    dropped = outputs.dropped
    settings = [controls.prompt, controls.model, controls.steps, controls.guidance, controls.seed]

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
            **_show_request(context, controls, model, request),
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
        [
            *(*settings, controls.fitted, controls.download, controls.examples),
            *(outputs.recipe, outputs.status, dropped.name, dropped.check),
        ],
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


def _connect_history(context: PageContext, controls: Controls, outputs: Outputs) -> None:
    def on_restore(clips: list[GeneratedClip], event: gr.EventData) -> dict[Any, Any]:
        index = getattr(event, "index", None)
        if not isinstance(index, int) or not 0 <= index < len(clips):
            return {outputs.status: show_idle("This video no longer exists.")}
        clip = clips[index]
        recipe = clip.recipe
        steps, guidance = build_sliders(
            context.models[recipe["model"]], recipe["steps"], recipe["guidance"]
        )
        return {
            controls.prompt: recipe["prompt"],
            controls.model: recipe["model"],
            controls.fitted: recipe["model"],
            controls.steps: steps,
            controls.guidance: guidance,
            controls.seed: recipe["seed"],
            outputs.player: show_clip(clip),
            outputs.status: show_done(clip, "Finished"),
            outputs.recipe: recipe,
        }

    settings = [controls.prompt, controls.model, controls.steps, controls.guidance, controls.seed]
    outputs.history.restore(
        on_restore,
        outputs.clips,
        [*settings, controls.fitted, outputs.player, outputs.status, outputs.recipe],
        **NO_QUEUE,
    )


def _show_settings(
    context: PageContext,
    controls: Controls,
    model: str,
    prompt: str,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> dict[Any, Any]:
    """Return the controls with these settings. None is the model's default."""
    info = context.models[model]
    steps_slider, guidance_slider = build_sliders(info, steps, guidance)
    return {
        controls.prompt: prompt,
        controls.model: gr.Dropdown(model_choices(context), value=model),
        controls.fitted: model,
        controls.download: gr.Button(visible=can_download(context, model)),
        controls.examples: gr.Dataset(samples=[[example] for example in info.world.examples]),
        controls.steps: steps_slider,
        controls.guidance: guidance_slider,
        controls.seed: seed,
    }


def _show_request(
    context: PageContext, controls: Controls, model: str, request: Request
) -> dict[Any, Any]:
    return _show_settings(
        context,
        controls,
        model,
        request.prompt,
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
    )


def _connect_visit(
    context: PageContext, controls: Controls, outputs: Outputs, generating: Dependency, tab: gr.Tab
) -> None:
    """Keep the visit in the browser, and bring it back when the page is loaded again."""
    settings = [controls.prompt, controls.model, controls.steps, controls.guidance, controls.seed]

    def on_load(saved: str, link: str) -> dict[Any, Any]:
        kept = visit.read_visit(saved, context.models, context.engine.clips)
        shown: dict[Any, Any] = {outputs.clips: gr.skip()}
        if kept and kept.model and kept.seed is not None:
            shown |= _show_settings(
                context,
                controls,
                kept.model,
                kept.prompt or "",
                steps=kept.steps,
                guidance=kept.guidance,
                seed=kept.seed,
            )
        if kept and kept.clips:
            shown |= {outputs.clips: [*kept.clips], outputs.history: show_history(kept.clips)}
        if kept and kept.unfinished:
            shown[outputs.status] = show_refusal(
                "The page was loaded again before the video was finished. Press Generate to start "
                "again."
            )
        if link:
            try:
                model, request = read_link(link, context.models)
            except RequestError as refusal:
                return {**shown, outputs.status: show_refusal(str(refusal))}
            shown |= _show_request(context, controls, model, request)
            shown[outputs.status] = show_idle("The settings of the link are filled in.")
        return shown

    def on_clear() -> dict[Any, Any]:
        first = context.models[context.default_model].world.examples[0]
        return {
            **_show_settings(context, controls, context.default_model, first),
            outputs.clips: [],
            outputs.history: show_history([]),
            outputs.player: show_no_clip(),
            outputs.recipe: {},
            outputs.status: show_idle(),
            outputs.dropped.check: gr.Button(visible=False),
        }

    page = tab.parent and tab.parent.parent
    assert isinstance(page, gr.Blocks)
    restored = [
        *(*settings, controls.fitted, controls.download, controls.examples),
        *(outputs.clips, outputs.history, outputs.status),
    ]
    saved, link = gr.Textbox(visible=False), gr.Textbox(visible=False)  # arguments of `on_load`
    page.load(on_load, [saved, link], restored, js=visit.READ, **NO_QUEUE)
    changes = [
        *(controls.prompt.change, controls.model.change, controls.steps.change),
        *(controls.guidance.change, controls.seed.change),
    ]
    gr.on(changes, None, settings, js=visit.KEEP_SETTINGS, **NO_QUEUE)
    outputs.history.change(None, outputs.history, js=visit.KEEP_CLIPS, **NO_QUEUE)
    for ended in (generating.success, generating.failure, controls.stop.click):
        ended(None, js=visit.END, **NO_QUEUE)
    cleared = [*restored, outputs.player, outputs.recipe, outputs.dropped.check]
    outputs.clear.click(on_clear, None, cleared, **NO_QUEUE)
