"""The page: header, usage guidelines, tabs and API."""

import gradio as gr

from demo.api import add_api
from demo.context import NO_QUEUE, PageContext
from demo.tabs.compare import build_compare_tab
from demo.tabs.generate import build_generate_tab
from demo.tabs.rate import build_rate_tab
from demo.tabs.results import build_results_tab
from demo.web.gradio_internals import Page
from demo.widgets import theme
from demo.widgets.guidelines import build_guidelines

# A tab is a function that lays it out inside the open `gr.Tab`.
TABS = {
    "Generate": build_generate_tab,
    "Compare": build_compare_tab,
    "Rate": build_rate_tab,
    "Results": build_results_tab,
}
MAX_QUEUE = 20  # waiting computations; further visitors get the message that the page is busy


def build_page(context: PageContext) -> Page:
    """Lay out the whole page. `demo.web.server` serves it."""
    # Gradio deletes its own copies of clips after an hour; `ClipStore` keeps the clips.
    with Page(title="T2V-Turbo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(theme.HEADER, elem_id="page-header")
        with gr.Row(elem_id="page-top"):
            build_guidelines(context.contact)
            _add_readiness(context)
        with gr.Tabs():
            for title, build_tab in TABS.items():
                with gr.Tab(title, id=title.lower()) as tab:
                    build_tab(context, tab)
        add_api(context)
        gr.HTML(theme.FOOTER, elem_id="page-footer")
    # Computations are possible through the queue only, not by direct calls.
    page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1, api_open=False)
    return page


def _add_readiness(context: PageContext) -> None:
    """Show whether the model is loaded. The line is always there, so that nothing moves."""
    badge = gr.HTML(theme.show_readiness("loading"), elem_id="readiness")
    timer = gr.Timer(1.0)

    def on_tick() -> tuple[str, gr.Timer]:
        if context.process is not None:
            context.process.wake(context.default_model)
        state = context.engine.readiness(context.default_model)
        return theme.show_readiness(state), gr.Timer(active=state == "loading")

    timer.tick(on_tick, None, [badge, timer], **NO_QUEUE)
