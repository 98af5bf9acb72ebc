"""A video of this page that is dropped on it: its recipe comes back, and can be checked."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from demo.dropped_clips import MAX_BYTES

_ZONE = f"""
<label class="drop-zone" data-limit="{MAX_BYTES}">
<span role="status">Drop a video of this page here, or choose one, to get its recipe back.</span>
<input type="file" accept="video/mp4,.mp4" class="visually-hidden"></label>
"""


class DroppedVideo:
    """Where a visitor drops a video. Its `upload` event has the name of the `clip`."""

    def __init__(self) -> None:
        self.zone = gr.HTML(
            _ZONE, js_on_load=_SEND_DROPPED, apply_default_css=False, elem_id="drop"
        )
        self.check = gr.Button(
            "Check the dropped video against its recipe",
            size="sm",
            visible=False,
            elem_id="check-drop",
        )
        self.name = gr.State("")  # in `DroppedClips`


def describe_comparison(
    found: Mapping[str, Any], dropped: Mapping[str, Any], made: Mapping[str, Any]
) -> str:
    """Return what the comparison of a dropped video with ours means, in words.

    Args:
        found: the fields of `turbo.provenance.Comparison`.
        dropped: the recipe that the dropped video carries.
        made: the recipe of our video.
    """
    if found["kind"] == "file":
        return "Made by this recipe, bit for bit."
    numbers = (
        f"{found['different']} of {found['frames']} frames differ; frame {found['worst']} differs "
        f"most, by {found['largest']} of 255 levels."
    )
    text = {
        "frames": "Its frames are made by this recipe, bit for bit. The rest of the file is not.",
        "encoded again": "This video was encoded again, by another program or with other settings.",
        "other frames": f"Not made by this recipe: {numbers}",
        "other size": "Not made by this recipe: the video has another size.",
    }[found["kind"]]
    if found["kind"] == "encoded again" and found["frames"]:
        text += f" {numbers}"
    fields = sorted(name for name in {*dropped, *made} if dropped.get(name) != made.get(name))
    if fields:
        text += " Its recipe differs from the one made here in: " + ", ".join(
            f"{name[:30]} ({_short(dropped.get(name))}; here {_short(made.get(name))})"
            for name in fields[:6]
        )
        text += "."
    return text


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


_SEND_DROPPED = """
const input = element.querySelector('input');
const status = element.querySelector('[role=status]');
const limit = Number(element.querySelector('label').dataset.limit);
const idle = status.textContent;
const say = (text) => { status.textContent = text; };
const send = async (file) => {
  if (!/\\.mp4$/i.test(file.name)) return say('This is no mp4 file. Drop a video of this page.');
  if (file.size > limit) return say(`The video is too large. The limit is ${limit >> 20} MB.`);
  say('Reading the video…');
  try {
    const headers = {'content-type': 'video/mp4'};
    const reply = await fetch('dropped', {method: 'POST', headers, body: file});
    const answer = await reply.json();
    say(reply.ok ? idle : answer.detail);
    if (reply.ok) trigger('upload', {clip: answer.clip});
  } catch {
    say('The video did not reach the server. Try again.');
  }
};
input.addEventListener('change', () => {
  if (input.files[0]) send(input.files[0]);
  input.value = '';
});
const carriesFiles = (event) => event.dataTransfer?.types.includes('Files');
window.addEventListener('dragover', (event) => {
  if (carriesFiles(event)) event.preventDefault();
});
window.addEventListener('drop', (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
"""
