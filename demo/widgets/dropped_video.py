"""The place where a visitor drops a video of this page, to get its recipe back."""

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


_SEND_DROPPED = """
const input = element.querySelector('input');
const status = element.querySelector('[role=status]');
const limit = Number(element.querySelector('label').dataset.limit);
const idle = status.textContent;
const say = (text) => { status.textContent = text; };
const send = async (file) => {
  if (!/\\.mp4$/i.test(file.name)) return say('This is not an mp4 video. Drop one of this page.');
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
