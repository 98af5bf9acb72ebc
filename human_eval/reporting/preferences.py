"""Votes as preferences: what a reward model or direct optimisation is trained on."""

from collections.abc import Mapping

import pandas as pd

# The judgements VideoAlign trains on, and the questions that ask for them. The paper's three do
# not ask about motion, which stays empty rather than guessed.
DIMENSIONS = {"VQ": "Q1", "MQ": "", "TA": "Q2"}
MEDIA = "media/"  # where a study keeps its clips


def tabulate_preferences(votes: pd.DataFrame) -> pd.DataFrame:
    """Count what raters prefer, by pair and question, leaving out excluded raters and checks."""
    kept = votes[(votes["kind"] == "real") & ~votes["excluded"]]
    keys = ["comparison", "system_a", "system_b", "prompt_index", "prompt", "question"]
    counts = kept.groupby([*keys, "choice"], observed=True).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["a", "b", "tie", "both_bad"], fill_value=0)
    return counts.rename_axis(columns=None).reset_index()


def _add_clips(pairs: pd.DataFrame, clips: pd.DataFrame) -> pd.DataFrame:
    """Add the file, rate and length of both clips of each pair."""
    good = clips[clips["status"] == "ok"]
    about = good.assign(path=MEDIA + good["stored_name"].astype(str))
    about = about[["system", "prompt_index", "path", "fps", "frames"]]
    for side in ("a", "b"):
        named = about.rename(
            columns={
                "system": f"system_{side}",
                "path": f"path_{side}",
                "fps": f"fps_{side}",
                "frames": f"frames_{side}",
            }
        )
        pairs = pairs.merge(named, on=[f"system_{side}", "prompt_index"])
    return pairs


def video_align(
    pairs: pd.DataFrame, clips: pd.DataFrame, dimensions: Mapping[str, str]
) -> pd.DataFrame:
    """Return one row a pair, with the majority as A, B or same, as VideoAlign trains on.

    Args:
        pairs: as `tabulate_preferences` makes them.
        dimensions: by VideoAlign's VQ, MQ and TA, the key of the question that asks for it, or ""
            where none does; its cells stay empty.

    Source: KwaiVGI/VideoAlign, datasets/train/README.md.
    """
    keys = ["comparison", "system_a", "system_b", "prompt_index", "prompt"]
    wide = pairs[keys].drop_duplicates()
    for dimension, question in dimensions.items():
        asked = pairs[pairs["question"] == question]
        label = pd.Series("same", index=asked.index)
        label[asked["a"] > asked["b"]] = "A"
        label[asked["b"] > asked["a"]] = "B"
        wide = wide.merge(asked[keys].assign(**{dimension: label}), on=keys, how="left")
    wide = _add_clips(wide, clips)
    columns = {
        "path_a": "path_A",
        "path_b": "path_B",
        "prompt": "prompt",
        **{dimension: dimension for dimension in dimensions},
        "fps_a": "fps_A",
        "frames_a": "num_frames_A",
        "fps_b": "fps_B",
        "frames_b": "num_frames_B",
    }
    return wide[list(columns)].rename(columns=columns)


def direct_preferences(pairs: pd.DataFrame, clips: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each pair and question that has a winner, for direct optimisation.

    Returns:
        Columns prompt, chosen, rejected (file names), question, probability (share of decisive
        votes for the chosen clip, smoothed by one vote each way), votes.
    """
    both = _add_clips(pairs, clips)
    both = both[both["a"] != both["b"]]
    a_won = both["a"] > both["b"]
    decisive = both["a"] + both["b"]
    return pd.DataFrame(
        {
            "prompt": both["prompt"],
            "chosen": both["path_a"].where(a_won, both["path_b"]),
            "rejected": both["path_b"].where(a_won, both["path_a"]),
            "question": both["question"],
            "probability": (both[["a", "b"]].max(axis=1) + 1) / (decisive + 2),
            "votes": decisive + both["tie"] + both["both_bad"],
        }
    )
