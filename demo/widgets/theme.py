"""The theme and styles of the page, and its header and footer."""

import gradio as gr

HEADER = """
<div>
  <h1><span class="mark" aria-hidden="true"><i></i><i></i><i></i><i></i></span>T2V-Turbo</h1>
  <p>Text to video in four network steps, by consistency distillation. The models on this page
  were trained on a small world of pixel-art clips.</p>
</div>
"""

FOOTER = """
<div>
  <p>Prompts are not logged. Videos stay on this machine until newer videos replace them.</p>
  <p>Based on <a href="https://arxiv.org/abs/2405.18750">T2V-Turbo</a> and
  <a href="https://arxiv.org/abs/2410.05677">T2V-Turbo-v2</a>. Apache-2.0.</p>
</div>
"""

_READINESS = {
    "loading": "The model is loading.",
    "ready": "The model is ready.",
    "failed": "The model did not load: see the log.",
}


def show_readiness(state: str) -> str:
    """Return the line for "loading", "ready" or "failed"."""
    return f'<p class="badge {state}" role="status">{_READINESS[state]}</p>'


def build_theme() -> gr.themes.Base:
    """Return the theme: paper colours, one warm accent, system fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_sm,
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="#f7f4ee",
        body_background_fill_dark="#161412",
        block_background_fill="#fffdf9",
        block_background_fill_dark="#211e1b",
        block_border_width="1px",
        block_border_color="#e4ddd0",
        block_border_color_dark="#38332d",
        block_label_text_color="#5c5345",
        block_label_text_color_dark="#c9bfae",
        block_title_text_color="#3c352a",
        block_title_text_color_dark="#e6dccb",
        block_info_text_color="#6b6152",
        block_info_text_color_dark="#a89d8b",
        input_background_fill="#ffffff",
        input_background_fill_dark="#191714",
        button_primary_background_fill="#b8430f",
        button_primary_background_fill_hover="#9a370b",
        button_primary_background_fill_dark="#e8793f",
        button_primary_background_fill_hover_dark="#f39561",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#1d0f06",
        button_secondary_background_fill="#efe8db",
        button_secondary_background_fill_hover="#e4dac8",
        button_secondary_background_fill_dark="#332d27",
        button_secondary_background_fill_hover_dark="#40382f",
        button_secondary_text_color="#2b2620",
        button_secondary_text_color_dark="#efe7d9",
        input_border_width="1px",
        input_border_color="#d6ccba",
        input_border_color_dark="#453e36",
        slider_color="#b8430f",
        slider_color_dark="#e8793f",
    )


CSS = """
:root { --ink: #2b2620; --quiet: #6b6152; --line: #e4ddd0; --accent: #b8430f; --glass: #14120f;
  --panel: #fffdf9; --warn: #fff3dc; --warn-line: #e8c987; }
.dark { --ink: #efe7d9; --quiet: #a89d8b; --line: #38332d; --accent: #f0854c; --glass: #0c0b09;
  --panel: #211e1b; --warn: #33270f; --warn-line: #6e5520; }
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container, .gradio-container p, .gradio-container li { color: var(--ink); }
.gradio-container a { color: var(--accent) !important; text-decoration: underline; }
button:focus-visible, a:focus-visible, input[type=range]:focus-visible,
input[type=number]:focus-visible, textarea:focus-visible {
  outline: 2px solid var(--accent) !important; outline-offset: 2px; }

.html-container { padding: 0 !important; }

#page-header h1 { display: flex; align-items: center; gap: .55rem; margin: .4rem 0 .2rem;
  font: 700 1.7rem/1.2 ui-monospace, Menlo, Consolas, monospace; letter-spacing: -.02em; }
#page-header p { margin: 0; max-width: 64ch; color: var(--quiet); }
.mark { display: grid; grid-template-columns: repeat(2, .55rem); gap: .12rem; }
.mark i { height: .55rem; background: var(--accent); }
.mark i:nth-child(2) { opacity: .65; } .mark i:nth-child(3) { opacity: .4; }
.mark i:nth-child(4) { opacity: .85; }
#page-footer { margin-top: 1rem; }
#page-footer a { margin: 0; padding: 0; }
#page-footer p { margin: .15rem 0; font-size: .82rem; color: var(--quiet); }
/* A dot that separates links, of which there is one. */
footer .divider { display: none !important; }
#page-top { gap: 0 1.2rem; }
#page-top > * { flex: 0 1 auto; width: auto; min-width: 0; max-width: 100%; }
#page-top p { margin: 0; color: var(--quiet); font-size: .88rem; }
.badge::before { content: ""; display: inline-block; width: .55rem; height: .55rem;
  margin-right: .45rem; border-radius: 50%; background: #2e8b57; }
.badge.loading::before { background: #d99a1c; } .badge.failed::before { background: #c0392b; }
button.link { color: var(--accent); text-decoration: underline; cursor: pointer; }
#guidelines dialog { position: fixed; inset: 0; width: min(40rem, calc(100vw - 1.5rem));
  height: fit-content; max-height: calc(100svh - 1.5rem); margin: auto; padding: 1.1rem 1.2rem;
  overflow: auto; color: var(--ink); background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; }
#guidelines dialog::backdrop { background: rgb(0 0 0 / .55); }
#guidelines dialog h2 { margin: 0 0 .5rem; font-size: 1.15rem; font-weight: 700; outline: none; }
#guidelines dialog p, #guidelines dialog li { margin: .5rem 0; color: var(--ink); font-size: 1rem; }
#guidelines dialog ul { margin: .5rem 0 .5rem 1.1rem; list-style: disc; }
#guidelines-accept { margin-top: .9rem; padding: .6rem 1rem; border-radius: 4px; font-weight: 600;
  color: var(--panel); background: var(--accent); cursor: pointer; }
.heading h2 { margin: .3rem 0 0; font-size: .95rem; font-weight: 600; }
.lead-in p { margin: 0; color: var(--quiet); max-width: 80ch; }
.quiet { margin: 0; color: var(--quiet) !important; font-size: .88rem; }

.notice { border: 1px solid var(--warn-line) !important; background: var(--warn) !important; }
.notice > *, .notice .block { background: transparent !important; border: 0 !important; }
.notice .styler { background: transparent !important; gap: 0 !important; padding: .7rem .8rem; }
.notice p { margin: 0 0 .35rem; }
.notice dl { display: grid; grid-template-columns: auto 1fr; gap: .15rem .8rem;
  margin: 0 0 .6rem; font-size: .9rem; }
.notice dt { font-weight: 600; color: var(--ink); } .notice dd { margin: 0; color: var(--ink); }
.notice button.suggestion { margin-top: .3rem; white-space: normal; text-align: left; }
.seed-row, .compare-controls { align-items: end; }
.seed-row, .actions { flex-wrap: nowrap !important; }
button[role=tab].selected { color: var(--accent) !important; }
button[role=tab].selected::after { background: var(--accent) !important; }
#new-seed, #compare-new-seed { height: 2.65rem; }

#examples button { text-align: left; }

.glass { position: relative; display: grid; place-items: center; aspect-ratio: 1; width: 100%;
  overflow: hidden; background: var(--glass); border-radius: 4px; }
.glass video { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.glass p { color: #b5aa98 !important; margin: 0; }
.screen .glass { max-width: 512px; margin: 0 auto; }
.screen.no-clip .glass { align-content: center; gap: 1rem; }
.ghost { width: 6rem; fill: #e8793f; shape-rendering: crispEdges; }
.links { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; justify-content: center;
  padding-top: .5rem; font-size: .9rem; }

.drop-zone { display: block; padding: .8rem; text-align: center; font-size: .88rem;
  color: var(--quiet); border: 1px dashed var(--line); border-radius: 4px; cursor: pointer; }
.drop-zone:hover { border-color: var(--accent); }
.drop-zone:focus-within { outline: 2px solid var(--accent); outline-offset: 2px; }

.status-line { border: 1px solid var(--line); background: var(--panel); border-radius: 4px;
  overflow: hidden; min-height: 3.1rem; display: flex; flex-direction: column; }
.status-text { display: flex; flex-wrap: wrap; gap: .1rem .9rem; padding: .55rem .8rem .45rem;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.status-text span { color: var(--quiet); }
.status-bar { margin-top: auto; height: 4px; background: var(--line); }
.status-bar i { display: block; height: 100%; background: var(--accent); transition: width .2s; }
.status-line.idle .status-bar, .status-line.refused .status-bar { display: none; }
.status-line.idle .status-text, .status-line.refused .status-text { padding: .75rem .8rem; }
.status-line.refused { border-color: #c0392b; }
.status-line.refused .status-text { color: #b3261e; font-weight: 600; }
.dark .status-line.refused .status-text { color: #ff9c8f; }

/* Gradio's place in the queue covers the status line. Its error mark is hidden. */
#status .error, #compare-status .error, .clear-status { display: none !important; }
#status .wrap, #compare-status .wrap { inset: 0; }
#status .progress-text, #compare-status .progress-text { position: absolute; inset: 0 auto auto 0;
  transform: none; width: 100%; padding: .75rem .8rem; color: var(--ink); z-index: 40;
  background: var(--panel); border: 1px solid var(--line); border-radius: 4px; }

.clips { display: grid; gap: .4rem; }
.clips button { display: flex; gap: .7rem; align-items: center; width: 100%; padding: .4rem;
  text-align: left; border: 1px solid var(--line); border-radius: 4px; background: var(--panel);
  color: var(--ink); cursor: pointer; }
.clips button:hover { border-color: var(--accent); }
.clips video { flex: none; width: 56px; height: 56px; image-rendering: pixelated;
  border-radius: 3px; background: var(--glass); object-fit: contain; }
.clips span { display: grid; min-width: 0; }
.clips b { font-weight: 600; overflow-wrap: anywhere; display: -webkit-box;
  -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; }
.clips em { font-style: normal; font-weight: 400; font-size: .82rem;
  color: var(--quiet); overflow-wrap: anywhere; }

.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.tile { margin: 0; min-width: 0; }
.tile figcaption { padding-bottom: .3rem; min-height: 1.9rem; }
.cost { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .8rem;
  padding-top: .35rem; font-variant-numeric: tabular-nums; font-size: .9rem; }
.cost span:first-child { font-weight: 700; }
.bar { display: block; height: 4px; background: var(--accent); margin-top: .25rem; }
.tiles-empty { padding: 2.5rem 1rem; text-align: center; color: var(--quiet);
  border: 1px dashed var(--line); border-radius: 4px; }
.transport { display: flex; gap: .5rem; align-items: center; justify-content: center;
  padding-top: .9rem; }
.transport button { display: grid; place-items: center; padding: 0; font-size: .9rem;
  width: 2.75rem; height: 2.75rem; border: 1px solid var(--line);
  border-radius: 4px; background: var(--panel); color: var(--ink); cursor: pointer; }
.transport button:hover { border-color: var(--accent); }
.counter { color: var(--quiet); min-width: 7.5em; font-variant-numeric: tabular-nums; }

.rate-frame { display: block; width: 100%; height: 860px; border: 1px solid var(--line);
  border-radius: 4px; background: var(--panel); }
.rate .quiet { padding-bottom: .5rem; }
.results-controls { align-items: end; }
.empty { padding: 2.5rem 1rem; text-align: center; color: var(--quiet) !important;
  border: 1px dashed var(--line); border-radius: 4px; }
.facts { margin: 0 0 .3rem; }
.win-rates { --a: #1f5a96; --b: #e59a3c; --tie: #c9c9c9; --both-bad: #8d8d8d; --range: #2b2620;
  position: relative; padding: .9rem 1rem; border: 1px solid var(--line); border-radius: 4px;
  background: var(--panel); }
.dark .win-rates { --range: #efe7d9; }
.win-rates table { width: 100%; border-collapse: collapse; margin: 0 0 1.1rem;
  table-layout: fixed; }
.win-rates table, .win-rates tr, .win-rates th, .win-rates td { border: 0 !important; }
.win-rates th, .win-rates td { padding: .35rem 0; text-align: left; vertical-align: top;
  font-weight: 400; color: var(--ink); background: transparent; }
.win-rates tbody th { width: 30%; padding-right: 1rem; font-size: .9rem; line-height: 1.35; }
.win-rates .numbers { width: 26%; padding-left: 1rem; font-size: .88rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
.win-rates .numbers span { color: var(--quiet); white-space: nowrap; }
.win-rates .numbers b { font-size: 1.05rem; }
.win-rates .numbers p { margin: 0; color: var(--quiet); }
.win-rates .primary th, .win-rates .primary th b { font-weight: 700; }
.win-rates .names th { display: flex; justify-content: space-between; gap: 1rem; font-weight: 700; }
.names .a { color: #1f5a96; } .names .b { color: #8f5206; text-align: right; }
.dark .names .a { color: #86b8ea; } .dark .names .b { color: #f0b163; }
.stack { display: flex; height: 1.7rem; border-radius: 3px; overflow: hidden; }
.stack i { display: grid; place-items: center; font: 600 .82rem/1 ui-sans-serif, system-ui;
  color: #1c1c1c; min-width: 0; }
.stack .a { background: var(--a); color: #fff; } .stack .b { background: var(--b); }
.stack .tie, .legend .tie { background: var(--tie); }
.stack .both_bad, .legend .both_bad { background: var(--both-bad); }
.scale { position: relative; display: block; height: .9rem; }
.scale i { position: absolute; top: .45rem; }
.scale .half { left: 50%; top: 0; height: 100%; border-left: 1px dashed var(--quiet); }
.scale .range { height: 2px; background: var(--range); }
.scale .dot { width: .5rem; height: .5rem; margin: -.2rem 0 0 -.25rem; border-radius: 50%;
  background: var(--range); }
.verdict { display: inline-block; padding: 0 .45rem; border: 1px solid var(--quiet);
  border-radius: 99px; font: 600 .76rem/1.5 ui-sans-serif, system-ui; color: var(--ink); }
.verdict.decided { background: #1f6b3a; border-color: #1f6b3a; color: #fff; }
.stamp { margin: 0 0 .6rem; padding: .3rem .6rem; border: 2px solid #b3261e; border-radius: 4px;
  color: #b3261e !important; font-weight: 700; letter-spacing: .04em; text-transform: uppercase;
  font-size: .85rem; width: fit-content; }
.dark .stamp { color: #ff9c8f !important; border-color: #ff9c8f; }
.legend { display: flex; gap: 1rem; margin: 0 0 .5rem; font-size: .85rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.visually-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
.wide { overflow-x: auto; }
.plain { width: 100%; border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
.plain, .plain tr { border: 0 !important; }
.plain th, .plain td { padding: .3rem .8rem .3rem 0 !important; text-align: left;
  color: var(--ink); border: 0 !important; border-bottom: 1px solid var(--line) !important;
  white-space: nowrap; }
.plain thead th { color: var(--quiet); font-weight: 600; }
.tiles.two { max-width: 720px; }
#results-pairs .form { background: transparent; border: 0; justify-content: start; }
#results-pair-number { max-width: 12rem; flex: none; }
.tiles.two + .transport { max-width: 720px; }

@media (max-width: 640px) {
  .tab-container button { padding-inline: .55rem !important; }  /* four tabs fit on a phone */
  .rate-frame { height: 100svh; }
  .results-controls, .results-controls .form { flex-direction: column; align-items: stretch; }
  .win-rates { padding: .7rem .6rem; }
  .win-rates table, .win-rates tbody, .win-rates tr, .win-rates th, .win-rates td,
  .win-rates .numbers, .win-rates tbody th { display: block; width: 100%; padding: .1rem 0; }
  .win-rates thead, .win-rates .names { display: block; }
  .win-rates tbody tr { padding-bottom: .6rem; }
  .gradio-container { padding: 0 .5rem !important; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .tile figcaption { font-size: .85rem; }
}
"""
