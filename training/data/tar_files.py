"""Training videos in WebDataset shards: tar files in which a sample is the files of one key.

`000123.mp4` with `000123.txt` (the text), or with `000123.json` (keys `text` and `short_text`, or
the other usual names). The key of a name ends at the first dot of its last part. The tars are read
in place, since a run needs clips by position; the webdataset library reads them in sequence only.

Source: the WebDataset format, https://github.com/webdataset/webdataset.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

from training.data.captions import TEXT_NAMES, Caption, Member, check_texts, read_motion_flag

VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "gif")
MAX_END = 2**16  # bytes of zeros after the last file: of `tar -b 128`, the largest in use


def read_tars(folder: Path) -> list[Caption]:
    """List the videos in the tar files of a folder, in the order of the names and of the files.

    Raises:
        ValueError: a tar cannot be read, or a sample has no video, several, or no text.
    """
    captions = [caption for path in sorted(folder.glob("*.tar")) for caption in _read_tar(path)]
    if not captions:
        raise ValueError(f"The tar files in {folder} hold no videos.")
    return captions


def _read_tar(path: Path) -> list[Caption]:
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if not entry.isfile() or entry.name.rpartition("/")[2].startswith("._"):
                    continue  # macOS keeps the attributes of a file beside it, as "._NAME"
                key, ending = _split_name(entry.name)
                sample = samples.setdefault(key, {"videos": []})
                if ending in VIDEOS:
                    sample["videos"].append(Member(entry.name, entry.offset_data, entry.size))
                elif ending in ("txt", "json"):
                    file = tar.extractfile(entry)
                    assert file is not None  # of a regular file
                    sample[ending] = file.read().decode("utf-8-sig")
            _check_end(tar)
        return [_caption(path, key, sample) for key, sample in samples.items()]
    except (tarfile.TarError, OSError, UnicodeDecodeError) as failure:
        raise ValueError(f"{path} cannot be read: {failure}.") from failure


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse an archive that goes on after its last readable file.

    tarfile ends at a header that is damaged or cut off as at the end of the archive, which is two
    blocks of zeros and some padding.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(MAX_END + 1)
    if not 2 * tarfile.BLOCKSIZE <= len(rest) <= MAX_END or any(rest):
        raise tarfile.ReadError("it is cut off or damaged after its last readable file")


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _caption(path: Path, key: str, sample: dict[str, Any]) -> Caption:
    if len(sample["videos"]) != 1:
        raise ValueError(f"{path}: {key} has {len(sample['videos'])} videos, expected one.")
    try:
        facts = json.loads(sample.get("json", "{}"))
    except json.JSONDecodeError as failure:
        raise ValueError(f"{path}: {key}.json is not JSON: {failure}.") from failure
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: {key}.json is not an object.")
    texts = (facts.get(name) for name in TEXT_NAMES)
    text = sample.get("txt") or next((text for text in texts if text), "")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{path}: {key} has no text, expected {key}.txt or {key}.json.")
    check_texts(facts, ["short_text"], f"{path}: {key}")
    short, [video] = facts.get("short_text") or "", sample["videos"]
    return Caption(path, text.strip(), short, video, read_motion_flag(facts, f"{path}: {key}"))
