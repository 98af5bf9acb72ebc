"""Training videos of a data set of the Hugging Face Hub, or of a folder in one of its layouts.

Read by the library `datasets`, which is optional. It downloads a data set whole, once, because a
run needs clips by position: in a random order, and from where it stopped.
"""

from functools import partial
from pathlib import Path
from typing import Any

from training.data.captions import TEXT_NAMES, Caption, check_texts, read_motion_flag
from turbo.text_files.tables import PATH_NAMES


def read_hub(name: str, split: str) -> list[Caption]:
    """List the videos of a data set. It is downloaded from the Hub, unless it is a folder.

    Columns: the video, of the type Video or with a usual name; and `text`, or another usual name.
    Optional: `short_text` and `use_motion_guide`, as in a table of captions.

    Raises:
        ValueError: the library is not installed, the data set cannot be read, or a column or a
            text is missing.
        OSError: there is no such data set.
    """
    try:
        import datasets
    except ImportError as failure:
        raise ValueError(
            "data.hub needs the package datasets, which is not installed. Run: "
            "pip install datasets."
        ) from failure
    try:
        data = datasets.load_dataset(name, split=split)
    except datasets.exceptions.DatasetsError as failure:
        raise ValueError(
            f"The data set {name} cannot be read: {failure} Check its name, data.split and access."
        ) from failure
    typed = [key for key, kind in data.features.items() if isinstance(kind, datasets.Video)]
    video = next(iter([*typed, *(key for key in PATH_NAMES if key in data.features)]), None)
    text = next((key for key in TEXT_NAMES if key in data.features), None)
    if video is None or text is None or not len(data):
        raise ValueError(
            f"{name} has {len(data)} rows with the columns {', '.join(data.features)}. Every row "
            "must have a video and a text: rename the columns to video and text."
        )
    videos = data.select_columns([video]).cast_column(video, datasets.Video(decode=False))
    captions = []
    for number, row in enumerate(data.remove_columns([video])):
        place = f"{name}, row {number}"
        check_texts(row, (text, "short_text"), place)
        if not (row[text] or "").strip():
            raise ValueError(f"{place}: expected a text, got {row[text]!r}.")
        short, motion = (row.get("short_text") or "").strip(), read_motion_flag(row, place)
        content = partial(read_video, videos, number)
        captions.append(Caption(Path(name, str(number)), row[text], short, None, motion, content))
    return captions


def read_video(videos: Any, row: int) -> bytes:
    """Return the file of a video.

    Raises:
        OSError: it is not there.
    """
    [video] = videos[row].values()
    if video is None:
        raise FileNotFoundError("the row has no video")
    return Path(video["path"]).read_bytes() if video["bytes"] is None else video["bytes"]
