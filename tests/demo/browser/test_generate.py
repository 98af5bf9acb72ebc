import json
import re
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest
from playwright.sync_api import expect

from tests.support.fake_engine import CONTACT
from tests.support.servers.reverse_proxy import reverse_proxy

pytestmark = pytest.mark.browser

VIDEO = "#screen video"
PLAYS = "() => document.querySelector('#screen video')?.readyState >= 2"

BLOCKED_STORAGE = """
for (const kind of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, kind, { get() { throw new DOMException("", "SecurityError"); } });
}
"""


def generate(page):
    page.get_by_role("button", name="Generate", exact=True).click()


def set_slider(page, name: str, value: float):
    box = page.get_by_label(f"number input for {name}")
    box.fill(str(value))
    box.press("Tab")


def read_recipe(page) -> dict:
    """Return the recipe that the page offers for download."""
    link = page.get_by_role("link", name="Download recipe")
    return json.loads(
        page.evaluate("url => fetch(url).then(r => r.text())", link.get_attribute("href"))
    )


def scrolls_sideways(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def is_reply_with(response, prop: str) -> bool:
    """Return whether a handler of the page has replied with a change of this property."""
    return "/gradio_api/run/" in response.url and f'"{prop}"' in response.text()


def toast(page):
    return page.locator("[data-testid=toast-body]").first


def test_a_prompt_with_other_settings_becomes_a_looping_video(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_label("Prompt", exact=True).fill("a blue heart jumping on a white background")
    set_slider(page, "Steps", 7)
    set_slider(page, "Guidance", 9.5)
    page.get_by_label("Seed", exact=True).fill("42")

    generate(page)
    page.get_by_text(re.compile(r"step \d of 7")).wait_for()
    page.get_by_text("Done in").wait_for()

    page.wait_for_function(PLAYS)
    looks = page.eval_on_selector(
        VIDEO, "v => [v.loop, v.muted, v.duration, getComputedStyle(v).imageRendering]"
    )
    assert looks == [True, True, pytest.approx(2.0, abs=0.2), "pixelated"]
    recipe = read_recipe(page)
    assert (recipe["steps"], recipe["guidance"], recipe["seed"]) == (7, 9.5, 42)
    assert "text" in page.locator("#status").inner_text()
    href = page.get_by_role("link", name="Download video").get_attribute("href")
    with urlopen(f"{fake_server.url}/{href}") as file:
        assert file.read(12)[4:8] == b"ftyp"

    link = page.get_by_role("link", name="Link to this recipe").evaluate("link => link.href")
    report = page.get_by_role("link", name="Report a video")
    report.evaluate("link => link.addEventListener('click', event => event.preventDefault())")
    report.click()
    mail = urlsplit(report.get_attribute("href"))
    assert (mail.scheme, mail.path) == ("mailto", CONTACT)
    assert parse_qs(mail.query)["body"][0].strip() == link


def test_stop_ends_the_computation_within_a_step(fake_server, open_page):
    page = open_page(fake_server)
    choose_model(page, "Fake teacher")
    page.get_by_text("The default of this model is 50").wait_for()  # the reply resets the sliders
    set_slider(page, "Steps", 57)
    generate(page)
    page.get_by_text(re.compile(r"step \d+ of 57")).wait_for()

    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped.").wait_for()

    assert fake_server.steps_until_stopped() <= 2
    assert page.get_by_role("button", name="Generate", exact=True).is_enabled()
    assert page.get_by_role("button", name="Stop", exact=True).is_disabled()
    generate(page)
    page.get_by_text(re.compile(r"step \d+ of 57")).wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped.").wait_for()


def choose_model(page, title: str):
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name=title).click()


def test_the_sliders_follow_the_model_and_explain_guidance(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_text("Embedded w: one call a step").wait_for()

    choose_model(page, "Fake teacher")

    page.get_by_text("Classifier-free: two calls a step").wait_for()
    assert page.get_by_label("number input for Steps").input_value() == "50"
    assert page.get_by_label("number input for Guidance").input_value() == "3"


def test_the_sliders_are_reset_by_another_model_alone(fake_server, open_page):
    page = open_page(fake_server)
    steps = page.get_by_label("number input for Steps")
    replies = []
    page.on("response", lambda r: replies.append(r) if is_reply_with(r, "minimum") else None)
    choose_model(page, "Fake teacher")
    page.get_by_text("The default of this model is 50").wait_for()
    set_slider(page, "Steps", 57)

    page.get_by_label("Model", exact=True).focus()
    page.keyboard.press("Escape")  # closes the list
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)

    assert (len(replies), steps.input_value()) == (1, "57")
    page.get_by_label("Model", exact=True).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.get_by_text("The default of this model is 4").wait_for()
    assert steps.input_value() == "4"


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("   ", "The prompt is empty"),
        ("x" * 10_000, "The prompt has 10000 characters"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_the_reason(
    fake_server, open_page, prompt, message
):
    page = open_page(fake_server)
    page.get_by_label("Prompt", exact=True).fill(prompt)

    generate(page)

    expect(toast(page)).to_contain_text(message, timeout=20_000)
    expect(page.locator("#status")).to_contain_text(message)
    assert page.get_by_role("button", name="Generate", exact=True).is_enabled()


def test_a_seed_out_of_range_is_refused_with_the_reason(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_label("Seed", exact=True).fill("-5")

    generate(page)

    expect(toast(page)).to_contain_text("The seed must be a whole number", timeout=20_000)


def test_a_refused_request_is_reported_in_the_status_line(fake_server, open_page):
    page = open_page(fake_server, errors_expected=True)
    page.route("**/queue/join*", lambda route: route.fulfill(status=429, json={"detail": "Wait."}))

    generate(page)

    page.locator("#status").get_by_text("The server did not accept the request.").wait_for()
    toast(page).get_by_text("Wait.").wait_for()
    page.unroute("**/queue/join*")
    generate(page)
    page.get_by_text("Done in").wait_for()


@pytest.fixture(scope="module")
def space_server(serve):
    """The page as a Space starts it: the proxies of the platform are trusted."""
    return serve("-m", "tests.support.servers.fake_engine_server", SPACE_ID="ada/t2v")


@pytest.mark.slow
@pytest.mark.parametrize(
    "proxy",
    [
        {
            "sources": ("127.0.0.1", "127.0.0.2", "127.0.0.3"),
            "headers": {"x-forwarded-for": "203.0.113.7"},
        },
        {"strip": False, "headers": {"x-forwarded-prefix": "/t2v"}},
        {"keep_host": False, "headers": {"x-forwarded-host": "elsewhere.example"}},
    ],
    ids=["several addresses", "the prefix is kept", "a host that the browser does not see"],
)
def test_the_page_works_behind_a_proxy_below_a_path(space_server, open_page, proxy):
    with reverse_proxy(space_server.url, prefix="/t2v", **proxy) as url:
        # The proxy's end is an error.
        page = open_page(replace(space_server, url=url), errors_expected=True)
        generate(page)

        page.get_by_text("Done in").wait_for()
        page.wait_for_function(PLAYS)
        page.get_by_role("tab", name="Rate", exact=True).click()
        page.frame_locator("iframe.rate-frame").locator("#begin").wait_for()


def test_a_failed_computation_is_reported_without_details(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_label("Prompt", exact=True).fill("explode")

    generate(page)

    expect(toast(page)).to_contain_text("The computation failed (RuntimeError)", timeout=20_000)
    assert "/etc/secret" not in page.content()


@pytest.mark.slow
def test_an_example_fills_in_the_prompt(fake_server, open_page):
    page = open_page(fake_server)

    page.get_by_role("button", name="a green circle standing still in the desert").click()

    page.wait_for_function(
        "document.querySelector('#prompt textarea').value.startsWith('a green circle')"
    )


def test_an_unknown_prompt_gets_a_notice_with_a_suggestion_and_still_runs(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_label("Prompt", exact=True).fill("a blue corgi 🏄 surfing <b>at</b> ${sunset}")

    page.get_by_role("button", name="Generate", exact=True).hover()
    page.mouse.down()  # the prompt loses the focus, so the notice appears
    page.get_by_text("Fake student does not know this prompt.").first.wait_for()
    page.mouse.up()  # the button must still be there

    page.get_by_text("Done in").wait_for()
    page.get_by_role("button", name=re.compile("Use .a blue ")).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('a blue ')")
    page.get_by_text("does not know this prompt").first.wait_for(state="hidden")
    assert "${sunset}" in page.locator("#history").inner_text()


def test_the_history_restores_a_video_and_its_settings(fake_server, open_page):
    page = open_page(fake_server)
    first = "a red star jumping in the desert"
    for prompt, steps in ((first, 2), ("a blue star jumping in the desert", 1)):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        set_slider(page, "Steps", steps)
        generate(page)
        page.locator(f"#history [aria-label='Show again: {prompt}']").wait_for()

    page.get_by_role("button", name=f"Show again: {first}").click()

    page.locator(f"{VIDEO}[aria-label='Video: {first}']").wait_for()
    assert read_recipe(page)["steps"] == 2
    page.wait_for_function(f"document.querySelector('#prompt textarea').value === '{first}'")
    assert page.get_by_label("number input for Steps").input_value() == "2"


def test_a_reload_keeps_the_visit_until_it_is_cleared(fake_server, open_page):
    page = open_page(fake_server)
    prompt = "a blue circle jumping in the desert"
    page.get_by_label("Prompt", exact=True).fill(prompt)
    set_slider(page, "Steps", 3)
    page.get_by_label("Seed", exact=True).fill("77")
    generate(page)
    again = page.get_by_role("button", name=f"Show again: {prompt}")
    again.wait_for()
    page.get_by_label("Prompt", exact=True).fill("half a pro")
    page.wait_for_timeout(500)  # until the events of the end have run

    page.reload()
    again.wait_for()
    expect(page.locator("#status")).to_contain_text("Ready")
    again.click()
    page.locator(f"{VIDEO}[aria-label='Video: {prompt}']").wait_for()
    page.get_by_label("Prompt", exact=True).fill("half a pro")
    page.reload()

    page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'half a pro'")
    page.wait_for_function("document.querySelector('#seed input').value === '77'")
    assert page.get_by_label("number input for Steps").input_value() == "3"
    page.get_by_role("button", name="Clear", exact=True).click()
    again.wait_for(state="detached")
    page.reload()
    page.get_by_text("Videos of this visit appear here").wait_for()
    page.wait_for_function(
        "document.querySelector('#prompt textarea')?.value.startsWith('a red star')"
    )


def test_clear_ends_the_computation_that_would_bring_the_visit_back(fake_server, open_page):
    page = open_page(fake_server)
    set_slider(page, "Steps", 1)
    generate(page)
    page.locator("#history button").wait_for()
    set_slider(page, "Steps", 8)
    generate(page)
    page.get_by_text(re.compile(r"step \d of 8")).wait_for()

    page.get_by_role("button", name="Clear", exact=True).click()

    page.get_by_text("Your video will appear here").wait_for()
    assert fake_server.steps_until_stopped() <= 2
    page.wait_for_timeout(500)
    expect(page.locator("#status")).to_contain_text("Ready")
    assert page.locator("#history button").count() == 0
    assert page.get_by_role("button", name="Generate", exact=True).is_enabled()
    assert page.get_by_role("button", name="Stop", exact=True).is_disabled()
    page.reload()
    page.get_by_text("Videos of this visit appear here").wait_for()
    expect(page.locator("#status")).to_contain_text("Ready")


def test_a_video_that_is_dropped_or_linked_gives_its_settings_back(
    fake_server, open_page, tmp_path
):
    page = open_page(fake_server, errors_expected=True)  # of the file that is refused
    prompt = "a red star jumping in the desert"
    page.get_by_label("Prompt", exact=True).fill(prompt)
    set_slider(page, "Steps", 3)
    generate(page)
    page.get_by_text("Done in").wait_for()
    link = page.get_by_role("link", name="Link to this recipe").get_attribute("href")
    clip = tmp_path / "clip.mp4"
    href = page.get_by_role("link", name="Download video").get_attribute("href")
    with urlopen(f"{fake_server.url}/{href}") as file:
        clip.write_bytes(file.read())
    page.get_by_role("button", name="Clear", exact=True).click()
    page.get_by_text("Your video will appear here").wait_for()

    def is_filled_in(message: str):
        page.locator("#status").get_by_text(message).wait_for()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
        expect(page.get_by_label("number input for Steps")).to_have_value("3")

    page.locator("#drop input").set_input_files(clip)
    is_filled_in("The settings of the video are filled in.")
    page.get_by_role("button", name="Check the dropped video").click()
    page.locator("#status").get_by_text("Made by this recipe, bit for bit.").wait_for()
    page.get_by_role("button", name="Clear", exact=True).click()
    page.get_by_text("Your video will appear here").wait_for()

    page.goto(f"{fake_server.url}/{link}")
    is_filled_in("The settings of the link are filled in.")
    assert "recipe" not in page.url

    (tmp_path / "other.mp4").write_bytes(b"no video")
    page.locator("#drop input").set_input_files(tmp_path / "other.mp4")
    page.locator("#drop").get_by_text("This file is not an mp4 video").wait_for()


@pytest.mark.slow
def test_the_new_seed_button_draws_another_seed(fake_server, open_page):
    page = open_page(fake_server)

    page.locator("#new-seed").click()

    page.wait_for_function("document.querySelector('#seed input').value !== '0'")


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_the_guidelines_are_shown_once_over_a_page_that_does_not_move(
    fake_server, open_page, width
):
    page = open_page(fake_server, width=width)
    place = page.locator("#generate").bounding_box()
    dialog = page.get_by_role("dialog", name="Usage guidelines")
    link = page.get_by_role("button", name="usage guidelines")
    page.evaluate("localStorage.clear()")
    page.reload()

    dialog.wait_for()
    assert page.locator("#generate").bounding_box() == place
    assert page.evaluate("document.activeElement.textContent") == "Usage guidelines"
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["y"] >= 0 and box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= 900
    for _ in range(4):  # the page behind it is out of reach
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog, body').tagName") in (
            "DIALOG",
            "BODY",  # the browser's own controls
        )
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.reload()
    link.click()  # would be covered by an open dialog
    page.locator("#guidelines-accept").click()
    assert page.evaluate("document.activeElement.textContent") == "usage guidelines"


@pytest.mark.slow
def test_the_guidelines_are_shown_at_every_visit_where_storage_is_blocked(fake_server, open_page):
    page = open_page(fake_server, errors_expected=True)
    page.add_init_script(BLOCKED_STORAGE)
    page.goto(f"{fake_server.url}/healthz")
    page.set_content(f'<iframe src="{fake_server.url}" style="width:100%;height:90vh">')
    inside = page.frame_locator("iframe")

    inside.locator("#guidelines-accept").click()

    inside.get_by_role("dialog").wait_for(state="hidden")


@pytest.mark.slow
def test_the_page_can_be_installed_as_an_app(fake_server, open_page):
    page = open_page(fake_server)
    browser = page.context.new_cdp_session(page)

    found = browser.send("Page.getAppManifest")
    manifest = json.loads(found["data"])

    assert found["url"] == f"{fake_server.url}/manifest.json" and not found["errors"]
    assert (manifest["name"], manifest["display"]) == ("T2V-Turbo", "standalone")
    icons = [f"{fake_server.url}/{icon['src']}" for icon in manifest["icons"]]
    assert icons and all(page.request.get(icon).ok for icon in icons)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_scrolls_sideways(fake_server, open_page, width, theme):
    page = open_page(fake_server, width=width, theme=theme)
    page.get_by_label("Prompt", exact=True).fill("w" * 300)

    generate(page)

    page.locator("#history button").wait_for()
    page.get_by_text("Done in").wait_for()
    assert not scrolls_sideways(page)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).wait_for()
    assert not scrolls_sideways(page)


@pytest.mark.slow
def test_text_is_light_on_dark_and_dark_on_light(fake_server, open_page):
    def brightness(theme: str) -> int:
        page = open_page(fake_server, theme=theme)
        colour = page.eval_on_selector("#page-header h1", "e => getComputedStyle(e).color")
        return sum(int(number) for number in re.findall(r"\d+", colour)[:3])

    assert brightness("light") < 150 < 600 < brightness("dark")


def test_every_control_has_a_name(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_role("button", name="a green circle").wait_for()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, video')]
        .filter(e => e.offsetParent && !(e.ariaLabel || e.innerText?.trim() || e.title
          || e.labels?.length || e.getAttribute('aria-labelledby')))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


@pytest.mark.slow
def test_the_page_works_while_the_model_still_loads(serve, open_page, tmp_path):
    loaded = tmp_path / "loaded"
    server = serve("-m", "tests.support.servers.fake_engine_server", "--load-when", str(loaded))
    page = open_page(server, loading=True)
    page.get_by_text("The model is loading.").wait_for()

    generate(page)

    page.locator("#status").get_by_text("Loading the model").wait_for()
    loaded.touch()
    page.get_by_text("Done in").wait_for()
    page.get_by_text("The model is loading.").wait_for(state="hidden")
