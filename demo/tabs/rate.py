"""The Rate tab: the raters' own page in a frame, so that nothing of it passes through Gradio.

Paid raters open that page by itself: it loads in one round trip, and no other tab is near.
"""

import gradio as gr

ADDRESS = "study/rate"  # relative to the page


def build_rate_tab() -> None:
    """Lay out the tab inside the `gr.Blocks` that is open."""
    gr.HTML(_FRAME, js_on_load=_LOAD_WHEN_SEEN, elem_id="rate", padding=False)


_FRAME = f"""
<div class="rate">
<p class="quiet">Watch pairs of videos and say which you prefer. Your answers are stored.
<a class="rate-alone" href="{ADDRESS}" target="_blank" rel="noopener">Open in its own window</a></p>
<iframe class="rate-frame" title="Rate videos" data-address="{ADDRESS}"
allow="fullscreen; autoplay"></iframe>
</div>
"""

# The frame loads when the tab is first seen.
_LOAD_WHEN_SEEN = """
const frame = element.querySelector('iframe');
const theme = document.body.classList.contains('dark') ? 'dark' : 'light';
new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  frame.src = `${frame.dataset.address}?__theme=${theme}`;
}).observe(frame);
"""
