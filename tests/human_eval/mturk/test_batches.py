"""The formats of a crowd platform of old: batches out, results in."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pytest

from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from human_eval.mturk.batches import read_results, read_time, write_batches
from human_eval.mturk.votes_in import import_submissions
from human_eval.study.queries import read_pairs, read_votes
from human_eval.study.store import create_study
from tests.support.studies import define, fill

URL = "https://clips.example/media"
RESULT_COLUMNS = [  # as the service wrote them, before Input.* and Answer.*
    *["HITId", "HITTypeId", "Title", "Description", "Keywords", "Reward", "CreationTime"],
    *["MaxAssignments", "RequesterAnnotation", "AssignmentDurationInSeconds"],
    *["AutoApprovalDelayInSeconds", "Expiration", "NumberOfSimilarHITs", "LifetimeInSeconds"],
    *["AssignmentId", "WorkerId", "AssignmentStatus", "AcceptTime", "SubmitTime"],
    *["AutoApprovalTime", "ApprovalTime", "RejectionTime", "RequesterFeedback"],
    *["WorkTimeInSeconds", "LifetimeApprovalRate", "Last30DaysApprovalRate"],
    *["Last7DaysApprovalRate"],
]


@pytest.fixture
def store(tmp_path):
    prompts = [Prompt(index, f"prompt {index}") for index in range(4)]
    store = create_study(tmp_path / "study", define(k=2), prompts)
    fill(store, 4)
    yield store
    store.close()


@pytest.fixture
def batch(store, tmp_path) -> list[dict[str, str]]:
    [(path, workers)] = write_batches(store, URL, tmp_path / "batch.csv")
    assert (path.name, workers) == ("batch-2.csv", 2)
    return read_batch(path)


def read_batch(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_results(path: Path, batch, answers="left right", head=None, **changes) -> Path:
    """Write what the platform returns when a worker has done the batch."""
    first, last = answers.split()
    usual = {
        "AssignmentStatus": "Approved",
        "WorkerId": "A1",
        "SubmitTime": "Tue Mar 05 10:33:21 PST 2024",
        "WorkTimeInSeconds": "31",
        "Answer.Q1": first,
        "Answer.Q2.label": last,
    }
    names = head or [*RESULT_COLUMNS, "Input.pair", "Answer.Q1", "Answer.Q2.label", "Approve"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
        writer.writeheader()
        for number, row in enumerate(batch):
            about = {"AssignmentId": f"3X{number}", "Input.pair": row["pair"]}
            writer.writerow({**usual, **about, **changes})
    return path


def test_batch_has_a_row_for_each_pair_and_names_no_system(batch):
    assert len(batch) == 8
    assert list(batch[0]) == ["pair", "prompt", "video_left", "video_right"]
    for row in batch:
        assert row["video_left"].startswith(f"{URL}/") and row["video_left"] != row["video_right"]
        assert not any(word in row["pair"] for word in ("C1", "ours", "theirs", "left"))
    assert len({row["pair"] for row in batch}) == 8


def test_workers_read_a_prompt_as_raters_do(tmp_path):
    texts = ["@home a cat, asleep", "=1", "'tis", "a\rb"]
    prompts = [Prompt(index, text) for index, text in enumerate(texts)]
    store = create_study(tmp_path / "study", define(k=2), prompts)
    fill(store, 4)

    [(path, _)] = write_batches(store, URL, tmp_path / "batch.csv")

    assert {row["prompt"] for row in read_batch(path)} == set(texts)
    store.close()


def test_sides_of_a_batch_are_even(batch):
    # The made-up clips of these tests are named after their systems.
    ours = ["/ours-" in row["video_left"] for row in batch]

    assert sum(ours) == 4


def test_answers_come_in_as_choices_of_systems(store, batch, tmp_path):
    ballots = read_results(write_results(tmp_path / "results.csv", batch), store)

    left = {row["prompt"]: "/ours-" in row["video_left"] for row in batch}
    assert len(ballots) == 8
    by_pair = {(ballot.comparison, ballot.prompt_index): ballot for ballot in ballots}
    for row in batch:
        comparison = "C1" if "theirs" in row["video_left"] + row["video_right"] else "C2"
        ballot = by_pair[comparison, int(row["prompt"].split()[1])]
        ours_left = "/ours-" in row["video_left"]
        assert ballot.side_a == ("left" if ours_left else "right")
        assert ballot.answers == ({"Q1": "a", "Q2": "b"} if ours_left else {"Q1": "b", "Q2": "a"})
        assert (ballot.provider, ballot.rater, ballot.seconds) == ("mturk", "A1", 31.0)
        assert ballot.answered_at == datetime(2024, 3, 5, 18, 33, 21, tzinfo=UTC)
    assert len(left) == 4


def test_results_reach_the_votes_once(store, batch, tmp_path):
    ballots = read_results(write_results(tmp_path / "results.csv", batch), store)

    first, again = import_submissions(store, ballots), import_submissions(store, ballots)

    assert (first.added, first.already_there) == (8, 0)
    assert (again.added, again.already_there) == (0, 8)
    votes = read_votes(store)
    assert len(votes) == 16 and set(votes["provider"]) == {"mturk"}
    assert "A1" not in set(votes["rater"])


def test_a_finished_pair_is_not_published_again(store, batch, tmp_path):
    for worker in ("A1", "A2"):
        results = write_results(tmp_path / "results.csv", batch[:1], WorkerId=worker)
        import_submissions(store, read_results(results, store))

    [(path, _)] = write_batches(store, URL, tmp_path / "rest.csv")

    assert len(path.read_text().splitlines()) == 8


def test_no_worker_is_paid_for_a_pair_that_has_its_raters(store, batch, tmp_path):
    results = write_results(tmp_path / "results.csv", batch[:3], WorkerId="A1")
    import_submissions(store, read_results(results, store))

    rest = write_batches(store, URL, tmp_path / "rest.csv")
    added = 0
    for path, workers in rest:
        for number in range(workers):
            results = write_results(
                tmp_path / "results.csv", read_batch(path), WorkerId=f"{workers} {number}"
            )
            added += import_submissions(store, read_results(results, store)).added

    assert [(path.name, workers) for path, workers in rest] == [
        ("rest-1.csv", 1),
        ("rest-2.csv", 2),
    ]
    assert added == 3 + 2 * 5
    pairs = read_pairs(store)
    assert (pairs["taken"] == pairs["target"]).all()


def test_ties_come_in_where_the_question_allows_them(store, batch, tmp_path):
    [ballot] = read_results(write_results(tmp_path / "r.csv", batch[:1], "tie left"), store)

    assert ballot.answers["Q1"] == "tie"
    with pytest.raises(StudyError, match=r"line 2: Answer.Q2.label is 'tie', which Q2 does not"):
        read_results(write_results(tmp_path / "r.csv", batch[:1], "left tie"), store)


def test_rejected_assignments_stay_out(store, batch, tmp_path):
    path = write_results(tmp_path / "r.csv", batch, AssignmentStatus="Rejected")

    assert read_results(path, store) == []


def test_answers_in_other_columns_are_found_by_name(store, batch, tmp_path):
    head = [*RESULT_COLUMNS, "Input.pair", "Answer.fine", "Answer.Q2"]
    path = write_results(tmp_path / "r.csv", batch[:1], head=head)
    path.write_text(path.read_text().rstrip("\n,") + ",right,left\n")

    [ballot] = read_results(path, store, columns={"Q1": "Answer.fine"})

    assert set(ballot.answers) == {"Q1", "Q2"}
    with pytest.raises(StudyError, match=r"no column Answer.Q1 .* Answer.fine, Answer.Q2"):
        read_results(path, store)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"SubmitTime": "yesterday"}, "line 2: SubmitTime is 'yesterday'"),
        ({"SubmitTime": "Tue Mar 05 10:33:21 CET 2024"}, "in a zone other than"),
        ({"SubmitTime": "2024-03-05T10:33:21"}, "has no time zone"),
        ({"WorkTimeInSeconds": "-4"}, "WorkTimeInSeconds is '-4'"),
        ({"WorkerId": " "}, "no WorkerId"),
        ({"Input.pair": "forged"}, "unknown pair 'forged'"),
        ({"Answer.Q1": "both"}, "is 'both', not left, right, tie or both_bad"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_comes_in(store, batch, tmp_path, changes, message):
    path = write_results(tmp_path / "r.csv", batch[:2])
    if "Input.pair" in changes:
        path.write_text(path.read_text().replace(batch[0]["pair"], "forged"))
    else:
        write_results(path, batch[:1], **changes)

    with pytest.raises(StudyError, match=message):
        read_results(path, store)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "lacks the columns AssignmentId"),
        ("WorkerId,Answer.Q1\nA,left\n", "Download the results of a batch"),
        (None, "No such file"),
    ],
)
def test_a_file_that_holds_no_results_is_refused(store, tmp_path, content, message):
    path = tmp_path / "r.csv"
    if content is not None:
        path.write_text(content)

    with pytest.raises(StudyError, match=message):
        read_results(path, store)


@pytest.mark.parametrize("url", ["http://x.example", "clips", "https://", "file:///etc"])
def test_only_https_addresses_are_published(store, tmp_path, url):
    with pytest.raises(StudyError, match="not an https address"):
        write_batches(store, url, tmp_path / "b.csv")
    assert not list(tmp_path.glob("b*.csv"))


@pytest.mark.parametrize(
    "text, moment",
    [
        ("Tue Jul 02 10:33:21 PDT 2024", datetime(2024, 7, 2, 17, 33, 21, tzinfo=UTC)),
        ("Tue Jul 02 10:33:21 UTC 2024", datetime(2024, 7, 2, 10, 33, 21, tzinfo=UTC)),
        ("2024-07-02T10:33:21+02:00", datetime(2024, 7, 2, 8, 33, 21, tzinfo=UTC)),
    ],
)
def test_times_are_read_in_their_zones(text, moment):
    assert read_time(text) == moment
