"""What the browser keeps of a visit: prompt, settings and the names of the clips.

They come back when the page is reloaded, and Gradio itself reloads it after a lost connection. The
storage ends with the browser's tab. The server believes none of it and checks every value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.clip_store import ClipStore
from demo.context import NO_QUEUE, PageContext
from demo.models import ModelInfo, RequestError, read_request
from demo.recipe_link import read_link
from demo.session import GeneratedClip
from demo.tabs.controls import Controls, show_request, show_settings
from demo.tabs.outputs import Outputs
from demo.widgets.history import MAX_CLIPS, show_history
from demo.widgets.player import show_no_clip
from demo.widgets.status import connect_end, idle_buttons, show_idle, show_refusal

MAX_SAVED = 20_000  # characters


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a browser has kept."""

    settings: dict[str, Any]  # for `show_settings`; none if this server does not accept them
    clips: tuple[GeneratedClip, ...]  # those that still exist, newest first
    unfinished: bool  # a computation ran when the page was left


def read_visit(saved: object, models: Mapping[str, ModelInfo], store: ClipStore) -> Visit | None:
    """Return the visit that a browser has kept; None if there is none."""
    if not isinstance(saved, str) or len(saved) > MAX_SAVED:
        return None
    try:
        kept = json.loads(saved)
    except (ValueError, RecursionError):
        return None
    if not isinstance(kept, dict):
        return None
    names = kept.get("clips")
    found = [store.find(name) for name in names[:MAX_CLIPS]] if isinstance(names, list) else []
    return Visit(
        clips=tuple(clip for clip in found if clip is not None and clip.recipe["model"] in models),
        unfinished=kept.get("unfinished") is True,
        settings=_read_settings(kept, models),
    )


def _read_settings(kept: Mapping[str, Any], models: Mapping[str, ModelInfo]) -> dict[str, Any]:
    """Return the settings if a request with them would be accepted; an empty prompt may be kept."""
    prompt = kept.get("prompt")
    settings = {name: kept.get(name) for name in ("steps", "guidance", "seed")}
    try:
        request = read_request(models, kept.get("model"), prompt or "a", **settings)
    except RequestError:
        return {}
    return {
        "prompt": prompt or "",
        "model": kept["model"],
        "steps": request.steps,
        "guidance": request.guidance,
        "seed": request.seed,
    }


def connect_visit(
    context: PageContext,
    controls: Controls,
    outputs: Outputs,
    generating: Dependency,
    computing: list[Dependency],
    tab: gr.Tab,
) -> None:
    """Keep the visit in the browser, and bring it back when the page is loaded again.

    Args:
        generating: the event of a generation.
        computing: the events of all computations, which Clear ends.
    """

    def on_load(saved: str, link: str) -> dict[Any, Any]:
        kept = read_visit(saved, context.models, context.engine.clips)
        shown: dict[Any, Any] = {outputs.clips: gr.skip()}
        if kept and kept.settings:
            shown |= show_settings(context, controls, **kept.settings)
        if kept and kept.clips:
            shown |= {outputs.clips: [*kept.clips], outputs.history: show_history(kept.clips)}
        if kept and kept.unfinished:
            shown[outputs.status] = show_refusal(
                "The page was loaded again before the video was finished. Press Generate to start "
                "again."
            )
        if link:
            try:
                model, request = read_link(link, context.models)
            except RequestError as refusal:
                return {**shown, outputs.status: show_refusal(str(refusal))}
            shown |= show_request(context, controls, model, request)
            shown[outputs.status] = show_idle("The settings of the link are filled in.")
        return shown

    def on_clear() -> dict[Any, Any]:
        first = context.models[context.default_model].world.examples[0]
        return {
            **show_settings(context, controls, context.default_model, first),
            outputs.clips: [],
            outputs.history: show_history([]),
            outputs.player: show_no_clip(),
            outputs.recipe: {},
            outputs.status: show_idle(),
            outputs.dropped.check: gr.Button(visible=False),
            **idle_buttons(controls.run, controls.stop),
        }

    page = tab.parent and tab.parent.parent
    assert isinstance(page, gr.Blocks)
    restored = [*controls.shown, outputs.clips, outputs.history, outputs.status]
    saved, link = gr.Textbox(visible=False), gr.Textbox(visible=False)  # arguments of `on_load`
    page.load(on_load, [saved, link], restored, js=READ, **NO_QUEUE)
    changes = [control.change for control in controls.settings]
    gr.on(changes, None, controls.settings, js=KEEP_SETTINGS, **NO_QUEUE)
    outputs.history.change(None, outputs.history, js=KEEP_CLIPS, **NO_QUEUE)
    clear = outputs.clear
    for ended in (generating.success, generating.failure, controls.stop.click, clear.click):
        ended(None, js=END, **NO_QUEUE)
    buttons = [outputs.dropped.check, controls.run, controls.stop]
    cleared = [*restored, outputs.player, outputs.recipe, *buttons]
    # A computation that goes on would bring back the videos and the prompt of its start.
    connect_end(computing, clear).then(on_clear, None, cleared, **NO_QUEUE)


# JavaScript of the page. A browser that blocks storage throws.
_STORAGE = """
const KEY = "t2v-turbo-visit";
const read = () => { try { return sessionStorage.getItem(KEY) || "{}"; } catch { return "{}"; } };
const keep = (more) => {
  try {
    sessionStorage.setItem(KEY, JSON.stringify({...JSON.parse(read()), ...more}));
  } catch {}
};
"""
# The settings change while the page is laid out. They are kept once the former ones are read.
# The settings of a link win, once: a reload brings back the visit.
READ = (
    "() => {"
    + _STORAGE
    + """
window.visitIsRead = true;
const address = new URL(location.href);
const link = address.searchParams.get("recipe") ?? "";
address.searchParams.delete("recipe");
if (link) history.replaceState(history.state, "", address);
return [read(), link];
}"""
)
KEEP_SETTINGS = (
    "(prompt, model, steps, guidance, seed) => {"
    + _STORAGE
    + "if (window.visitIsRead) keep({prompt, model, steps, guidance, seed}); }"
)
# A new clip also means that the computation has finished: Gradio may lose the event of its success.
KEEP_CLIPS = (
    "(history) => {"
    + _STORAGE
    + r"if (window.visitIsRead) "
    + r"keep({unfinished: false, clips: "
    + r"[...history.matchAll(/([0-9a-f]{16})\.mp4/g)].map((match) => match[1])}); }"
)
BEGIN = "() => {" + _STORAGE + "keep({unfinished: true}); }"
END = "() => {" + _STORAGE + "keep({unfinished: false}); }"
