"""Each probe fires on a table with the fault planted, and not on one without."""

import numpy as np
import pandas as pd
import pytest

from human_eval.cli.main import main
from human_eval.definition.definition import parse_definition
from human_eval.reporting.audit import PROBES, audit_votes
from human_eval.storage.events import exclude_by_hand
from tests.human_eval.collection.test_assignment import enter, finish
from tests.support.crowd import make_votes

TOML = """
name = "three"
systems = [
    {key = "x", title = "X"}, {key = "y", title = "Y"}, {key = "z", title = "Z"},
    {key = "u", title = "U"}, {key = "v", title = "V"},
]
comparisons = [
    {key = "C1", a = "x", b = "y"}, {key = "C2", a = "y", b = "z"}, {key = "C3", a = "x", b = "z"},
    {key = "C4", a = "u", b = "v"},
]
questions = [{key = "Q1", wording = "Which one?", primary = true, ties = "tie"}]
"""
LINKED = TOML.replace(', {key = "C4", a = "u", b = "v"}', "").replace(
    '    {key = "C4", a = "u", b = "v"},\n', ""
)
RATES = {("C1", "Q1"): 0.8, ("C2", "Q1"): 0.8, ("C3", "Q1"): 0.93}


def make(rates=RATES, text=LINKED, **options) -> pd.DataFrame:
    return make_votes(parse_definition(text), prompts=50, raters=40, rates=rates, **options)


def on_the_left() -> pd.DataFrame:
    return make(left=1.0)


def by_one_rater() -> pd.DataFrame:
    votes = make()
    return votes.assign(rater=votes["rater"].mask(votes["vote_id"] % 4 == 0, "busy"))


def on_one_prompt() -> pd.DataFrame:
    return make().assign(prompt="one")


def in_a_circle() -> pd.DataFrame:
    return make({**RATES, ("C3", "Q1"): 0.15})


def decided_by_ties() -> pd.DataFrame:
    # x beats z in 9 of 10 decisive votes, but among 140 ties; y beats z in two thirds of all.
    votes = make({("C1", "Q1"): 0.5, ("C2", "Q1"): 0.5, ("C3", "Q1"): 0.5})
    choices = []
    for wins, losses, ties in ((1, 1, 148), (100, 50, 0), (9, 1, 140)):
        choices += [["a"] * wins + ["b"] * losses + ["tie"] * ties]
    votes = votes.sort_values("comparison", kind="stable")
    return votes.assign(choice=np.concatenate(choices))


def hanging_on_one_rater() -> pd.DataFrame:
    votes = make({("C1", "Q1"): 0.5, ("C2", "Q1"): 0.7, ("C3", "Q1"): 0.7})
    mine = np.random.default_rng(0).random(len(votes)) < 0.5
    votes["rater"] = votes["rater"].mask(mine, "partisan")
    to_x = votes["comparison"].isin(["C1", "C3"])
    rest = (votes["comparison"] == "C1") & ~mine
    choice = (
        votes["choice"].mask(mine & to_x, "a").mask(rest & (votes["prompt_index"] % 3 == 0), "b")
    )
    return votes.assign(choice=choice)


def close_together() -> pd.DataFrame:
    return make({**RATES, ("C1", "Q1"): 0.51, ("C3", "Q1"): 0.8})


def unevenly_spread() -> pd.DataFrame:
    votes = make()
    return votes[(votes["comparison"] != "C2") | (votes["prompt_index"] < 20)]


def in_two_groups() -> pd.DataFrame:
    return make(text=TOML)


def given_twice() -> pd.DataFrame:
    votes = make()
    return pd.concat([votes, votes.iloc[:7]], ignore_index=True)


FAULTS = dict(
    zip(
        PROBES,
        [
            on_the_left, by_one_rater, on_one_prompt, in_a_circle, decided_by_ties,
            hanging_on_one_rater, close_together, unevenly_spread, in_two_groups, given_twice,
        ],
        strict=True,
    )
)  # fmt: skip


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_fires_on_its_fault(probe):
    votes = FAULTS[probe]()
    definition = parse_definition(TOML if "u" in set(votes["system_a"]) else LINKED)

    row = audit_votes(votes, definition).set_index("probe").loc[probe]

    assert row["fired"] and row["found"]


def test_no_probe_fires_on_sound_votes():
    table = audit_votes(make(), parse_definition(LINKED))

    assert list(table["probe"]) == list(PROBES)
    assert not table["fired"].any(), table[table["fired"]].to_dict("records")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("command", ["audit", "report"])
def test_a_study_without_a_vote_that_counts_is_refused(make_store, capsys, command):
    store = make_store(k=1, num_prompts=2)
    [rater] = enter(store, 1)
    finish(store, [rater])
    with store.write() as connection:
        exclude_by_hand(connection, rater, reason="a bot", author="ada", now=store.clock())

    with pytest.raises(SystemExit) as exit:
        main([command, str(store.folder)])

    assert exit.value.code == 2 and "None of the 8 votes" in capsys.readouterr().err
