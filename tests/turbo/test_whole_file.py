"""Files that are complete or absent."""

import pytest

from turbo.whole_file import open_whole, whole_file, write_whole


def test_a_file_takes_the_place_of_the_former_one_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_whole(path, b"former")

    with open_whole(path) as file:
        file.write(b"whole")
        assert path.read_bytes() == b"former"

    assert path.read_bytes() == b"whole"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.bin"
    write_whole(path, b"former")

    with pytest.raises(error), whole_file(path) as partial:
        partial.write_bytes(b"half")
        raise error

    assert path.read_bytes() == b"former"
    assert [*tmp_path.iterdir()] == [path]
