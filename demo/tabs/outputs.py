"""The outputs of the Generate tab: the video, its recipe and the videos of the visit."""

from dataclasses import dataclass

import gradio as gr

from demo.widgets.dropped_video import DroppedVideo
from demo.widgets.history import build_history
from demo.widgets.player import show_no_clip
from demo.widgets.status import show_idle


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


def lay_out_outputs() -> Outputs:
    """Lay out the outputs, with no video yet."""
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
