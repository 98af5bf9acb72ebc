"""What the browser keeps of a visit: prompt, settings and the names of the clips.

They come back when the page is reloaded, and Gradio itself reloads it after a lost connection. The
storage ends with the browser's tab. The server believes none of it and checks every value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo.clip_store import ClipStore
from demo.models import ModelInfo, RequestError, read_request
from demo.session import GeneratedClip
from demo.widgets.history import MAX_CLIPS

MAX_SAVED = 20_000  # characters


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a browser has kept. Settings that this server does not accept are None."""

    prompt: str | None = None
    model: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    clips: tuple[GeneratedClip, ...] = ()  # those that still exist, newest first
    unfinished: bool = False  # a computation ran when the page was left


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
        **_read_settings(kept, models),
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
        "prompt": prompt,
        "model": kept["model"],
        "steps": request.steps,
        "guidance": request.guidance,
        "seed": request.seed,
    }


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
