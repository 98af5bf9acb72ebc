"""How raters enter: by link, from crowd platforms, by invitation, as staff; and how they finish.

A simulator plays the platform as its documentation describes it: it fills in the link, opens it,
and reads the completion code from the address to which the browser returns.
"""

import io
import re
from dataclasses import replace
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from human_eval.cli.main import main
from human_eval.collection.raters import find_rater
from human_eval.definition.definition import parse_definition
from human_eval.definition.platforms import (
    KNOWN,
    Provider,
    finish_address,
    read_parameters,
    study_address,
)
from human_eval.errors import NotAcceptable, StudyError
from human_eval.hosting.deployment import SPACE_FRAMES
from human_eval.server.accounts import add_account
from human_eval.server.sign_in import COOKIE, entry_links
from human_eval.server.vote_api import create_app
from human_eval.storage.tables import Event
from human_eval.storage.tables import Rater as RaterRow
from human_eval.study.queries import read_study_progress, read_votes
from tests.support.studies import DEFINITION, exclude, revoke, set_closed, set_paused

PAGE = "https://study.example/rate"
CODES = """
[codes]
done = "D0NE"
screened_out = "SCR33N"
no_work_left = "N0W0RK"
technical = "T3CH"
"""
PLATFORMS = """
[[providers]]
key = "prolific"

[[providers]]
key = "panel"
rater = "participant"
session = "visit"
keep = ["wave"]
finish = "https://panel.example/back?wave={wave}&who={participant}&c={code}"
"""
QUOTA = "[quotas]\nper_study = 2\n"


@pytest.fixture
def database_url():
    """SQLite: these tests do not depend on the database."""
    return None


@pytest.fixture
def store(make_store):
    return make_store(k=2, num_prompts=3, loops=0, extra=PLATFORMS + CODES + QUOTA)


@pytest.fixture
def client(store):
    with TestClient(create_app(store)) as client:
        yield client


class Prolific:
    """Fills in the placeholders, and maps a completion code to the status of the submission."""

    ACTIONS = {"D0NE": "APPROVED", "SCR33N": "SCREENED OUT", "N0W0RK": "AWAITING REVIEW"}

    def __init__(self, url: str) -> None:
        self.url = url

    def link_for(self, participant: str, submission: str) -> str:
        values = {"PROLIFIC_PID": participant, "STUDY_ID": "5" * 24, "SESSION_ID": submission}
        return re.sub(r"\{\{%(\w+)%\}\}", lambda match: values[match[1]], self.url)

    def status_after(self, address: str) -> str:
        assert address.startswith("https://app.prolific.com/submissions/complete?")
        [code] = parse_qs(urlsplit(address).query)["cc"]
        return self.ACTIONS[code]


def enter(client, url, **changes):
    """Open a link as the page does: unknown parameters belong to a platform."""
    given = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    own = {name: given.pop(name) for name in ("link", "invitation") if name in given}
    body = {"consent": True, **own, "parameters": given, **changes}
    return client.post("/api/enter", json=body)


def work(client, pairs=99):
    """Answer pairs until there are none; return the last reply."""
    for _ in range(pairs):
        pair = client.post("/api/claim", json={}).json()
        if pair["assignment"] is None:
            return pair
        answers = {key: {"choice": "left", "seconds": 3.0} for key in ("Q1", "Q2")}
        body = {"assignment": pair["assignment"], "answers": answers, "loops": 1}
        assert client.post("/api/submit", json=body).status_code == 200
    return None


def count_raters(store):
    with store.read() as connection:
        return len(connection.execute(select(RaterRow.id)).all())


def test_a_prolific_participant_comes_in_rates_and_returns_with_the_code(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])

    entered = enter(client, prolific.link_for("a" * 24, "1" * 24))
    end = work(client)

    assert entered.status_code == 200
    assert (end["outcome"], end["progress"]) == ("done", {"answered": 2, "wanted": 2})
    assert prolific.status_after(end["finish"]) == "APPROVED"
    votes = read_votes(store)
    assert set(votes["provider"]) == {"prolific"} and votes["rater"].nunique() == 1


def test_a_participant_whose_link_lost_its_signature_does_not_work_unpaid(make_store):
    store = make_store(loops=0, extra=PLATFORMS + CODES + QUOTA)
    assert store.definition.anonymous

    with TestClient(create_app(store)) as client:
        assert enter(client, f"{PAGE}?PROLIFIC_PID={'a' * 24}").status_code == 403
        assert enter(client, f"{PAGE}?participant=7&visit=1").status_code == 403
        assert count_raters(store) == 0
        assert enter(client, f"{PAGE}?wave=7").status_code == 200


def test_a_prolific_participant_for_whom_nothing_is_left_returns_with_that_code(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])
    for number in range(7):  # 6 pairs, 2 raters each, 2 pairs a rater
        client.cookies.clear()
        enter(client, prolific.link_for(f"{number:024x}", "1" * 24))
        end = work(client)

    assert end["outcome"] == "no_work_left"
    assert prolific.status_after(end["finish"]) == "AWAITING REVIEW"


def test_an_excluded_participant_is_screened_out_with_that_code(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])
    enter(client, prolific.link_for("a" * 24, "1" * 24))
    work(client, pairs=1)
    [rater] = read_votes(store)["rater"].unique()
    with store.read() as connection:
        subject = f"rater:{find_rater(connection, rater)}"

    event = exclude(store, subject, rule="gold", evidence={"wrong": 9}, author="researcher")
    excluded = client.post("/api/claim", json={}).json()
    revoke(store, event, author="researcher", reason="a mistake of ours")
    forgiven = client.post("/api/claim", json={}).json()

    assert excluded["outcome"] == "screened_out"
    assert prolific.status_after(excluded["finish"]) == "SCREENED OUT"
    assert forgiven["assignment"]


def test_a_participant_who_comes_back_is_the_same_rater_at_the_same_pair(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])
    enter(client, prolific.link_for("a" * 24, "1" * 24))
    work(client, pairs=1)
    before = client.post("/api/claim", json={}).json()
    client.cookies.clear()

    enter(client, prolific.link_for("a" * 24, "1" * 24))
    after = client.post("/api/claim", json={}).json()

    assert after["assignment"] == before["assignment"]
    assert after["progress"] == {"answered": 1, "wanted": 2}
    assert count_raters(store) == 1


def test_two_participants_at_one_browser_are_two_raters(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])

    for number in "ab":
        enter(client, prolific.link_for(number * 24, "1" * 24))
        assert work(client)["progress"]["answered"] == 2

    assert read_votes(store)["rater"].nunique() == 2


def test_the_configured_panel_gets_its_own_parameters_back(store, client):
    url = entry_links(store, PAGE)["panel"]
    assert url.endswith("&participant=participant&visit=visit&wave=wave")
    link = dict(parse_qsl(urlsplit(url).query))["link"]

    enter(client, f"{PAGE}?link={link}&participant=p%267&visit=9&wave=2+b&spare=x")
    end = work(client)

    back = urlsplit(end["finish"])
    assert back.hostname == "panel.example"
    assert dict(parse_qsl(back.query)) == {"wave": "2 b", "who": "p&7", "c": "D0NE"}


CONNECT = '[[providers]]\nkey = "connect"\n'
VISIT = "participantId=P7&assignmentId=9"


def test_a_connect_participant_returns_to_the_project_only_when_done(make_store):
    store = make_store(k=2, num_prompts=3, loops=0, extra=CONNECT + CODES + QUOTA)
    link = dict(parse_qsl(urlsplit(entry_links(store, PAGE)["connect"]).query))["link"]
    ends = {}
    with TestClient(create_app(store)) as client:
        enter(client, f"{PAGE}?link={link}&{VISIT}&projectId=AB12")
        ends["technical"] = client.post("/api/stop", json={"technical": True}).json()
        ends["done"] = work(client)
        client.cookies.clear()
        enter(client, f"{PAGE}?link={link}&{VISIT}8")  # without the project
        ends["unknown"] = work(client)

    back = {name: (end["code"], end["finish"]) for name, end in ends.items()}
    project = "https://connect.cloudresearch.com/participant/project/AB12/complete"
    assert back == {"technical": ("T3CH", ""), "done": ("D0NE", project), "unknown": ("D0NE", "")}


def test_an_address_that_carries_no_code_is_for_those_who_are_done():
    panel = Provider(key="p", rater="id", finish="https://p.example/completed?who={id}")
    coded = Provider(key="p", rater="id", finish="https://p.example/back?c={code}")

    assert finish_address(panel, {"id": "7"}, "", "done") == "https://p.example/completed?who=7"
    assert finish_address(panel, {"id": "7"}, "SCR33N", "screened_out") == ""
    assert finish_address(panel, {}, "D0NE", "done") == ""
    assert finish_address(coded, {}, "SCR33N", "screened_out") == "https://p.example/back?c=SCR33N"
    assert finish_address(coded, {}, "", "done") == ""


@pytest.mark.parametrize("cut", [1, 10, 30, -1])
def test_a_cut_link_is_refused_in_words(store, client, cut):
    for name, token in (
        ("link", dict(parse_qsl(urlsplit(entry_links(store, PAGE)["prolific"]).query))["link"]),
        ("invitation", store.keys.sign("invitation", ["prolific", "5f1"])),
    ):
        refused = client.post("/api/enter", json={"consent": True, name: token[:cut]})

        assert refused.status_code == 403
        assert "link is incomplete" in refused.json()["error"]
    long = client.post("/api/enter", json={"consent": True, "link": "x" * 5000})
    assert "link is incomplete" in long.json()["error"]


@pytest.mark.parametrize(
    "pid", ["{{%PROLIFIC_PID%}}", "", "a" * 23, "a" * 24 + "'--", "\u0661" * 24]
)
def test_a_link_that_the_platform_did_not_fill_in_is_refused_in_words(store, client, pid):
    link = dict(parse_qsl(urlsplit(entry_links(store, PAGE)["prolific"]).query))["link"]

    refused = client.post(
        "/api/enter", json={"consent": True, "link": link, "parameters": {"PROLIFIC_PID": pid}}
    )

    assert refused.status_code == 422
    assert "PROLIFIC_PID" in refused.json()["error"]
    assert count_raters(store) == 0


def test_parameters_without_the_signed_link_are_refused(make_store):
    store = make_store(loops=0, extra=PLATFORMS + QUOTA)
    object.__setattr__(store.definition, "anonymous", False)
    with TestClient(create_app(store)) as client:
        bare = enter(client, f"{PAGE}?PROLIFIC_PID={'a' * 24}")
        link = store.keys.sign("invitation", ["prolific"])  # signed, but for something else
        forged = enter(client, f"{PAGE}?link={link}&PROLIFIC_PID={'a' * 24}")

    assert (bare.status_code, forged.status_code) == (403, 403)
    assert count_raters(store) == 0


def test_each_browser_with_the_open_link_is_a_new_rater(make_store):
    store = make_store(loops=0)
    object.__setattr__(store.definition, "anonymous", False)
    with TestClient(create_app(store)) as client:
        for _ in range(3):
            client.cookies.clear()
            assert enter(client, entry_links(store, PAGE)["link"]).status_code == 200

    assert count_raters(store) == 3


def test_a_second_window_is_not_a_second_person(store, client):
    for _ in range(3):
        assert enter(client, PAGE).status_code == 200

    assert count_raters(store) == 1


def test_an_erased_rater_enters_as_a_new_one(store, client):
    enter(client, PAGE)
    work(client, pairs=1)
    with store.write() as connection:
        connection.execute(update(RaterRow).values(erased_at=1))
    refused = client.post("/api/claim", json={})

    enter(client, PAGE)

    assert refused.status_code == 403
    assert client.post("/api/claim", json={}).json()["assignment"]
    assert count_raters(store) == 2


def test_staff_log_in_with_their_password(store, client):
    add_account(store.folder, "ada", "correct horse battery")

    refused = enter(client, PAGE, name="ada", password="wrong horse battery")
    entered = enter(client, PAGE, name="ada", password="correct horse battery")
    work(client, pairs=1)

    assert (refused.status_code, entered.status_code) == (403, 200)
    assert client.get("/api/study").json()["entry"]["staff"]
    assert set(read_votes(store)["provider"]) == {"staff"}
    assert "correct" not in (store.folder / "staff.json").read_text()
    assert (store.folder / "staff.json").stat().st_mode & 0o777 == 0o600


def test_without_consent_nothing_is_stored(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])

    refused = enter(client, prolific.link_for("a" * 24, "1" * 24), consent=False)

    assert refused.status_code == 422 and "set-cookie" not in refused.headers
    assert count_raters(store) == 0


def test_entering_stores_an_event_with_the_consent_and_without_names(store, client):
    prolific = Prolific(entry_links(store, PAGE)["prolific"])
    enter(client, prolific.link_for("a1b2" * 6, "c3d4" * 6))

    with store.read() as connection:
        rows = connection.execute(select(Event.payload).where(Event.kind == "entered")).all()
    [payload] = [row.payload for row in rows]
    assert '"consent"' in payload and '"session"' in payload
    database = b"".join(path.read_bytes() for path in store.folder.glob("study.db*"))
    assert b"a1b2a1b2" not in database and b"c3d4c3d4" not in database


def test_a_rater_who_stops_early_keeps_the_answers_and_may_return(store, client):
    enter(client, Prolific(entry_links(store, PAGE)["prolific"]).link_for("a" * 24, "1" * 24))
    work(client, pairs=1)
    pair = client.post("/api/claim", json={}).json()

    stopped = client.post("/api/stop", json={}).json()
    still_open = read_study_progress(store).assignments.get("open", 0)
    again = client.post("/api/claim", json={}).json()

    assert (stopped["outcome"], stopped["code"], stopped["finish"]) == ("stopped", "", "")
    assert still_open == 0 and len(read_votes(store)) == 2
    assert pair["assignment"] and again["assignment"]


def test_a_device_that_shows_nothing_ends_with_the_technical_code(store, client):
    enter(client, PAGE)
    client.post("/api/claim", json={})

    end = client.post("/api/stop", json={"technical": True}).json()

    assert (end["outcome"], end["code"]) == ("technical", "T3CH")


def test_without_a_quota_one_may_stop_at_any_time_and_is_done(make_store):
    store = make_store(loops=0, extra=CODES)
    with TestClient(create_app(store)) as client:
        enter(client, PAGE)
        work(client, pairs=1)
        end = client.post("/api/stop", json={}).json()

    assert (end["outcome"], end["code"]) == ("done", "D0NE")


def test_a_rater_who_mostly_skips_gets_the_technical_code(store, client):
    enter(client, PAGE)
    work(client, pairs=1)
    while (pair := client.post("/api/claim", json={}).json())["assignment"]:
        body = {"assignment": pair["assignment"], "reason": "skipped", "detail": "other"}
        assert client.post("/api/return", json=body).status_code == 200

    assert (pair["outcome"], pair["code"]) == ("technical", "T3CH")


def test_a_study_that_closes_in_between_says_so_with_a_code(store, client):
    enter(client, PAGE)
    work(client, pairs=1)
    set_closed(store, True, author="researcher")
    interrupted = client.post("/api/claim", json={}).json()
    client.cookies.clear()
    enter(client, PAGE)
    late = client.post("/api/claim", json={}).json()

    assert (interrupted["outcome"], interrupted["code"]) == ("technical", "T3CH")
    assert (late["outcome"], late["code"]) == ("no_work_left", "N0W0RK")
    assert interrupted["closed"] and late["closed"]


def test_a_paused_study_asks_for_patience_and_takes_what_was_handed_out(store, client):
    enter(client, PAGE)
    pair = client.post("/api/claim", json={}).json()
    set_paused(store, True, author="researcher")
    answers = {key: {"choice": "left", "seconds": 3.0} for key in ("Q1", "Q2")}
    body = {"assignment": pair["assignment"], "answers": answers, "loops": 1}

    taken = client.post("/api/submit", json=body)
    paused = client.post("/api/claim", json={}).json()
    set_paused(store, False, author="researcher")
    resumed = client.post("/api/claim", json={}).json()

    assert taken.status_code == 200
    assert (paused["outcome"], paused["code"]) == ("paused", "")
    assert resumed["assignment"]


def test_a_cookie_of_an_earlier_version_is_not_accepted(store, client):
    client.cookies[COOKIE] = store.keys.sign("rater", [1])

    assert client.post("/api/claim", json={}).status_code == 403
    assert client.get("/api/study").json()["entered"] is False


def test_inside_another_sites_frame_the_cookie_is_partitioned(store):
    with TestClient(create_app(store, frames=SPACE_FRAMES)) as client:
        header = enter(client, PAGE).headers["set-cookie"].lower()

    assert {"secure", "samesite=none", "partitioned"} <= set(header.replace(" ", "").split(";"))


@pytest.mark.parametrize(
    "platform, message",
    [
        ('key = "unheard"', "name of a parameter"),
        ('key = "panel"\nrater = "a b"', "name of a parameter"),
        ('key = "panel"\nrater = "id"\npattern = "["', "regular expression"),
        ('key = "prolific"\npattern = "("', "regular expression"),
        ('key = "prolific"\nrater = ""', "name of a parameter"),
        ('key = "connect"\nfinish = "https://p.example/{STUDY_ID}"', "contains {STUDY_ID}"),
        ('key = "panel"\nrater = "id"\nfinish = "http://panel.example"', "https address"),
        ('key = "panel"\nrater = "id"\nfinish = "javascript:alert(1)"', "https address"),
        ('key = "panel"\nrater = "id"\nfinish = "https://p.example/{wave}"', "contains {wave}"),
        ('key = "staff"\nrater = "id"', "reserved"),
        ('key = "prolific"\n[[providers]]\nkey = "prolific"', "providers have the same key"),
        ('key = "prolific"', "per_study in .quotas."),
    ],
)
def test_a_platform_that_is_no_way_in_or_out_is_refused(platform, message):
    text = DEFINITION.format(k=2, loops=0) + f"\n[[providers]]\n{platform}\n"

    with pytest.raises(StudyError, match=message):
        parse_definition(text)


def test_values_of_a_platform_cannot_change_where_the_browser_goes():
    panel = Provider(key="p", rater="id", finish="https://p.example/back?who={id}&c={code}")
    kept = read_parameters(panel, {"id": "x&c=FREE#@evil.example/ {code}"})

    address = finish_address(panel, kept, "D0NE", "done")

    assert urlsplit(address).hostname == "p.example"
    assert dict(parse_qsl(urlsplit(address).query))["c"] == "D0NE"
    with pytest.raises(NotAcceptable, match=r"\bid\b"):
        read_parameters(panel, {"ID": "x"})


def read_provider(platform):
    text = DEFINITION.format(k=2, loops=0) + f"\n[[providers]]\n{platform}\n{QUOTA}"
    [provider] = parse_definition(text).providers
    return provider


def test_known_platforms_are_settled_by_their_key_alone():
    for key, known in KNOWN.items():
        assert read_provider(f'key = "{key}"') == known
    with pytest.raises(NotAcceptable):
        read_parameters(KNOWN["prolific"], {"PROLIFIC_PID": "a" * 24 + "; DROP"})


@pytest.mark.parametrize(
    "setting, value",
    [
        ('rater = "person"', "person"),
        ('session = "visit"', "visit"),
        ('session = ""', ""),
        ('keep = ["STUDY_ID", "cohort"]', ("STUDY_ID", "cohort")),
        ("keep = []", ()),
        ('pattern = "[0-9]+"', "[0-9]+"),
        ('pattern = ""', ""),
        ('placeholder = "<NAME>"', "<NAME>"),
        ('bonus = "person,cents"', "person,cents"),
        ('bonus = "id,amount"', "id,amount"),
        ('bonus = ""', ""),
        ('finish = "https://p.example/{code}"', "https://p.example/{code}"),
        ('finish = ""', ""),
    ],
)
def test_each_setting_replaces_that_of_a_known_platform_alone(setting, value):
    name = setting.split()[0]

    provider = read_provider(f'key = "prolific"\n{setting}')

    assert provider == replace(KNOWN["prolific"], **{name: value})


def test_a_known_platform_may_keep_a_parameter_for_its_address_of_return():
    finish = "https://app.prolific.com/submissions/complete?cc={code}&cohort={cohort}"
    prolific = read_provider(
        f'key = "prolific"\nkeep = ["STUDY_ID", "cohort"]\nfinish = "{finish}"'
    )

    address = finish_address(prolific, {"cohort": "b"}, "D0NE", "done")

    assert dict(parse_qsl(urlsplit(address).query)) == {"cc": "D0NE", "cohort": "b"}
    assert "cohort={{%cohort%}}" in study_address(prolific, PAGE, "signed")


def test_the_commands_print_links_and_add_staff(store, capsys, monkeypatch):
    def run(*words, given=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        main([str(word) for word in words])
        return capsys.readouterr().out

    added = run("staff", store.folder, "ada", given="correct horse battery\n")
    with pytest.raises(SystemExit):
        run("staff", store.folder, "bob", given="short\n")
    refusal = capsys.readouterr().err
    links = run("links", store.folder, PAGE)
    invited = run("invite", store.folder, "lab", "jane", "--page", PAGE)

    assert added.startswith("ada may ")
    assert "10 to 200 characters" in refusal
    assert all(f"  {address}\n" in links for address in entry_links(store, PAGE).values())
    token = dict(parse_qsl(urlsplit(invited.strip()).query))["invitation"]
    assert store.keys.read("invitation", token) == ["lab", "jane"]
