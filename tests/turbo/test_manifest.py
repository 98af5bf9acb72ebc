"""The manifest of a folder of clips: what it keeps, repairs and refuses."""

import csv
from multiprocessing import get_context

import pytest

from turbo.manifest import COLUMNS, Manifest, ManifestRow

HEADER = ",".join(COLUMNS)
ROW = "a.mp4,m,a cat,1,4,1.5,8,{sha},0123456789abcdef".format(sha="a" * 64)


def _row(path):
    return ManifestRow(
        path=path,
        model="m",
        prompt="a café; two, three",
        seed=1,
        num_steps=4,
        guidance=1.5,
        fps=8,
        sha256="a" * 64,
        weights_sha256="0123456789abcdef",
    )


def _folder(tmp_path, content):
    (tmp_path / "manifest.csv").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        "file,label\na.mp4,1\nb.mp4,2",
        "file,label\ra.mp4,1\rb.mp4,2",
        "my notes",
        f"{HEADER}\n{ROW}\nmy notes",
        f"{HEADER}\n{ROW}\nTODO",
        f"{HEADER}\n{ROW}\nsee the clips in a/b",
        f'{HEADER}\n{ROW}\n"checked, by Ada',
        f"{HEADER}\n{ROW}\nnote.mp4,checked by Ada",
        f"{HEADER}\n{ROW}\na.mp4,m\n{ROW}\n",
        f"{HEADER},rating\n{ROW},5",
        f"{HEADER}\n{ROW.replace('cat', 'café')}\n".encode("cp1252"),
        f"{HEADER}\n{ROW}".encode("utf-16")[:-1],
        f"{HEADER}\n{ROW}\n\0\0\0",
        "path,model\n",
        b"\x89PNG\r\n",
    ],
)
def test_a_manifest_that_is_refused_keeps_every_byte(tmp_path, content):
    path = _folder(tmp_path, content) / "manifest.csv"
    before = path.read_bytes()

    with pytest.raises(ValueError):
        Manifest(tmp_path)

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.csv"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_rows_are_added_in_the_dialect_of_the_file(tmp_path, encoding, delimiter, end):
    text = f"{HEADER}\n{ROW}".replace(",", delimiter).replace("\n", end or "\n") + end
    folder = _folder(tmp_path, text.encode(encoding))

    Manifest(folder).add(_row("b.mp4"))

    rows = Manifest(folder).rows()
    assert list(rows) == ["a.mp4", "b.mp4"]
    assert rows["a.mp4"]["weights_sha256"] == "0123456789abcdef"
    assert rows["b.mp4"]["prompt"] == "a café; two, three"


@pytest.mark.parametrize(
    "torn",
    [ROW[:-1], ROW[:40], 'a.mp4,m,"a b, c', "a.mp4,m,caf\xc3", "a.mp4,", "a.mp", "a-long-na"],
)
def test_a_row_torn_by_a_kill_is_replaced(tmp_path, torn):
    content = f"{HEADER}\n{ROW.replace('a.mp4', 'z.mp4')}\n{torn}"
    folder = _folder(tmp_path, content.encode("latin-1"))

    assert list(Manifest(folder).rows()) == ["z.mp4"]
    Manifest(folder).add(_row("a.mp4"))

    assert list(Manifest(folder).rows()) == ["z.mp4", "a.mp4"]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize(
    "path", ["shapes-turbo-4-1.5/a.mp4", "My.Model/a.mp4", 'clips/A "big" person, is - no; yes.mp4']
)
def test_a_row_of_a_clip_in_a_folder_is_mended_wherever_it_is_torn(tmp_path, path, delimiter):
    folder = _folder(tmp_path, HEADER.replace(",", delimiter) + "\n")
    Manifest(folder).add(_row("z.mp4"))
    size = (folder / "manifest.csv").stat().st_size
    Manifest(folder).add(_row(path))
    content = (folder / "manifest.csv").read_bytes()

    for length in range(size + path.index("/") + 1, len(content) - 1, 3):
        (folder / "manifest.csv").write_bytes(content[:length])
        assert list(Manifest(folder).rows()) == ["z.mp4"]

    Manifest(folder).add(_row(path))
    assert (folder / "manifest.csv").read_bytes() == content
    (folder / "manifest.csv").write_bytes(content[:-1])
    assert list(Manifest(folder).rows()) == ["z.mp4", path]  # whole without its line end


def test_a_row_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path)
    manifest.add(_row("a.mp4"))
    before = manifest.path.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("turbo.manifest.os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            manifest.add(_row("b.mp4"))

    assert manifest.path.read_bytes() == before
    manifest.add(_row("c.mp4"))
    assert list(Manifest(tmp_path).rows()) == ["a.mp4", "c.mp4"]


@pytest.mark.parametrize("torn", ["", "pa", HEADER, f"{HEADER}\n"])
def test_a_torn_header_is_completed(tmp_path, torn):
    folder = _folder(tmp_path, torn)

    Manifest(folder).add(_row("a.mp4"))

    assert (folder / "manifest.csv").read_text().startswith(f"{HEADER}\na.mp4")


def test_reading_changes_nothing(tmp_path):
    folder = _folder(tmp_path, f"{HEADER}\n{ROW[:-1]}")

    assert not Manifest(folder).rows()

    assert (folder / "manifest.csv").read_text() == f"{HEADER}\n{ROW[:-1]}"


def test_a_second_header_is_no_clip(tmp_path):
    folder = _folder(tmp_path, f"{HEADER}\n{HEADER}\n{ROW}\n")

    assert list(Manifest(folder).rows()) == ["a.mp4"]


def _add(folder, name):
    Manifest(folder).add(_row(name))


@pytest.mark.slow
def test_batches_that_begin_at_once_write_one_header(tmp_path):
    names = [f"{number}.mp4" for number in range(8)]
    context = get_context("fork")
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        barrier = context.Barrier(len(names))
        workers = [
            context.Process(target=_add_together, args=(barrier, folder, name)) for name in names
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        assert lines.count(COLUMNS) == 1
        assert sorted(line[0] for line in lines[1:]) == names


def _add_together(barrier, folder, name):
    barrier.wait()
    _add(folder, name)


def test_rows_are_added_to_what_others_made_of_the_file_meanwhile(tmp_path):
    """The second row of a manifest is added without reading the whole file again."""
    manifest = Manifest(tmp_path)
    manifest.add(_row("a.mp4"))
    manifest.add(_row("b.mp4"))
    Manifest(tmp_path).add(_row("c.mp4"))
    manifest.add(_row("d.mp4"))
    with manifest.path.open("ab") as file:
        file.write(b"torn-cl")  # by a process that was killed
    manifest.add(_row("e.mp4"))
    size = manifest.path.stat().st_size
    rows = list(csv.reader(manifest.path.read_text().splitlines()))
    with manifest.path.open("w", newline="") as file:
        csv.writer(file, delimiter=";", lineterminator="\n").writerows(rows)
    assert manifest.path.stat().st_size == size  # the length alone shows no other delimiter
    manifest.add(_row("f.mp4"))
    manifest.path.write_bytes(manifest.path.read_bytes()[:-1])
    manifest.add(_row("g.mp4"))
    assert list(manifest.rows()) == [f"{name}.mp4" for name in "abcdefg"]

    manifest.path.unlink()
    manifest.add(_row("h.mp4"))
    assert list(manifest.rows()) == ["h.mp4"]
    manifest.path.write_text("not ours\n" * 50)
    with pytest.raises(ValueError):
        manifest.add(_row("i.mp4"))
    assert manifest.path.read_text() == "not ours\n" * 50
