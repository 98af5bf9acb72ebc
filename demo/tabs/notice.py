"""The notice below a prompt with words that the model does not know."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from demo.context import NO_QUEUE
from demo.models import ModelInfo, RequestError, read_request
from demo.widgets.html import escape


class Notice:
    """Explains which words a model knows, and suggests a prompt made of them.

    Lay it out below the buttons: it appears when a visitor presses one, since the prompt then loses
    the focus, and a button that moves away under the pointer is not clicked.
    """

    def __init__(self, models: Mapping[str, ModelInfo], prompt: gr.Textbox) -> None:
        self._models = models
        self._prompt = prompt
        with gr.Group(visible=False, elem_classes="notice") as self._group:
            self._text = gr.HTML()
            self._suggestion = gr.Button("", size="sm", elem_classes="suggestion")

    def connect(self, model: gr.Dropdown | gr.State, run: gr.Button) -> None:
        """Update the notice when the visitor leaves the prompt, starts, or changes the model."""
        triggers = [self._prompt.blur, self._prompt.submit, run.click]
        if isinstance(model, gr.Dropdown):
            triggers.append(model.input)
        shown = [self._group, self._text, self._suggestion]
        gr.on(triggers, self._on_change, [self._prompt, model], shown, **NO_QUEUE)
        self._suggestion.click(
            self._on_suggestion, [self._prompt, model], [self._prompt, self._group], **NO_QUEUE
        )

    def _on_change(self, prompt: str, model: str) -> dict[Any, Any]:
        suggestion = self._suggest(prompt, model)
        if suggestion is None:
            return {self._group: gr.Group(visible=False)}
        return {
            self._group: gr.Group(visible=True),
            self._text: _explain(self._models[model]),
            self._suggestion: gr.Button(f"Use “{suggestion}”"),
        }

    def _on_suggestion(self, prompt: str, model: str) -> dict[Any, Any]:
        suggestion = self._suggest(prompt, model)
        taken = {} if suggestion is None else {self._prompt: suggestion}
        return {**taken, self._group: gr.Group(visible=False)}

    def _suggest(self, prompt: object, model: str) -> str | None:
        """Return the nearest prompt; None if the prompt is known, or no request may have it.

        The check comes first: comparing the words of a prompt of any length could take seconds.
        """
        try:
            request = read_request(self._models, model, prompt)
        except RequestError:
            return None
        world = self._models[model].world
        return None if world.knows(request.prompt) else world.nearest(request.prompt)


def _explain(info: ModelInfo) -> str:
    rows = "".join(
        f"<dt>{escape(slot)}</dt><dd>{escape(', '.join(phrases))}</dd>"
        for slot, phrases in info.world.slots.items()
    )
    return (
        f"<p><b>{escape(info.card.title)} does not know this prompt.</b> It is a small model and "
        "knows only the words below. It will generate a video, but not the one you asked for.</p>"
        f"<dl>{rows}</dl>"
    )
