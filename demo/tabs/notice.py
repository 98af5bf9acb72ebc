"""The notice beside a prompt that the model cannot know, with a way to one that it does."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from demo.context import QUIET
from demo.session import ModelInfo
from demo.widgets.html import escape


class Notice:
    """Says what a model knows when the prompt speaks of something else."""

    def __init__(self, models: Mapping[str, ModelInfo], prompt: gr.Textbox) -> None:
        self.models = models
        with gr.Group(visible=False, elem_classes="notice") as self.group:
            self.text = gr.HTML()
            self.suggestion = gr.Button("", size="sm", elem_classes="suggestion")
        self.prompt = prompt

    def updates(self, prompt: str, model: str) -> dict[Any, Any]:
        """Return what to change on the page for this prompt and model."""
        info = self.models.get(model)
        if info is None or not prompt.strip() or info.world.knows(prompt):
            return {self.group: gr.Group(visible=False)}
        return {
            self.group: gr.Group(visible=True),
            self.text: _explain(info),
            self.suggestion: gr.Button(f"Use “{info.world.nearest(prompt)}”"),
        }

    def connect(self, model: gr.Dropdown | gr.State) -> None:
        """Show the notice when the prompt is left, and let the button fill in the fitting one."""
        outputs = [self.group, self.text, self.suggestion]
        self.prompt.blur(self.updates, [self.prompt, model], outputs, **QUIET)

        def on_suggestion(prompt: str, model: str) -> dict[Any, Any]:
            fitting = self.models[model].world.nearest(prompt)
            return {self.prompt: fitting, self.group: gr.Group(visible=False)}

        self.suggestion.click(
            on_suggestion, [self.prompt, model], [self.prompt, self.group], **QUIET
        )


def _explain(info: ModelInfo) -> str:
    rows = "".join(
        f"<dt>{escape(slot)}</dt><dd>{escape(', '.join(phrases))}</dd>"
        for slot, phrases in info.world.slots.items()
    )
    return (
        f"<p><b>This prompt is outside the world of {escape(info.title)}.</b> It is a small model "
        "and knows only the words below. It will still draw something, but not what you asked "
        f"for.</p><dl>{rows}</dl>"
    )
