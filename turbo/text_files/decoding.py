"""The text of a file in any Unicode encoding that editors and spreadsheets write."""

import codecs
from pathlib import Path

MAX_BYTES = 64 * 2**20  # of a file
# A UTF-32 mark begins with the one of UTF-16, so it comes first.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class FileRefused(ValueError):
    """A file cannot be used; the message names it, says what is wrong and what to do."""


def read_text(path: Path, max_bytes: int = MAX_BYTES, remedy: str = "Split it.") -> str:
    """Return the text of a file, with its line ends as they are and without a byte order mark.

    Args:
        max_bytes: the largest size.
        remedy: what the message says to do about a larger file.

    Raises:
        FileRefused: it cannot be read, is too large, or is not Unicode text.
    """
    return decode(read_bytes(path, max_bytes, remedy), path)[0]


def read_bytes(path: Path, max_bytes: int = MAX_BYTES, remedy: str = "Split it.") -> bytes:
    """Return the content of a file; see `read_text`.

    Raises:
        FileRefused: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise FileRefused(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if len(content) > max_bytes:
        raise FileRefused(f"{path} has more than {max_bytes:,} bytes. {remedy}")
    return content


def decode(content: bytes, path: Path) -> tuple[str, str]:
    """Return the text and its encoding, without a byte order mark.

    Raises:
        FileRefused: it is not Unicode text.
    """
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    encoding = MARKS[mark] if mark else _unmarked(content)
    body = content[len(mark) :]
    try:
        return body.decode(encoding), encoding
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise FileRefused(
                f"{path} is damaged: it is not the {encoding.upper()} text that its first bytes "
                "announce. Save it as UTF-8."
            ) from error
        line = body.count(b"\n", 0, error.start) + 1
        raise FileRefused(
            f"{path} is not UTF-8: line {line} contains the byte {body[error.start]:#04x}. It may "
            "be in an older encoding, such as Windows-1252. Save it as UTF-8."
        ) from error


def _unmarked(content: bytes) -> str:
    """Recognise UTF-16 without a mark: every second byte of Latin text is zero."""
    start = content[:1000]
    for encoding, zeros in [("utf-16-le", start[1::2]), ("utf-16-be", start[0::2])]:
        others = start.count(0) - zeros.count(0)
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros) and not others:
            return encoding
    return "utf-8"
