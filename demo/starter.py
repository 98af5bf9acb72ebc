"""The study that is there from the first start on, so that one can rate and read at once.

Its clips come with the repository: what the Turbo student and its teacher made of the example
prompts. A small simulated crowd has voted on pairs of its own, marked as simulated everywhere, so
that the Results page has something to show before the first person votes.
"""

import shutil
from pathlib import Path

from human_eval.clips.sources import find_sources, find_systems
from human_eval.definition.definition import load_definition
from human_eval.definition.prompts import load_prompts
from human_eval.reporting.live_results import set_published
from human_eval.study.simulation import Crowd, simulate
from human_eval.study.store import StudyStore, create_study, open_study

PRESET = "shapes-demo"
CLIPS = Path(__file__).parent / "media" / "starter"
CROWD = Crowd(raters=30, win_rate=0.75, prompt_spread=0.3, rater_spread=0.3, abandon=0.0)


def open_or_start(folder: Path) -> StudyStore:
    """Open the study in a folder, or make the starter study there first.

    It is made beside its place and moved when it is whole: stopped at any moment, the next start
    begins again.

    Raises:
        StudyError: what lies in the folder is no study.
    """
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_starter_study(unfinished)
        unfinished.rename(folder)
    return open_study(folder)


def make_starter_study(folder: Path) -> None:
    """Create the study, take the clips in, and let the simulated crowd vote."""
    from human_eval.clips.ingest import ingest  # reads videos, which takes a while to import

    definition = load_definition(PRESET)
    prompts = load_prompts(str(CLIPS / "prompts.txt"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    store = create_study(folder, definition, prompts)
    try:
        keys = [system.key for system in definition.systems]
        sources = find_sources(find_systems(CLIPS, keys), prompts)
        for clip in ingest(sources, prompts, definition, store.media, known={}):
            store.add_clips([clip], pair=False)
        store.make_pairs()
        simulate(store, CROWD)
        set_published(store, True, author="starter")
    finally:
        store.close()
