"""Votes as training data of reward models (VideoAlign) and of direct preference optimisation."""

import pandas as pd

from human_eval.definition.definition import VIDEO_ALIGN, StudyDefinition

MEDIA = "media/"  # folder of a study's clips


def video_align_questions(definition: StudyDefinition) -> dict[str, str]:
    """Return, by VideoAlign's VQ, MQ and TA, the key of the question that measures it, or ""."""
    measured: dict[str, str] = {
        question.dimension: question.key for question in definition.questions
    }
    return {column: measured.get(dimension, "") for column, dimension in VIDEO_ALIGN.items()}


def tabulate_preferences(votes: pd.DataFrame) -> pd.DataFrame:
    """Count the answers to each pair and question, without excluded raters and checks.

    Returns:
        Columns comparison, system_a, system_b, prompt_index, prompt, question, simulated; the
        counts a, b, tie, both_bad.
    """
    kept = votes[(votes["kind"] == "real") & ~votes["excluded"]]
    keys = ["comparison", "system_a", "system_b", "prompt_index", "prompt", "question"]
    counts = (
        kept.groupby([*keys, "simulated", "choice"], observed=True).size().unstack(fill_value=0)
    )
    counts = counts.reindex(columns=["a", "b", "tie", "both_bad"], fill_value=0)
    return counts.rename_axis(columns=None).reset_index()


def _add_clips(pairs: pd.DataFrame, clips: pd.DataFrame) -> pd.DataFrame:
    """Add the file, frame rate and number of frames of both clips to each pair."""
    good = clips[clips["status"] == "ok"]
    about = good.assign(path=MEDIA + good["stored_name"].astype(str))
    about = about[["system", "prompt_index", "path", "fps", "frames"]]
    for side in ("a", "b"):
        names = {name: f"{name}_{side}" for name in ("system", "path", "fps", "frames")}
        pairs = pairs.merge(about.rename(columns=names), on=[names["system"], "prompt_index"])
    return pairs


def video_align(
    pairs: pd.DataFrame, clips: pd.DataFrame, definition: StudyDefinition
) -> pd.DataFrame:
    """Return the training table of VideoAlign: one row per pair, its majority as A, B or same.

    A column whose dimension no question measures is empty. The last column, `simulated`, is ours:
    VideoAlign reads columns by name, and drops the others.

    Args:
        pairs: see `tabulate_preferences`.
        clips: one row per clip, as in the export.

    Source: KwaiVGI/VideoAlign, datasets/train/README.md.
    """
    keys = ["comparison", "system_a", "system_b", "prompt_index", "prompt", "simulated"]
    wide = pairs[keys].drop_duplicates()
    questions = video_align_questions(definition)
    for column, question in questions.items():
        asked = pairs[pairs["question"] == question]
        label = pd.Series("same", index=asked.index)
        label[asked["a"] > asked["b"]] = "A"
        label[asked["b"] > asked["a"]] = "B"
        wide = wide.merge(asked[keys].assign(**{column: label}), on=keys, how="left")
    wide = _add_clips(wide, clips)
    columns = {
        "path_a": "path_A",
        "path_b": "path_B",
        "prompt": "prompt",
        **{column: column for column in questions},
        "fps_a": "fps_A",
        "frames_a": "num_frames_A",
        "fps_b": "fps_B",
        "frames_b": "num_frames_B",
        "simulated": "simulated",
    }
    return wide[list(columns)].rename(columns=columns)


def direct_preferences(
    pairs: pd.DataFrame, clips: pd.DataFrame, definition: StudyDefinition
) -> pd.DataFrame:
    """Return one row for each pair and question with a winner, for preference optimisation.

    Returns:
        Columns prompt; chosen, rejected (file names); question; `dimension`, what the question
        measures, or empty; `probability`, the share of decisive votes for the chosen clip, smoothed
        as (n_chosen + 1) / (n + 2); votes; simulated.
    """
    dimensions = {question.key: question.dimension for question in definition.questions}
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
            "dimension": both["question"].map(dimensions),
            "probability": (both[["a", "b"]].max(axis=1) + 1) / (decisive + 2),
            "votes": decisive + both["tie"] + both["both_bad"],
            "simulated": both["simulated"],
        }
    )
