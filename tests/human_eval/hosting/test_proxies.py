"""What the headers of proxies change, and whose headers count."""

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from human_eval.errors import StudyError
from human_eval.hosting.deployment import Deployment, parse_root_path, read_deployment
from human_eval.hosting.proxies import BehindProxy

PROXY, VISITOR = "10.0.0.1", "203.0.113.7"


async def _describe(request):
    return JSONResponse(
        {
            "client": request.client.host,
            "url": str(request.url),
            "root": request.scope["root_path"],
        }
    )


def ask(path="/page", *, headers=None, client=PROXY, root_path="", proxies="10.0.0.0/8"):
    routes = [Route("/page", _describe), Mount("/study", routes=[Route("/rate", _describe)])]
    app = BehindProxy(Starlette(routes=routes), Deployment(root_path=root_path, proxies=proxies))
    with TestClient(app, client=(client, 1), base_url="http://inside") as browser:
        return browser.get(path, headers=headers or {}, follow_redirects=False)


@pytest.mark.parametrize(
    "forwarded, counted",
    [
        (VISITOR, VISITOR),
        (f"{VISITOR}, 10.0.0.9", VISITOR),
        (f"198.51.100.1, {VISITOR}, 10.0.0.9", VISITOR),  # the first one is the visitor's claim
        (f"{VISITOR}:5555", VISITOR),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_a_trusted_proxy_names_the_visitor(forwarded, counted):
    assert ask(headers={"x-forwarded-for": forwarded}).json()["client"] == counted


def test_a_visitor_cannot_claim_an_address_or_a_prefix():
    claim = {"x-forwarded-for": "198.51.100.1", "x-forwarded-prefix": "/t2v"}

    reply = ask(headers=claim, client=VISITOR).json()

    assert (reply["client"], reply["root"]) == (VISITOR, "")


@pytest.mark.parametrize("kept", ["", "/a/t2v"])  # a proxy removes the prefix or does not
@pytest.mark.parametrize("how", ["flag", "header"])
@pytest.mark.parametrize("path", ["/page", "/study/rate"])
def test_a_page_below_a_prefix_is_found_and_knows_its_address(kept, how, path):
    prefix = {"root_path": "/a/t2v"} if how == "flag" else {}
    headers = {"x-forwarded-prefix": "/a/t2v/"} if how == "header" else {}

    reply = ask(kept + path, headers=headers, **prefix).json()

    assert reply["url"] == f"http://inside/a/t2v{path}"


def test_the_prefix_without_a_slash_leads_to_the_page():
    reply = ask("/a/t2v?link=x", root_path="/a/t2v")

    assert (reply.status_code, reply.headers["location"]) == (307, "t2v/?link=x")


@pytest.mark.parametrize("prefix", ["//evil.example", "/../x", "https://evil.example", "/a b", ""])
def test_a_prefix_that_is_no_path_is_ignored(prefix):
    assert ask(headers={"x-forwarded-prefix": prefix}).json()["root"] == ""


@pytest.mark.parametrize(
    "text, path", [("/t2v", "/t2v"), ("t2v/", "/t2v"), ("/", ""), (" /a/b/ ", "/a/b"), ("", "")]
)
def test_a_root_path_has_one_spelling(text, path):
    assert parse_root_path(text) == path


@pytest.mark.parametrize("text", ["https://lab.example/t2v", "/a//b", "/..", "/a?b", "/a/./b"])
def test_a_root_path_that_is_no_path_is_refused_by_the_name_of_its_variable(text, monkeypatch):
    monkeypatch.setenv("T2V_ROOT_PATH", text)

    with pytest.raises(StudyError, match="T2V_ROOT_PATH: .* is not a path"):
        read_deployment(None, None)


def test_the_proxies_of_a_space_are_trusted_and_no_others(monkeypatch):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    monkeypatch.setenv("SPACE_ID", "")
    nowhere = read_deployment(None, None).proxies
    monkeypatch.setenv("SPACE_ID", "ada/t2v")
    space = read_deployment(None, None).proxies
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "192.0.2.1")

    assert nowhere == ""
    assert read_deployment(None, None).proxies == "192.0.2.1"
    for proxy in ("127.0.0.2", "10.20.0.3", "::1"):
        headers = {"x-forwarded-for": VISITOR}
        assert ask(headers=headers, client=proxy, proxies=space).json()["client"] == VISITOR
    assert (
        ask(headers={"x-forwarded-for": "198.51.100.1"}, client=VISITOR, proxies=space).json()[
            "client"
        ]
        == VISITOR
    )


@pytest.mark.parametrize(
    "text, sites",
    [
        ("https://lab.example", ("https://lab.example",)),
        (
            "https://a.example/, https://*.qualtrics.com",
            ("https://a.example", "https://*.qualtrics.com"),
        ),
        ("http://127.0.0.1:8000 *", ("http://127.0.0.1:8000", "*")),
        ("", ()),
    ],
)
def test_sites_that_may_show_the_page_are_a_list(text, sites):
    assert read_deployment(None, text).frames == sites


@pytest.mark.parametrize(
    "text",
    [
        "lab.example",
        "https://lab.example/page",
        "https://a; script-src *",
        "'none'",
        "https://",
        "https://a.*",
        "javascript:alert(1)",
        "https://lab.example\nx-evil:1",
    ],
)
def test_what_is_no_site_is_refused_by_the_name_of_the_flag(text):
    with pytest.raises(StudyError, match="--frame-ancestors: .* is not a site"):
        read_deployment(None, text)
