"""Text and file paths in HTML."""

import html
from pathlib import Path
from urllib.parse import quote


def escape(text: str) -> str:
    """Return the text for use in HTML, including attributes.

    Gradio evaluates two template languages in the values of `gr.HTML` in the browser, so their
    special characters are escaped as well.
    """
    escaped = html.escape(text)
    for sign in "{}$`\\":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return escaped


def file_url(path: Path) -> str:
    """Return the address of a served file, relative to the page."""
    return f"gradio_api/file={quote(str(path))}"
