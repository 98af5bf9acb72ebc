"""A study of votes that were collected elsewhere, in the layout of an export.

`report` and `audit` read it like any export. Nothing is made up: what the votes lack stays
empty.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from human_eval.definition.definition import KEY, StudyDefinition, parse_definition
from human_eval.errors import StudyError
from human_eval.reporting.export import DEFINITION, SUMS, VOTES, sum_line, write_csv
from human_eval.reporting.foreign_votes import ForeignVotes, parse_time
from human_eval.statistics.votes import COLUMNS, FOREIGN, OTHER, check_votes

BAD_ROWS = "bad-rows.csv"


def write_foreign_study(
    votes: ForeignVotes, folder: Path, *, title: str, primary: str = ""
) -> tuple[pd.DataFrame, StudyDefinition]:
    """Write the votes as a folder for `report` and `audit`, all or nothing.

    Args:
        title: of the study, such as the name of the table.
        primary: the question that claims rest on, where the votes answer several.

    Returns:
        The votes frame and the definition that were written.

    Raises:
        StudyError: the folder exists, the names of systems or questions are too much alike, or it
            is unclear which question is primary.
    """
    if folder.exists():
        raise StudyError(f"{folder} exists already. Name another folder, or remove it.")
    definition = define_study(votes, title=title, primary=primary)
    frame = make_frame(votes, definition)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            (made / DEFINITION).write_bytes(definition.source.encode())
            write_csv(frame, made / f"{VOTES}.csv")
            bad = pd.DataFrame(list(votes.bad.items()), columns=["line", "reason"])
            write_csv(bad, made / BAD_ROWS)
            lines = [sum_line(path) for path in sorted(made.iterdir())]
            (made / SUMS).write_text("\n".join(lines) + "\n")
            made.rename(folder)
    except FileExistsError as error:
        raise StudyError(f"{error.filename} is a file. Name another folder.") from error
    return frame, definition


def define_study(votes: ForeignVotes, *, title: str, primary: str = "") -> StudyDefinition:
    """Return a definition of the systems, comparisons and questions that the votes name."""
    rows = votes.rows.values()
    systems = make_keys("systems", {row[side] for row in rows for side in ("system_a", "system_b")})
    asked = {row["question"] for row in rows}
    questions = {"": "Q1"} if asked == {""} else make_keys("questions", asked)
    if len(asked) > 1 and primary not in asked:
        raise StudyError(
            f"The votes answer {len(asked)} questions. Name the one that claims rest on by "
            f"--primary: {', '.join(sorted(asked))}."
        )
    if primary and primary not in asked:
        raise StudyError(f"No vote answers the question {primary!r}. Leave out --primary.")
    given = {row["choice"] for row in rows}
    ties = "tie_and_both_bad" if "both_bad" in given else "tie" if "tie" in given else "forced"
    pairs = sorted({tuple(sorted((row["system_a"], row["system_b"]))) for row in rows})
    lines = [
        f"name = {_quote(make_key(title) or 'imported')}",
        f"title = {_quote(title)}",
        "raters_per_pair = 1  # not planned here",
    ]
    for name, key in systems.items():
        lines += ["", "[[systems]]", f"key = {_quote(key)}", f"title = {_quote(name)}"]
    for number, (first, second) in enumerate(pairs, start=1):
        lines += ["", "[[comparisons]]", f'key = "C{number}"']
        lines += [f"a = {_quote(systems[first])}", f"b = {_quote(systems[second])}"]
    for name, key in questions.items():
        lines += ["", "[[questions]]", f"key = {_quote(key)}", f'ties = "{ties}"']
        lines += [f"wording = {_quote(name or '(wording unknown)')}"]
        lines += ["primary = true"] if name == primary or len(asked) == 1 else []
    return parse_definition("\n".join(lines) + "\n", origin="the imported study")


def make_frame(votes: ForeignVotes, definition: StudyDefinition) -> pd.DataFrame:
    """Return the votes frame, each vote in the direction of its comparison."""
    frame = pd.DataFrame.from_dict(votes.rows, orient="index")
    keys = {system.title: system.key for system in definition.systems}
    for side in ("system_a", "system_b"):
        frame[side] = frame[side].map(keys)
    comparisons = {(entry.a, entry.b): entry.key for entry in definition.comparisons}
    turned = [pair not in comparisons for pair in zip(frame["system_a"], frame["system_b"],
                                                      strict=True)]  # fmt: skip
    frame.loc[turned, ["system_a", "system_b"]] = frame.loc[
        turned, ["system_b", "system_a"]
    ].to_numpy()
    for name in ("choice", "side_a"):
        frame.loc[turned, name] = frame.loc[turned, name].replace(OTHER)
    frame["comparison"] = [comparisons[pair] for pair in zip(frame["system_a"], frame["system_b"],
                                                             strict=True)]  # fmt: skip
    wordings = {question.wording: question.key for question in definition.questions}
    frame["question"] = frame["question"].map(wordings).fillna(definition.primary.key)
    frame["prompt_index"] = pd.factorize(frame["prompt"])[0]
    times = [parse_time(text) if text else None for text in frame["time"]]
    return check_votes(
        frame.assign(
            vote_id=frame.index,  # the line of the table
            task_id=frame["comparison"] + "-" + frame["prompt_index"].astype(str),
            answered_at=pd.to_datetime(pd.Series(times, index=frame.index), utc=True),
            category="",
            strength=0,
            provider=FOREIGN,
            kind="real",
            gold_answer=None,
            seconds=float("nan"),
            loops=float("nan"),
            simulated=False,
            excluded=False,
            exclusion_rule=None,
            definition_hash=definition.hash,
        )[list(COLUMNS)].reset_index(drop=True)
    )


def make_keys(noun: str, names: Iterable[str]) -> dict[str, str]:
    """Return a key for each name, in the order of the names.

    Raises:
        StudyError: two names have the same key, upper and lower case alike.
    """
    keys: dict[str, str] = {}
    seen: dict[str, str] = {}
    for number, name in enumerate(sorted(names), start=1):
        keys[name] = make_key(name) or f"{noun[0]}{number}"
        other = seen.setdefault(keys[name].casefold(), name)
        if other != name:
            raise StudyError(
                f"The {noun} {other!r} and {name!r} would have the same key, {keys[name]!r}. If "
                "they are the same, spell them alike in the table; otherwise rename one."
            )
    return keys


def make_key(name: str) -> str:
    """Return the name as a key, or "" if a key may contain no character of it."""
    key = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:64]
    return key if KEY.fullmatch(key) else ""


def _quote(text: str) -> str:
    """Return text as a string of TOML, whose escapes are those of JSON but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
