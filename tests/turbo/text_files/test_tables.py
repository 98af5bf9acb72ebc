"""Tables in the encodings and dialects that editors and spreadsheets write."""

import pytest

from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import PATH_NAMES, PROMPT_NAMES, read_table, require_columns

COLUMNS = {"path": PATH_NAMES, "prompt": PROMPT_NAMES}
WANTED = [{"path": "a.mp4", "prompt": "a café, at night"}]


def _table(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(path, COLUMNS)
    require_columns(table, path, COLUMNS)
    return table


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"],
)
def test_every_unicode_encoding_is_read(tmp_path, encoding):
    content = 'path,prompt\na.mp4,"a café, at night"\n'.encode(encoding)

    assert list(_table(tmp_path, content).rows.values()) == WANTED


@pytest.mark.parametrize(
    "text",
    [
        'path;prompt\na.mp4;"a café, at night"\n',
        "path\tprompt\na.mp4\ta café, at night\n",
        "path|prompt\na.mp4|a café, at night",
        'sep=;\r\npath;prompt\r\na.mp4;"a café, at night"\r\n',
        'path,prompt\ra.mp4,"a café, at night"\r',
        '"path","prompt"\n"a.mp4","a café, at night"\n',
        'filename,caption\na.mp4,"a café, at night"\n',
        'Path,Prompt\na.mp4,"a café, at night"\n,\n,\n',
        'path , prompt\na.mp4,"a café, at night"\n\n',
        'File Name,Text\na.mp4,"a café, at night"\n',
        'path,prompt\npath,prompt\na.mp4,"a café, at night"\n',
    ],
)
def test_every_usual_dialect_is_read(tmp_path, text):
    assert list(_table(tmp_path, text).rows.values()) == WANTED


def test_a_cell_may_be_longer_than_the_limit_of_python(tmp_path):
    long = "x" * 200_000

    [row] = _table(tmp_path, f"path,prompt\na.mp4,{long}\n").rows.values()

    assert row["prompt"] == long


def test_the_preferred_name_wins_and_the_other_column_stays(tmp_path):
    [row] = _table(tmp_path, "file,text,prompt\na.mp4,note,a cat\n").rows.values()

    assert row == {"path": "a.mp4", "text": "note", "prompt": "a cat"}


def test_a_row_is_known_by_the_line_where_it_begins(tmp_path):
    table = _table(tmp_path, 'path,prompt\n\na.mp4,"two\nlines"\nb.mp4,one\n')

    assert list(table.rows) == [3, 5]


@pytest.mark.parametrize(
    "content, message",
    [
        ("path,prompt\na,a café\n".encode("cp1252"), "line 2 contains the byte 0xe9.*Windows-1252"),
        (b"\xff\xfep\x00a", "damaged"),
        (b"path,prompt\na\x00,b\n", "NUL"),
        (b"", "needs a column named 'path'"),
        (b"path,label\na,b\n", "named 'prompt' or 'text'.*its columns are 'path', 'label'"),
        (b"path,prompt,prompt\na,b,c\n", "several columns named 'prompt'"),
        (b"path,Prompt,prompt\na,b,c\n", "several columns named 'prompt'"),
        (b"path,prompt\na,b,c\n", "Line 2 .* 3 cells instead of 2.*contains commas"),
        (b'path,prompt\na,"b"c\n', "begins in line 2"),
        (b'path,prompt\na,"b\n', "not a valid CSV"),
    ],
)
def test_what_is_no_complete_table_is_refused(tmp_path, content, message):
    with pytest.raises(FileRefused, match=message):
        _table(tmp_path, content)
