"""Score the pairs of a study of shapes clips by the judge, for human_eval's options --judge.

python -m training.shapes.evaluation.judge_study STUDY --out scores.csv
"""

import argparse
from contextlib import closing
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from scipy.special import expit

from human_eval.cli.command import progress_bar
from human_eval.errors import StudyError
from human_eval.reporting.judge_scores import SCORES
from human_eval.study.queries import read_pairs
from human_eval.study.store import StudyStore, open_study
from training.shapes.evaluation.judge import load_judge, to_frames
from training.shapes.evaluation.probes import read_shapes


@torch.inference_mode()
def score_pairs(store: StudyStore) -> pd.DataFrame:
    """Return the judge's expected share of votes for A of every pair, from the clips as shown.

    Raises:
        ValueError: a prompt is not a caption of the shapes world.
    """
    judge = load_judge()

    @cache
    def score(clip: str, prompt: str) -> float:
        return float(judge(to_frames([read_shapes(store.media / clip)]), [prompt]))

    pairs = read_pairs(store)
    pairs = pairs[pairs["kind"] == "real"]
    shares = []
    with progress_bar("judge", "pair") as advance:
        for number, pair in enumerate(pairs.itertuples(), 1):
            ahead = score(pair.clip_a, pair.prompt) - score(pair.clip_b, pair.prompt)
            shares.append(round(float(expit(ahead)), 4))
            advance(number, len(pairs))
    return pairs.assign(score=shares)[SCORES]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE")
    options = parser.parse_args()
    try:
        with closing(open_study(options.study)) as store:
            scores = score_pairs(store)
        scores.to_csv(options.out, index=False)
    except (StudyError, ValueError, OSError) as refusal:
        parser.error(str(refusal))
    print(f"{len(scores)} pairs scored in {options.out}.")


if __name__ == "__main__":
    main()
