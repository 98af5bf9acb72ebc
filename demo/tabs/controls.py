"""The controls of the Generate tab: what a visitor sets, and the buttons."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.context import NO_QUEUE, PageContext
from demo.models import ModelInfo, Request, draw_seed
from demo.tabs.notice import Notice


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

    @property
    def settings(self) -> tuple[gr.Textbox, gr.Dropdown, gr.Slider, gr.Slider, gr.Number]:
        """What a recipe is made of."""
        return self.prompt, self.model, self.steps, self.guidance, self.seed

    @property
    def shown(self) -> list[gr.components.Component]:
        """What `show_settings` changes."""
        return [*self.settings, self.fitted, self.download, self.examples]


def lay_out_controls(context: PageContext) -> Controls:
    """Lay out the controls, set for the default model."""
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
    if context.download is None or not _is_listed(context, model):
        return False
    return context.availability(model).endswith("download")


def _is_listed(context: PageContext, model: object) -> bool:
    """Return whether a call names a model of the list; Gradio lets any list of names pass."""
    return isinstance(model, str) and model in context.models


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
        visible=card.min_guidance < card.max_guidance,
        elem_id="guidance",
    )
    return steps_slider, guidance_slider


def connect_controls(context: PageContext, controls: Controls) -> None:
    """Let the controls follow the chosen model, and fill in examples and new seeds."""

    def on_model(model: str, fitted: str) -> dict[Any, Any]:
        # Equal if the visit or a video was restored, with its own settings.
        if model == fitted or not _is_listed(context, model):
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
        lambda sample: sample[0] if sample else gr.skip(),
        controls.examples,
        controls.prompt,
        **NO_QUEUE,
    )
    # The free memory is known when the first model is loaded. Then update the list once.
    timer = gr.Timer(2.0)
    timer.tick(on_tick, None, [controls.model, timer], **NO_QUEUE)


def show_settings(
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


def show_request(
    context: PageContext, controls: Controls, model: str, request: Request
) -> dict[Any, Any]:
    """Return the controls with the settings of a request."""
    return show_settings(
        context,
        controls,
        model,
        request.prompt,
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
    )
