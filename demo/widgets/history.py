"""The session's history: every clip of this visit as a button that brings it back."""

from collections.abc import Sequence

import gradio as gr

from demo.session import Clip
from demo.widgets.html import escape, file_url

KEPT = 12  # clips


def build_history() -> gr.HTML:
    """Lay out the history; its `restore` event carries `index`, counted from the newest."""
    return gr.HTML(
        show_history([]), js_on_load=_RESTORE_ON_CLICK, elem_id="history", elem_classes="history"
    )


def remember(clips: Sequence[Clip], clip: Clip) -> list[Clip]:
    """Return the history with the clip put first."""
    return [clip, *clips][:KEPT]


def show_history(clips: Sequence[Clip]) -> str:
    """Return the clips as buttons, newest first."""
    if not clips:
        return '<p class="quiet">Videos of this visit are kept here until you close the page.</p>'
    return f'<div class="shelf">{"".join(map(_button, range(len(clips)), clips))}</div>'


def _button(index: int, clip: Clip) -> str:
    recipe = clip.recipe
    prompt = escape(recipe["prompt"])
    dials = f"{recipe['steps']} steps · guidance {recipe['guidance']:g} · seed {recipe['seed']}"
    return (
        f'<button type="button" data-index="{index}" aria-label="Bring back: {prompt}">'
        f'<video src="{file_url(clip.path)}" muted autoplay loop playsinline'
        ' aria-hidden="true"></video>'
        f"<span><b>{prompt}</b><em>{escape(recipe['model'])} · {dials}</em></span></button>"
    )


_RESTORE_ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-index]');
  if (button) trigger('restore', {index: Number(button.dataset.index)});
});
"""
