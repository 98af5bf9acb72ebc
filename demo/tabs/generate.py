"""The Generate tab: a prompt and a few dials become one looping video."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.api import describe_clip, describe_update
from demo.context import ONE_AT_A_TIME, QUIET, Studio, at_rest, connect_stop, toast
from demo.engine import EngineError
from demo.requests import RequestError, read_request, read_seed
from demo.session import Clip, ModelInfo
from demo.tabs.notice import Notice
from demo.widgets.history import build_history, remember, show_history
from demo.widgets.player import show_empty_screen, show_screen
from demo.widgets.status import StepClock, show_done, show_idle, show_refusal, show_update

# On a small screen the results lie below the dials.
_SHOW_STATUS = "() => document.querySelector('#status').scrollIntoView({block: 'nearest'})"


@dataclass(frozen=True)
class Dials:
    """What a visitor sets, and the two buttons."""

    prompt: gr.Textbox
    notice: Notice
    model: gr.Dropdown
    fetch: gr.Button  # hidden unless the model can be downloaded
    examples: gr.Dataset
    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Number
    dice: gr.Button
    run: gr.Button
    stop: gr.Button


@dataclass(frozen=True)
class Results:
    """What a visitor gets."""

    screen: gr.HTML
    status: gr.HTML
    recipe: gr.JSON
    clips: gr.State  # the history, newest first
    history: gr.HTML


def build_generate_tab(studio: Studio) -> None:
    """Lay out the text-to-video tab inside the `gr.Blocks` that is open."""
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320):
            dials = _lay_out_dials(studio)
        with gr.Column(scale=6, min_width=320):
            results = _lay_out_results()
    _connect_dials(studio, dials)
    _connect_generation(studio, dials, results)
    _connect_history(studio, dials, results)
    _open_api(studio)


def _lay_out_dials(studio: Studio) -> Dials:
    info = studio.models[studio.default_model]
    prompt = gr.Textbox(
        info.world.examples[0],
        label="Prompt",
        placeholder="Describe the video in a few words",
        lines=2,
        max_lines=4,
        elem_id="prompt",
    )
    notice = Notice(studio.models, prompt)
    with gr.Row(elem_classes="actions"):
        run = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=120)
        stop = gr.Button(
            "Stop", variant="stop", elem_id="stop", scale=1, min_width=80, interactive=False
        )
    model = gr.Dropdown(
        model_choices(studio),
        value=studio.default_model,
        label="Model",
        filterable=False,
        elem_id="model",
    )
    fetch = gr.Button("Download this model", size="sm", visible=False, elem_id="fetch")
    steps, guidance = dial_sliders(info)
    with gr.Row(elem_classes="seed-row"):
        seed = gr.Number(
            0, label="Seed", info="The same seed gives the same video", precision=0, elem_id="seed"
        )
        dice = gr.Button("⚄ New seed", elem_id="dice", size="sm", scale=0, min_width=120)
    examples = gr.Dataset(
        components=[prompt],
        samples=[[example] for example in info.world.examples],
        label="Examples",
        samples_per_page=12,
        elem_id="examples",
    )
    examples.click(lambda sample: sample[0], examples, prompt, **QUIET)
    return Dials(prompt, notice, model, fetch, examples, steps, guidance, seed, dice, run, stop)


def model_choices(studio: Studio) -> list[tuple[str, str]]:
    """Return what the picker shows of every model, with what it needs, and its name."""
    return [(f"{model.title} · {studio.need(name)}", name) for name, model in studio.models.items()]


def may_fetch(studio: Studio, model: str) -> bool:
    """Tell whether the page may bring the weights of a model, and there are any to bring."""
    return studio.fetch is not None and studio.need(model).endswith("download")


def dial_sliders(
    info: ModelInfo, steps: int | None = None, guidance: float | None = None
) -> tuple[gr.Slider, gr.Slider]:
    """Return the two sliders with the ranges of the model, at its defaults for None."""
    steps_slider = gr.Slider(
        info.min_steps,
        info.max_steps,
        value=info.default_steps if steps is None else steps,
        step=1,
        precision=0,
        label="Steps",
        info=f"{info.default_steps} is this model's usual number",
        elem_id="steps",
    )
    guidance_slider = gr.Slider(
        info.min_guidance,
        info.max_guidance,
        value=info.default_guidance if guidance is None else guidance,
        step=0.1,
        label="Guidance",
        info=info.guidance_note,
        elem_id="guidance",
    )
    return steps_slider, guidance_slider


def _lay_out_results() -> Results:
    screen = gr.HTML(show_empty_screen(), elem_id="screen")
    status = gr.HTML(show_idle(), elem_id="status")
    with gr.Accordion("Recipe", open=False):
        recipe = gr.JSON(value={}, show_label=False, elem_id="recipe")
    gr.HTML("<h2>This visit</h2>", elem_classes="heading")
    clips = gr.State([], time_to_live=24 * 3600)
    return Results(screen, status, recipe, clips, build_history())


def _connect_dials(studio: Studio, dials: Dials) -> None:
    def on_model(model: str, prompt: str) -> dict[Any, Any]:
        info = studio.models[model]
        steps, guidance = dial_sliders(info)
        return {
            dials.model: gr.Dropdown(model_choices(studio)),
            dials.fetch: gr.Button(visible=may_fetch(studio, model)),
            dials.examples: gr.Dataset(samples=[[example] for example in info.world.examples]),
            dials.steps: steps,
            dials.guidance: guidance,
            **dials.notice.updates(prompt, model),
        }

    notice = [dials.notice.group, dials.notice.text, dials.notice.suggestion]
    changed = [dials.model, dials.fetch, dials.examples, dials.steps, dials.guidance, *notice]
    dials.model.input(on_model, [dials.model, dials.prompt], changed, **QUIET)
    _connect_needs(studio, dials)
    dials.dice.click(lambda: read_seed(None), None, dials.seed, **QUIET)
    dials.notice.connect(dials.model)


def _connect_needs(studio: Studio, dials: Dials) -> None:
    """Say once more what every model needs when the first is there: then the memory is known."""
    timer = gr.Timer(2.0)

    def on_tick() -> tuple[Any, gr.Timer]:
        if studio.readiness(studio.default_model) == "loading":
            return gr.skip(), gr.Timer()
        return gr.Dropdown(model_choices(studio)), gr.Timer(active=False)

    timer.tick(on_tick, None, [dials.model, timer], **QUIET)


def _connect_generation(studio: Studio, dials: Dials, results: Results) -> None:
    notice = dials.notice

    def on_generate(
        prompt: str, model: str, steps: int, guidance: float, seed: int, clips: list[Clip]
    ) -> Iterator[dict[Any, Any]]:
        try:
            request = read_request(studio.models, prompt, model, steps, guidance, seed)
            yield {
                results.status: show_idle("Waiting for the engine"),
                dials.run: gr.Button(interactive=False),
                dials.stop: gr.Button(interactive=True),
                dials.seed: request.seed,
                **notice.updates(request.prompt, request.model),
            }
            clock = StepClock()
            clip = yield from studio.run(
                request,
                lambda update: {results.status: show_update(update, clock.remaining(update))},
            )
        except (RequestError, EngineError) as error:
            yield {results.status: show_refusal(str(error)), **at_rest(dials.run, dials.stop)}
            title = "Not started" if isinstance(error, RequestError) else "Not finished"
            raise toast(error, title) from None
        yield {
            results.screen: show_screen(clip),
            results.status: show_done(clip),
            results.recipe: clip.recipe,
            results.clips: (clips := remember(clips, clip)),
            results.history: show_history(clips),
            **at_rest(dials.run, dials.stop),
        }

    inputs = [dials.prompt, dials.model, dials.steps, dials.guidance, dials.seed, results.clips]
    outputs = [
        *(results.screen, results.status, results.recipe, results.clips, results.history),
        *(dials.run, dials.stop, dials.seed, notice.group, notice.text, notice.suggestion),
    ]
    generating = gr.on(
        [dials.run.click, dials.prompt.submit],
        on_generate,
        inputs,
        outputs,
        concurrency_id=ONE_AT_A_TIME,
        concurrency_limit=1,
        trigger_mode="once",
        show_progress="minimal",  # the place in the queue, until the first update
        show_progress_on=results.status,
        api_visibility="private",
    )
    gr.on([dials.run.click, dials.prompt.submit], None, js=_SHOW_STATUS, **QUIET)
    fetching = _connect_fetch(studio, dials, results)
    connect_stop([generating, fetching], dials.run, dials.stop, results.status)


def _connect_fetch(studio: Studio, dials: Dials, results: Results) -> Dependency:
    def on_fetch(model: str) -> Iterator[dict[Any, Any]]:
        if studio.fetch is None or not may_fetch(studio, model):
            yield {results.status: show_refusal("This model cannot be downloaded from here.")}
            return
        yield {dials.run: gr.Button(interactive=False), dials.stop: gr.Button(interactive=True)}
        try:
            with closing(studio.fetch(model)) as updates:
                for update in updates:
                    yield {results.status: show_update(update, None)}
        except EngineError as error:
            yield {results.status: show_refusal(str(error)), **at_rest(dials.run, dials.stop)}
            raise toast(error, "Not downloaded") from None
        yield {
            results.status: show_idle(f"{studio.models[model].title} is here."),
            dials.model: gr.Dropdown(model_choices(studio)),
            dials.fetch: gr.Button(visible=False),
            **at_rest(dials.run, dials.stop),
        }

    return dials.fetch.click(
        on_fetch,
        dials.model,
        [results.status, dials.model, dials.fetch, dials.run, dials.stop],
        concurrency_id="fetch",
        concurrency_limit=1,
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
    )


def _connect_history(studio: Studio, dials: Dials, results: Results) -> None:
    def on_restore(clips: list[Clip], event: gr.EventData) -> dict[Any, Any]:
        index = getattr(event, "index", None)
        if not isinstance(index, int) or not 0 <= index < len(clips):
            return {results.status: show_idle("That video is no longer here.")}
        clip = clips[index]
        recipe = clip.recipe
        steps, guidance = dial_sliders(
            studio.models[recipe["model"]], recipe["steps"], recipe["guidance"]
        )
        return {
            dials.prompt: recipe["prompt"],
            dials.model: recipe["model"],
            dials.steps: steps,
            dials.guidance: guidance,
            dials.seed: recipe["seed"],
            results.screen: show_screen(clip),
            results.status: show_done(clip, "Made"),
            results.recipe: recipe,
        }

    outputs = [dials.prompt, dials.model, dials.steps, dials.guidance, dials.seed]
    results.history.restore(
        on_restore,
        results.clips,
        [*outputs, results.screen, results.status, results.recipe],
        **QUIET,
    )


def _open_api(studio: Studio) -> None:
    def generate(
        prompt: str,
        model: str = studio.default_model,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Make a video from a prompt.

        Parameters:
            prompt: what the video shows, at most 1000 characters.
            model: name of a model.
            steps: network steps; none takes the model's default.
            guidance: how strictly to follow the prompt; none takes the model's default.
            seed: 0 to 4294967295; none draws one and reports it in the recipe.

        Returns:
            Progress while it runs (stage, step, steps, seconds); at last the video, its recipe,
            seconds by stage, and network calls.
        """
        try:
            request = read_request(studio.models, prompt, model, steps, guidance, seed)
            clip = yield from studio.run(request, describe_update)
        except (RequestError, EngineError) as error:
            raise toast(error, type(error).__name__) from None
        yield describe_clip(clip)

    gr.api(generate, api_name="generate", concurrency_id=ONE_AT_A_TIME, concurrency_limit=1)
