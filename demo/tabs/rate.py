"""The Rate tab: the raters' page of the study in a frame.

Paid raters open that page directly. It loads in one round trip, and Gradio is not involved.
"""

import gradio as gr

from demo.context import PageContext

ADDRESS = "study/rate"  # relative to the page


def build_rate_tab(context: PageContext, tab: gr.Tab) -> None:
    """Lay out the tab inside the open `gr.Blocks`."""
    gr.HTML(_FRAME, js_on_load=_LOAD_WHEN_VISIBLE, elem_id="rate", padding=False)


_FRAME = f"""
<div class="rate">
<p class="quiet">Watch pairs of videos and choose the one you prefer. Your answers are stored.
<a class="rate-alone" href="{ADDRESS}" target="_blank" rel="noopener">Open in a new window</a></p>
<iframe class="rate-frame" title="Rate videos" data-address="{ADDRESS}"
allow="fullscreen; autoplay"></iframe>
</div>
"""

_LOAD_WHEN_VISIBLE = """
const frame = element.querySelector('iframe');
const theme = document.body.classList.contains('dark') ? 'dark' : 'light';
new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  frame.src = `${frame.dataset.address}?__theme=${theme}`;
}).observe(frame);
"""
