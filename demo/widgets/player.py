"""Video players: one looping clip, or several synchronised clips."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import gradio as gr

from demo.recipe_link import link_to
from demo.session import GeneratedClip
from demo.widgets.html import escape, file_url


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One video in the synchronised player. Without a clip, the note is shown instead."""

    title: str
    clip: GeneratedClip | None = None
    note: str = ""


_GHOST = """
...######...
..########..
.##########.
.##########.
###..##..###
###..##..###
############
############
############
############
##..####..##
#....##....#
"""


def show_no_clip() -> str:
    """Return the player before the first video."""
    return (
        '<div class="screen no-clip"><div class="glass">'
        f"{_ghost()}"
        "<p>Your video will appear here</p></div></div>"
    )


def _ghost() -> str:
    squares = "".join(
        f'<rect x="{x}" y="{y}" width="1.02" height="1.02"/>'
        for y, row in enumerate(_GHOST.split())
        for x, pixel in enumerate(row)
        if pixel == "#"
    )
    return f'<svg class="ghost" viewBox="0 0 12 12" aria-hidden="true">{squares}</svg>'


def show_clip(clip: GeneratedClip) -> str:
    """Return the looping, silent video with links to download it and its recipe."""
    recipe = json.dumps(clip.recipe, indent=2)
    name = f"t2v-turbo-{clip.recipe['model']}-{clip.recipe['seed']}"
    return (
        '<div class="screen"><div class="glass">'
        f'<video src="{file_url(clip.path)}" aria-label="Video: {escape(clip.recipe["prompt"])}"'
        " autoplay loop muted playsinline controls></video></div>"
        '<div class="links">'
        f'<a href="{file_url(clip.path)}" download="{escape(name)}.mp4">Download video</a>'
        f'<a href="data:application/json;charset=utf-8,{quote(recipe)}" '
        f'download="{escape(name)}.json">Download recipe</a>'
        f'<a href="{link_to(clip.recipe)}">Link to this recipe</a>'
        "</div></div>"
    )


def build_synced_player() -> gr.HTML:
    """Lay out the player of the Compare tab. Its value comes from `show_tiles`."""
    return gr.HTML(
        show_tiles([]), js_on_load=SYNCED_PLAYBACK, elem_id="synced-player", elem_classes="player"
    )


def show_tiles(tiles: Sequence[Tile]) -> str:
    """Return the tiles side by side above their common controls."""
    if not tiles:
        return '<div class="tiles-empty">The videos will appear here, side by side.</div>'
    clips = [tile.clip for tile in tiles if tile.clip]
    frames = min((clip.frames for clip in clips), default=1)
    fps = min((clip.fps for clip in clips), default=1.0)
    slowest = max((clip.seconds["total"] for clip in clips), default=1.0)
    cells = "".join(_tile(tile, slowest) for tile in tiles)
    return (
        f'<div class="tiles" data-fps="{fps:g}" data-frames="{frames}">{cells}</div>'
        f"{show_playback_controls(frames)}"
    )


def show_playback_controls(frames: int) -> str:
    """Return the buttons that `SYNCED_PLAYBACK` connects to the tiles above them."""
    return (
        '<div class="transport" role="group" aria-label="Playback of all videos">'
        '<button type="button" data-do="back" aria-label="One frame back">◂</button>'
        '<button type="button" data-do="play" aria-label="Pause">❚❚</button>'
        '<button type="button" data-do="next" aria-label="One frame forward">▸</button>'
        f'<span class="counter">frame 1 of {frames}</span></div>'
    )


def _tile(tile: Tile, slowest: float) -> str:
    if tile.clip is None:
        inside = f'<div class="glass waiting"><p>{escape(tile.note)}</p></div>'
        title = f"<figcaption><b>{escape(tile.title)}</b></figcaption>"
        return f'<figure class="tile">{title}{inside}</figure>'
    total, calls = tile.clip.seconds["total"], tile.clip.unet_calls
    return (
        f'<figure class="tile"><figcaption><b>{escape(tile.title)}</b></figcaption>'
        f'<div class="glass"><video src="{file_url(tile.clip.path)}" muted playsinline'
        f' preload="auto" aria-label="{escape(tile.title)}: {escape(tile.clip.recipe["prompt"])}">'
        "</video></div>"
        f'<div class="cost"><span>{total:.2f} s</span>'
        f"<span>{calls} network call{'' if calls == 1 else 's'}</span>"
        f'<a href="{link_to(tile.clip.recipe)}" aria-label="Link to {escape(tile.title)}">link</a>'
        f'</div><i class="bar" style="width:{max(100 * total / slowest, 1):.1f}%"></i></figure>'
    )


# All videos stay paused, and a clock seeks them to the middle of the same frame. They cannot drift
# apart, even if a decoder is slow. The page may replace the videos at any time, so every tick looks
# them up again.
SYNCED_PLAYBACK = """
const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
const clock = {frame: 0, playing: !still, since: 0};
const find = (name) => element.querySelector(name);
const paint = () => {
  const tiles = find('.tiles');
  if (!tiles) return;
  const fps = Number(tiles.dataset.fps);
  tiles.querySelectorAll('video').forEach((video) => {
    const due = (clock.frame + 0.5) / fps;
    if (video.readyState >= 1 && !video.seeking && Math.abs(video.currentTime - due) > 0.01) {
      video.currentTime = Math.min(due, video.duration - 0.01);
    }
  });
  find('.counter').textContent = `frame ${clock.frame + 1} of ${tiles.dataset.frames}`;
  const button = find('[data-do=play]');
  button.textContent = clock.playing ? '❚❚' : '▶';
  button.setAttribute('aria-label', clock.playing ? 'Pause' : 'Play');
};
const tick = (now) => {
  if (!element.isConnected) return;
  const tiles = find('.tiles');
  if (tiles && clock.playing && now - clock.since >= 1000 / Number(tiles.dataset.fps)) {
    clock.since = now;
    clock.frame = (clock.frame + 1) % Number(tiles.dataset.frames);
  }
  paint();
  requestAnimationFrame(tick);
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const frames = Number(find('.tiles').dataset.frames);
  if (button.dataset.do === 'play') {
    clock.playing = !clock.playing;
  } else {
    clock.playing = false;
    clock.frame = (clock.frame + (button.dataset.do === 'next' ? 1 : frames - 1)) % frames;
  }
  paint();
});
requestAnimationFrame(tick);
"""
