"""Pay: join the raters with a crowd platform's own export, and write a file of bonuses.

The study stores no name of a person. The platform's export has them, and their keyed hashes are the
pseudonyms of the raters, so both meet here only while a command runs.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd

from human_eval.collection.endings import read_told_outcomes
from human_eval.errors import StudyError
from human_eval.storage.events import record
from human_eval.storage.private_file import create_private
from human_eval.study.rater_table import tabulate_raters
from human_eval.study.store import StudyStore
from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import read_table

CENT = Decimal("0.01")
COUNTRY_COLUMNS = {"country of residence", "country"}  # in lower case
MIN_COUNTRY = 5  # raters of a country, below which it is not named: few could be recognised
CODE_COLUMNS = {"completion code", "completioncode", "code", "entered code"}  # in lower case


@dataclass(frozen=True, kw_only=True)
class PlatformExport:
    """A platform's list of its participants, joined with the raters of the study."""

    provider: str
    id_column: str
    rows: pd.DataFrame  # of the export, as text, with rater_number; missing who never entered
    absent: list[str]  # pseudonyms of raters of this platform whom the export lacks
    other_codes: list[str]  # pseudonyms of raters who gave a code that they were not told


def read_platform_export(
    path: Path, store: StudyStore, *, id_column: str | None = None
) -> PlatformExport:
    """Read a platform's export and find its participants among the raters.

    Args:
        id_column: the column of the participants' IDs; by default the one that has most raters.

    Raises:
        StudyError: the file is no CSV, or no column has the ID of a rater.
    """
    rows = _read_export(path)
    if id_column is not None and id_column not in rows:
        raise StudyError(
            f"{path} has no column {id_column!r}. Its columns are {', '.join(rows.columns)}."
        )
    raters = tabulate_raters(store)
    known = {
        (rater.provider, rater.rater): int(rater.rater_number)
        for rater in raters.itertuples(index=False)
    }
    providers = sorted({provider for provider, _ in known})
    best: tuple[int, str, str, pd.Series] | None = None
    for column in [id_column] if id_column else rows.columns:
        for provider in providers:
            hashes = {name: store.keys.pseudonym(provider, name) for name in set(rows[column])}
            numbers = rows[column].map(
                {name: known.get((provider, hashed)) for name, hashed in hashes.items()}
            )
            found = int(numbers.notna().sum())
            if found and (best is None or found > best[0]):
                best = found, str(column), provider, numbers
    if best is None:
        raise StudyError(
            f"No column of {path} has the ID of a rater of this study; its columns are "
            f"{', '.join(rows.columns)}. Export the list of participants from the platform, and "
            "name the column of their IDs with --id-column."
        )
    _, column, provider, numbers = best
    rows = rows.assign(rater_number=numbers.astype("Int64"))
    mine = raters[(raters["provider"] == provider) & (raters["outcome"] != "erased")]
    return PlatformExport(
        provider=provider,
        id_column=column,
        rows=rows,
        absent=list(mine.loc[~mine["rater_number"].isin(rows["rater_number"].dropna()), "rater"]),
        other_codes=_compare_codes(rows, mine, store, provider),
    )


def count_countries(
    export: PlatformExport, raters: pd.DataFrame, voted: set[str]
) -> dict[str, int]:
    """Count the raters who voted by country; countries of fewer than 5 are "other countries".

    Args:
        raters: the table of `tabulate_raters`.
        voted: pseudonyms of the raters whose votes count.

    Raises:
        StudyError: the export has no column of countries.
    """
    named = [name for name in export.rows if str(name).strip().lower() in COUNTRY_COLUMNS]
    if not named:
        raise StudyError(
            "The platform's export has no column `Country of residence`. Its columns are "
            f"{', '.join(map(str, export.rows.columns))}."
        )
    mine = raters[raters["rater"].isin(voted) & (raters["provider"] == export.provider)]
    listed = export.rows.drop_duplicates("rater_number")
    countries = mine.merge(listed[["rater_number", named[0]]], how="left")[named[0]]
    counts = countries.fillna("").replace("", "unknown country").value_counts()
    large = counts[counts >= MIN_COUNTRY]
    rest = {"other countries": int(counts.sum() - large.sum())}
    return {str(name): int(count) for name, count in large.items()} | {
        name: count for name, count in rest.items() if count
    }


def _compare_codes(
    rows: pd.DataFrame, raters: pd.DataFrame, store: StudyStore, provider: str
) -> list[str]:
    """Return who gave a code that they were not shown in the session of the row.

    In a row that names no session of theirs, the code may be that of any session.
    """
    named = [name for name in rows.columns if str(name).strip().lower() in CODE_COLUMNS]
    if not named:
        return []
    with store.read() as connection:
        told = read_told_outcomes(connection)
    pseudonyms = dict(zip(raters["rater_number"], raters["rater"], strict=True))
    current = dict(zip(raters["rater_number"], raters["code"], strict=True))
    others = set()
    for row in rows[rows["rater_number"].isin(pseudonyms)].to_dict("records"):
        number, given = row["rater_number"], row[named[0]]
        sessions = told[number]
        hashes = {store.keys.pseudonym(f"{provider} session", str(cell)) for cell in row.values()}
        mine = hashes & set(sessions)
        outcomes = set().union(*(sessions[name] for name in (mine | {""} if mine else sessions)))
        codes = {getattr(store.definition.codes, outcome, "") for outcome in outcomes}
        if given and given not in (codes if mine else codes | {current[number]}):
            others.add(pseudonyms[number])
    return sorted(others)


def _read_export(path: Path) -> pd.DataFrame:
    try:
        table = read_table(path)
    except FileRefused as refusal:
        raise StudyError(f"The platform's export cannot be read: {refusal}") from refusal
    if not table.names:
        raise StudyError(f"The platform's export cannot be read: {path} is empty.")
    rows = pd.DataFrame([*table.rows.values()], columns=table.names, dtype=str)
    rows = rows.rename(columns={"rater_number": "rater_number (platform)"})  # ours is another
    return rows.apply(lambda column: column.str.strip())


def owed_bonuses(
    raters: pd.DataFrame, *, per_pair: float, reward: float, again: bool = False
) -> dict[int, Decimal]:
    """Return what each rater is still owed, by number: pay per pair, less what was paid.

    Excluded and blocked raters are owed nothing here.

    Args:
        raters: the table of `tabulate_raters`.
        per_pair: pay for one pair.
        reward: what the platform itself pays for each session whose outcome is "done".
        again: treat the bonuses of earlier files as unpaid.
    """
    owed = {}
    for rater in raters[raters["decision"] == ""].itertuples(index=False):
        amount = Decimal(int(rater.pairs)) * Decimal(str(per_pair))
        amount -= int(rater.sessions_done) * Decimal(str(reward))
        if not again:
            amount -= rater.bonus
        amount = amount.quantize(CENT, ROUND_HALF_UP)
        if amount > 0:
            owed[int(rater.rater_number)] = amount
    return owed


def write_bonuses(
    store: StudyStore,
    export: PlatformExport,
    owed: Mapping[int, Decimal],
    path: Path,
    *,
    author: str,
) -> Decimal:
    """Write the platform's file of bonuses, store them as events, and return their sum.

    Raises:
        StudyError: nothing is owed to anybody in the export.
        FileExistsError: the file exists, and may have been paid.
    """
    listed = export.rows.dropna(subset="rater_number").drop_duplicates("rater_number")
    paid = {
        int(number): (name, owed[int(number)])
        for name, number in zip(listed[export.id_column], listed["rater_number"], strict=True)
        if int(number) in owed
    }
    if not paid:
        raise StudyError("No rater in the platform's export is owed a bonus. Nothing was written.")
    platforms = {entry.key for entry in store.definition.providers}
    is_platform = export.provider in platforms
    header = store.definition.provider(export.provider).bonus if is_platform else "id,amount"
    lines = io.StringIO()
    if header:
        lines.write(f"{header}\n")
    csv.writer(lines, lineterminator="\n").writerows(paid.values())  # an id may hold a comma
    with store.write() as connection:
        for number, (_, amount) in paid.items():
            record(
                connection,
                "bonus",
                actor=author,
                subject=f"rater:{number}",
                now=store.clock(),
                payload={"amount": str(amount)},
            )
        create_private(path, lines.getvalue())
    return sum((amount for _, amount in paid.values()), Decimal(0))
