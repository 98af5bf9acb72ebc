"""Text as HTML that shows it literally."""

import html
from pathlib import Path
from urllib.parse import quote


def escape(text: str) -> str:
    """Return the text for use in HTML, in attributes too.

    Gradio runs the values of `gr.HTML` through two template languages in the browser, so their
    brackets are escaped as well.
    """
    escaped = html.escape(text)
    for sign in "{}$`\\":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return escaped


def file_url(path: Path) -> str:
    """Return the address of a served file, relative to the page, wherever that is mounted."""
    return f"gradio_api/file={quote(str(path))}"
