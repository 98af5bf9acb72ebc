"""The page: title, usage guidelines and the tabs."""

from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction

from demo.context import QUIET, Studio, toast
from demo.requests import RequestError
from demo.tabs.compare import build_compare_tab
from demo.tabs.generate import build_generate_tab
from demo.tabs.rate import build_rate_tab
from demo.tabs.results import build_results_tab
from demo.web.study_mount import Desk
from demo.widgets import theme

WAITING_LINE = 20  # computations; further visitors are told that the page is busy


def build_page(studio: Studio, desk: Desk) -> gr.Blocks:
    """Lay out the whole page; `demo.web.server` serves it."""
    # Clips copied by Gradio go after an hour; ours are kept by the shelf.
    with _DiscreetBlocks(
        title="T2V-Turbo", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.HTML(theme.HEADER, elem_id="masthead")
        _add_readiness(studio)
        _add_guidelines(page)
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                build_generate_tab(studio)
            with gr.Tab("Compare", id="compare"):
                build_compare_tab(studio)
            with gr.Tab("Rate", id="rate"):
                build_rate_tab()
            with gr.Tab("Results", id="results") as results:
                build_results_tab(desk, results, tabs)
        gr.HTML(theme.FOOTER, elem_id="colophon")
    # Closed to direct calls: whatever computes goes through the line.
    page.queue(max_size=WAITING_LINE, default_concurrency_limit=1, api_open=False)
    return page


class _DiscreetBlocks(gr.Blocks):
    """Blocks whose log holds no prompt: Gradio's own refusal of a short request repeats it."""

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        if (wanted := len(block_fn.inputs)) > len(inputs):
            problem = RequestError(f"Expected {wanted} fields, got {len(inputs)}. Send them all.")
            raise toast(problem, "Not started")


def _add_readiness(studio: Studio) -> None:
    """Show that the model is loading until it is there."""
    badge = gr.HTML(theme.show_readiness("loading"), elem_id="readiness")
    timer = gr.Timer(1.0)

    def on_tick() -> tuple[gr.HTML, gr.Timer]:
        state = studio.readiness(studio.default_model)
        text = gr.HTML(theme.show_readiness(state), visible=state != "ready")
        return text, gr.Timer(active=state == "loading")

    timer.tick(on_tick, None, [badge, timer], **QUIET)


def _add_guidelines(page: gr.Blocks) -> None:
    """Show the usage guidelines to a browser that has not accepted them yet."""
    # Not a secret: it keeps what the browser stores readable after a restart.
    accepted = gr.BrowserState(False, storage_key="t2v-turbo-guidelines", secret="t2v-turbo")
    with gr.Accordion("Usage guidelines", open=False, elem_id="guidelines") as guidelines:
        gr.HTML(theme.GUIDELINES)
        agree = gr.Button("I have read this", size="sm", min_width=160, elem_id="guidelines-accept")
    page.load(lambda seen: gr.Accordion(open=not seen), accepted, guidelines, **QUIET)
    agree.click(lambda: (True, gr.Accordion(open=False)), None, [accepted, guidelines], **QUIET)
