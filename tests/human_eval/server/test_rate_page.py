"""The Rate page over HTTP: fixed files, a strict policy, addresses that work under any prefix."""

import re
from html import unescape

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from human_eval.definition.definition import parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from human_eval.hosting.deployment import SPACE_FRAMES
from human_eval.reporting.live_results import LiveResults
from human_eval.server.language import PAGES
from human_eval.server.results_api import create_results_app
from human_eval.server.vote_api import create_app
from human_eval.study.store import create_study
from tests.support.studies import DEFINITION


@pytest.fixture
def database_url():
    return None


@pytest.fixture
def client(make_store):
    with TestClient(create_app(make_store())) as client:
        yield client


def test_the_page_and_every_file_it_refers_to_are_served(client):
    page = client.get("/rate")
    named = re.findall(r'(?:src|href)="(rate/[^"]+)"', page.text)
    modules = {path.name for path in PAGES.glob("*.js")} | {"catalogue.js"}
    imported = re.findall(r'from "\./(\w+\.js)"', "".join(map(str, _sources())))

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert named == ["rate/rate.css", "rate/rate.js"]
    assert set(imported) | {"rate.js"} == modules
    for path in [*named, *(f"rate/{name}" for name in modules)]:
        assert client.get(f"/{path}").status_code == 200


def _sources():
    return [path.read_text() for path in PAGES.glob("*.js")]


def test_the_policy_allows_nothing_from_other_sites(client, make_store):
    policy = client.get("/rate").headers["content-security-policy"]
    with TestClient(create_app(make_store(), frames=SPACE_FRAMES)) as embedded:
        framed = embedded.get("/rate").headers["content-security-policy"]

    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert policy.endswith("frame-ancestors 'self'")
    assert framed.endswith("frame-ancestors 'self' https://huggingface.co https://*.hf.space")
    inline = (PAGES / "rate.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", inline)


@pytest.mark.parametrize(
    "path", ["../tokens.py", "%2e%2e%2ftokens.py", "..%2fsecret", "admin", "rate.JS", "a%00"]
)
def test_no_other_file_is_served(client, path):
    reply = client.get(f"/rate/{path}")

    assert reply.status_code == 404
    assert "secret" not in reply.text and "import" not in reply.text


def test_a_trailing_slash_redirects_and_keeps_the_parameters(client):
    reply = client.get("/rate/?link=abc&PROLIFIC_PID=1", follow_redirects=False)

    assert reply.headers["location"] == "../rate?link=abc&PROLIFIC_PID=1"
    assert client.get("/rate/").url.path == "/rate"


def test_every_address_works_under_a_prefix(make_store):
    app = FastAPI()
    app.mount("/deep/study", create_app(make_store(loops=0)))
    with TestClient(app) as client:
        page = client.get("/deep/study/rate").text

    assert "rate/rate.js" in page
    assert not re.findall(r'(?:src|href|action)="/', page)
    assert not [source for source in _sources() if re.search(r'["`]/(api|media|rate)', source)]


def test_the_definition_names_sites_that_may_show_the_page(tmp_path):
    sites = 'frame_ancestors = ["https://lab.example/", "https://*.qualtrics.com"]\n'
    definition = parse_definition(sites + DEFINITION.format(k=1, loops=0))
    store = create_study(tmp_path / "study", definition, [Prompt(0, "a prompt")])

    with TestClient(create_app(store, frames=["https://panel.example"])) as client:
        policy = client.get("/rate").headers["content-security-policy"]
    store.close()

    assert policy.endswith(
        "frame-ancestors 'self' https://panel.example https://lab.example https://*.qualtrics.com"
    )
    with pytest.raises(StudyError, match="not a site"):
        parse_definition('frame_ancestors = ["lab.example"]\n' + DEFINITION.format(k=1, loops=0))


BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def links(reply) -> list[str]:
    """Return the full addresses to which a page leads."""
    assert reply.headers["content-type"].startswith("text/html"), reply.text
    found = re.findall(r'<a [^>]*href="([^"]+)"', reply.text)
    return [str(reply.url.join(unescape(address))) for address in found]


@pytest.mark.parametrize(
    "path, status",
    [("/", 200), ("/rates", 404), ("/Rate", 404), ("/rate/rate.htm", 404), ("/admin/", 404)]
    + [("/study/rate", 404), ("/media/forged", 403)],
)
@pytest.mark.parametrize("prefix", ["", "/deep/study"])
def test_a_browser_at_another_address_is_led_on_to_the_page(make_store, prefix, path, status):
    app = FastAPI()
    app.mount(prefix, create_app(make_store()))
    with TestClient(app) as client:
        reply = client.get(f"{prefix}{path}?link=a%26b&x=%22", headers=BROWSER)

        assert reply.status_code == status
        assert links(reply) == [f"http://testserver{prefix}/rate?link=a%26b&x=%22"]


def test_a_program_at_another_address_still_gets_json(client):
    assert client.get("/rates").json()["error"]
    assert client.get("/", headers=BROWSER).headers["content-security-policy"]


def test_the_page_that_leads_on_is_in_the_language_of_the_study(make_store):
    store = make_store()
    object.__setattr__(store.definition, "language", "ar")
    with TestClient(create_app(store)) as client:
        page = client.get("/", headers=BROWSER).text

    assert '<html lang="ar" dir="rtl">' in page
    assert not re.search("[A-Za-z]{3}", re.sub(r"(?s)<style>.*</style>|<[^>]+>", "", page))


@pytest.mark.parametrize("path", ["/", "/chart.gif", "/chart.svg", "/nothing/here"])
def test_a_browser_at_the_results_is_led_on_to_the_main_page(make_store, path):
    store = make_store()
    app = FastAPI()
    app.mount("/t2v/results", create_results_app(store, LiveResults(store)))
    with TestClient(app) as client:
        reply = client.get(f"/t2v/results{path}", headers=BROWSER)

    assert links(reply) == ["http://testserver/t2v/"]
