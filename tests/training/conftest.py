"""What tests of whole runs share: videos with captions, and an accelerator of their own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from turbo.video import Video


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Let every test choose its own precision, which accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    rows = ["path,text,short_text"]
    for index in range(6):
        image = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Video(np.stack([np.roll(image, n, axis=1) for n in range(12)]), 16).save(
            folder / f"{index}.mp4"
        )
        rows.append(f"{index}.mp4,the video number {index},{'video' * (index % 2)}")
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder
