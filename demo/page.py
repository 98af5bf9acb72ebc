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
        _add_readiness(context)
        _add_guidelines(page)
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
    """Show a message while the model loads."""
    badge = gr.HTML(theme.show_readiness("loading"), elem_id="readiness")
    timer = gr.Timer(1.0)

    def on_tick() -> tuple[gr.HTML, gr.Timer]:
        state = context.engine.readiness(context.default_model)
        text = gr.HTML(theme.show_readiness(state), visible=state != "ready")
        return text, gr.Timer(active=state == "loading")

    timer.tick(on_tick, None, [badge, timer], **NO_QUEUE)


def _add_guidelines(page: gr.Blocks) -> None:
    """Open the usage guidelines in a browser that has not accepted them yet."""
    # The secret is not secret: a fixed one keeps the browser's state readable after a restart.
    accepted = gr.BrowserState(False, storage_key="t2v-turbo-guidelines", secret="t2v-turbo")
    with gr.Accordion("Usage guidelines", open=False, elem_id="guidelines") as guidelines:
        gr.HTML(theme.GUIDELINES)
        accept = gr.Button(
            "I have read the guidelines", size="sm", min_width=160, elem_id="guidelines-accept"
        )
    page.load(lambda seen: gr.Accordion(open=not seen), accepted, guidelines, **NO_QUEUE)
    accept.click(lambda: (True, gr.Accordion(open=False)), None, [accepted, guidelines], **NO_QUEUE)
