"""The page: title, usage guidelines and the tabs; and how it is served."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction

from demo import look
from demo.compare_tab import build_compare_tab
from demo.generate_tab import build_generate_tab
from demo.requests import RequestError
from demo.studio import QUIET, Studio, toast

WAITING_LINE = 20  # computations; further visitors are told that the page is busy


def build_page(studio: Studio) -> gr.Blocks:
    """Lay out the whole page; `serve_page` serves it."""
    # Clips copied by Gradio go after an hour; ours are kept by the shelf.
    with _DiscreetBlocks(
        title="T2V-Turbo", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.HTML(look.HEADER, elem_id="masthead")
        _add_readiness(studio)
        _add_guidelines(page)
        with gr.Tabs():
            with gr.Tab("Generate", id="generate"):
                build_generate_tab(studio)
            with gr.Tab("Compare", id="compare"):
                build_compare_tab(studio)
        gr.HTML(look.FOOTER, elem_id="colophon")
    page.queue(max_size=WAITING_LINE, default_concurrency_limit=1)
    return page


class _DiscreetBlocks(gr.Blocks):
    """Blocks whose log holds no prompt: Gradio's own refusal of a short request repeats it."""

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        if (wanted := len(block_fn.inputs)) > len(inputs):
            problem = RequestError(f"Expected {wanted} fields, got {len(inputs)}. Send them all.")
            raise toast(problem, "Not started")


def serve_page(
    page: gr.Blocks,
    studio: Studio,
    when_open: Callable[[], None],
    *,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        when_open: called once, as soon as the page can be reached.
        host, port: None leaves them to Gradio: this machine only, the first free port from 7860.
    """
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, **launch_options(studio)
    )
    when_open()
    page.block_thread()


def launch_options(studio: Studio) -> dict[str, Any]:
    """Return the keyword arguments of `launch` that keep this page looking well and closed."""
    return {
        "theme": look.build_theme(),
        "css": look.CSS,
        "allowed_paths": [str(studio.shelf.folder)],
        "show_error": False,  # unexpected messages hold paths; ours are `gr.Error`
        "footer_links": ["api"],
        "run_history": False,
        "max_file_size": "1kb",  # nothing here takes a file
        "enable_monitoring": False,
        "ssr_mode": False,
    }


def _add_readiness(studio: Studio) -> None:
    """Show that the model is loading until it is there."""
    badge = gr.HTML(look.show_readiness("loading"), elem_id="readiness")
    timer = gr.Timer(1.0)

    def on_tick() -> tuple[gr.HTML, gr.Timer]:
        state = studio.readiness(studio.default_model)
        text = gr.HTML(look.show_readiness(state), visible=state != "ready")
        return text, gr.Timer(active=state == "loading")

    timer.tick(on_tick, None, [badge, timer], **QUIET)


def _add_guidelines(page: gr.Blocks) -> None:
    """Show the usage guidelines to a browser that has not accepted them yet."""
    # Not a secret: it keeps what the browser stores readable after a restart.
    accepted = gr.BrowserState(False, storage_key="t2v-turbo-guidelines", secret="t2v-turbo")
    with gr.Accordion("Usage guidelines", open=False, elem_id="guidelines") as guidelines:
        gr.HTML(look.GUIDELINES)
        agree = gr.Button("I have read this", size="sm", min_width=160, elem_id="guidelines-accept")
    page.load(lambda seen: gr.Accordion(open=not seen), accepted, guidelines, **QUIET)
    agree.click(lambda: (True, gr.Accordion(open=False)), None, [accepted, guidelines], **QUIET)
