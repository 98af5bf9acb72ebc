"""The clips of this visit as buttons; a click shows the clip and its settings again."""

from collections.abc import Sequence

import gradio as gr

from demo.session import GeneratedClip
from demo.widgets.html import escape, file_url

MAX_CLIPS = 12


def build_history() -> gr.HTML:
    """Lay out the history. Its `restore` event has the `index` of a clip; 0 is the newest."""
    return gr.HTML(
        show_history([]), js_on_load=_RESTORE_ON_CLICK, elem_id="history", elem_classes="history"
    )


def add_to_history(clips: Sequence[GeneratedClip], clip: GeneratedClip) -> list[GeneratedClip]:
    """Return the history with the new clip first."""
    return [clip, *clips][:MAX_CLIPS]


def show_history(clips: Sequence[GeneratedClip]) -> str:
    """Return the clips as buttons, newest first."""
    if not clips:
        return '<p class="quiet">Videos of this visit appear here until you close this page.</p>'
    return f'<div class="clips">{"".join(map(_button, range(len(clips)), clips))}</div>'


def _button(index: int, clip: GeneratedClip) -> str:
    recipe = clip.recipe
    prompt = escape(recipe["prompt"])
    settings = f"{recipe['steps']} steps · guidance {recipe['guidance']:g} · seed {recipe['seed']}"
    return (
        f'<button type="button" data-index="{index}" aria-label="Show again: {prompt}">'
        f'<video src="{file_url(clip.path)}" muted autoplay loop playsinline'
        ' aria-hidden="true"></video>'
        f"<span><b>{prompt}</b><em>{escape(recipe['model'])} · {settings}</em></span></button>"
    )


_RESTORE_ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-index]');
  if (button) trigger('restore', {index: Number(button.dataset.index)});
});
"""
