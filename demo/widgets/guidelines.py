"""The usage guidelines: a dialog over the page, opened by a link in the header.

A browser that has not seen them shows them once. Closing the dialog in any way counts as seen. A
second link reports a video to the operator, if there is an address for reports.
"""

import gradio as gr

from demo.widgets.html import escape

_BUTTON = '<button type="button" class="link" aria-haspopup="dialog">usage guidelines</button>'

_DIALOG = """
<dialog aria-labelledby="guidelines-title">
  <h2 id="guidelines-title" tabindex="-1" autofocus>Usage guidelines</h2>
  <p>This is a research demonstration. By using it, you agree to these rules:</p>
  <ul>
    <li>Do not create videos that sexualise, harass, demean or threaten people, that show violence
    against real people, or that endanger minors.</li>
    <li>Do not depict real people without their consent, and do not present a generated video as a
    record of real events. When you share a video, state that a model generated it.</li>
    <li>Do not use the videos to break the law or to violate the rights of others.</li>
  </ul>
  <p>Every video contains in its metadata its recipe (model, prompt, seed, settings) and the mark
  that a model generated it. Your prompts are not logged and stay on the machine that runs this
  page.</p>
  <form method="dialog"><button id="guidelines-accept">I have read the guidelines</button></form>
</dialog>
"""

# A browser that blocks storage throws, and shows the guidelines at every visit.
_OPEN_ONCE = """
const KEY = 't2v-turbo-guidelines-seen';
const dialog = element.querySelector('dialog');
const isSeen = () => { try { return localStorage.getItem(KEY) === 'yes'; } catch {} };
element.querySelector('.link').addEventListener('click', () => dialog.showModal());
dialog.addEventListener('close', () => { try { localStorage.setItem(KEY, 'yes'); } catch {} });
if (!isSeen()) dialog.showModal();
const report = element.querySelector('a.report');
const mailbox = report?.getAttribute('href');
if (mailbox?.startsWith('mailto:')) report.addEventListener('click', () => {
  const links = [...document.querySelectorAll('a[href^="?recipe="]')];
  const made = links.find((link) => link.offsetParent);
  report.href = mailbox + '&body=' + encodeURIComponent(`${made?.href || location.href}\n\n`);
});
"""


def build_guidelines(contact: str | None) -> gr.HTML:
    """Lay out the line with the links, and the closed dialog."""
    return gr.HTML(
        show_guidelines(contact),
        js_on_load=_OPEN_ONCE,
        apply_default_css=False,
        elem_id="guidelines",
    )


def show_guidelines(contact: str | None) -> str:
    """Return the line with the links, and the closed dialog.

    Args:
        contact: mailbox or address for reports. A mail starts with the link to the recipe of the
            video on the page.
    """
    report = ""
    if contact:
        address = contact if contact.startswith("https://") else f"mailto:{contact}?subject=Report"
        report = f' <a class="report" href="{escape(address)}" target="_blank">Report a video</a>'
    return f"<p>By using this page, you agree to the {_BUTTON}.{report}</p>{_DIALOG}"
