"""VBench: plan the clips, make and score them, compute totals, compare protocols.

python -m turbo.vbench plan RUN --model shapes-turbo --info VBench_full_info.json
python -m turbo.vbench make RUN
python -m turbo.vbench score RUN --python /envs/vbench/bin/python
python -m turbo.vbench total RUN
python -m turbo.vbench verify RUN OTHER
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from turbo.batch import Share, check_room, make_clips
from turbo.card import Dtype, Memory
from turbo.generate import positive
from turbo.manifest import Manifest, sha256_of
from turbo.models.registry import MODELS, PUBLISHED, check_local, find_card
from turbo.pipeline import load_pipeline
from turbo.vbench.compbench import compute_total, find_scores
from turbo.vbench.flickering import score_clips
from turbo.vbench.plan import CLIPS, SAMPLES, Plan, fetch_info, make_plan, read_info
from turbo.vbench.scores import (
    DIMENSIONS,
    RESULTS,
    Results,
    Scale,
    Table,
    bootstrap,
    compute_totals,
    compute_totals_2,
    is_second,
    paper_rows,
    read_results,
)
from turbo.vbench.verify import TOTAL, compare
from turbo.whole_file import write_whole

CACHE = PUBLISHED / "vbench"
FLICKERING = "temporal_flickering"
OWN = "own_eval_results.json"
# Run by the interpreter of an environment that has the public package, whose versions of numpy and
# transformers exclude ours. Arguments: device, prompts, output folder, clips, name, dimensions.
PUBLIC = """
import sys
from vbench import VBench
device, info, out, clips, name, *dimensions = sys.argv[1:]
VBench(device, info, out).evaluate(videos_path=clips, name=name, dimension_list=dimensions)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = _parser()
    try:
        check_local()  # before a name of --model is refused
        options = parser.parse_args(arguments)
        trouble = options.command(options)
    except (ValueError, MemoryError, OSError) as refusal:
        parser.error(str(refusal))
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped. Run the same command again to continue.\n")
    if trouble:
        parser.exit(1, f"{trouble}\n")


def plan(options: argparse.Namespace) -> str:
    """Write the plan of a run."""
    made = make_plan(
        find_card(options.model),
        options.info or fetch_info(CACHE),
        augmented=options.augmented,
        dimensions=options.dimension,
        samples=options.samples,
        flicker_samples=options.flicker_samples,
        first_seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
    )
    path = made.write(options.run)
    print(f"{path}: {made.protocol.prompts} different prompts, {len(made.clips)} clips.")
    return ""


def make(options: argparse.Namespace) -> str:
    """Make the clips of a plan; under a launcher, over several processes. Return what failed."""
    planned = Plan.read(options.run)
    card = find_card(planned.model)
    planned.check_clips(card, options.run)
    clips, share = planned.requests(card), Share.of_launch()
    needed = check_room(options.run, [(card, request) for request in clips.values()])
    print(f"{len(clips)} clips in all; at most {needed / 1e9:.2f} GB to write.")
    pipeline = load_pipeline(card.name, options.device, dtype=options.dtype, memory=options.memory)
    weights = {row["weights_sha256"] for row in Manifest(options.run).rows().values()}
    if weights - {pipeline.weights_sha256}:
        raise ValueError(
            f"{options.run} has clips of other weights ({', '.join(sorted(weights))}). Choose "
            "another folder."
        )
    failures = share.gather(make_clips(pipeline, clips, options.run, share=share))
    listed = "\n  ".join(failures)
    return f"{len(failures)} clips failed. Run again to retry:\n  {listed}" if failures else ""


def score(options: argparse.Namespace) -> str:
    """Score the clips: by the public package where --python is given, else what needs no network.

    The public package skips clips that are missing; here they are an error.
    """
    planned, folder = Plan.read(options.run), options.run / CLIPS
    planned.check_clips(find_card(planned.model), options.run)
    if missing := Manifest(options.run).missing([f"{CLIPS}/{c.name}" for c in planned.clips]):
        raise ValueError(
            f"{len(missing)} clips are missing or damaged, such as {missing[0]}. Make them first: "
            f"python -m turbo.vbench make {options.run}"
        )
    if options.python is None:
        _score_flickering(planned, options.run)
        return ""
    info = options.info or fetch_info(CACHE)
    if sha256_of(info) != planned.protocol.prompt_file:
        raise ValueError(f"{info} is not the file of prompts of the plan. Pass that one as --info.")
    complete = planned.dimensions(read_info(info))
    dimensions = options.dimension or complete
    if lacking := [name for name in dimensions if name not in complete]:
        raise ValueError(
            f"The plan lacks prompts of {', '.join(lacking)}; it has all of "
            f"{', '.join(complete)}. Score those, or plan the others in another folder."
        )
    with TemporaryDirectory(prefix=".score-", dir=options.run) as scored:
        place = [options.device, info, scored, folder, planned.model]
        command = [options.python, "-c", PUBLIC, *map(str, place), *dimensions]
        code = subprocess.run(command).returncode
        if code or not any(Path(scored).glob(RESULTS)):
            raise ValueError(
                f"The public package ended with {code} and without results. See its messages "
                "above; its environment is made by: python3.10 -m venv ENV && ENV/bin/pip install "
                "vbench==0.1.5"
            )
        for file in Path(scored).glob(RESULTS):
            _merge(file, options.run / file.name)
    if FLICKERING in dimensions:
        (options.run / OWN).unlink(missing_ok=True)
    return ""


def _merge(scored: Path, results: Path) -> None:
    """Add the dimensions of one result to another, in place of its own of the same names.

    The public package writes its file anew, without the dimensions of earlier runs.
    """
    former = {}
    if results.exists():
        read_results(results)  # refuses a damaged one
        former = json.loads(results.read_text(encoding="utf-8"))
    merged = former | json.loads(scored.read_text(encoding="utf-8"))
    write_whole(results, json.dumps(merged, indent=1, ensure_ascii=False).encode())


def _score_flickering(planned: Plan, run: Path) -> None:
    names = [clip.name for clip in planned.clips if FLICKERING in clip.dimensions]
    if not names:
        raise ValueError(f"The plan has no clips of {FLICKERING}. Score the rest by --python.")
    result = score_clips([run / CLIPS / name for name in names])
    (run / OWN).unlink(missing_ok=True)
    public = read_results(run).scores if any(run.glob(RESULTS)) else {}
    if FLICKERING in public:
        print(f"{FLICKERING}: {result[0]:.6f} here, {public[FLICKERING]:.6f} there already.")
        return
    content = json.dumps({FLICKERING: result}, indent=1, ensure_ascii=False)
    write_whole(run / OWN, content.encode())
    print(f"{run / OWN}: {FLICKERING} {result[0]:.6f}. The other dimensions need --python.")


def _print_percent(scores: dict[str, float]) -> None:
    print("\n".join(f"{name:24}{100 * value:8.2f}" for name, value in scores.items()))


def total(options: argparse.Namespace) -> str:
    """Print the totals of results with their intervals, beside the paper's."""
    if options.results.is_dir() and not any(options.results.glob(RESULTS)):
        if files := find_scores(options.results):
            _print_percent(compute_total(files))
            return ""
    results = read_results(options.results)
    if is_second(results):
        _print_percent(compute_totals_2(results.scores))
        return ""
    table = _read_table(options.table)
    found = compute_totals(results.scores, table)
    row = {key: 100 * value for key, value in asdict(found).items()}
    lines = [[options.results.name, *(f"{value:.2f}" for value in row.values())]]
    ends = _ends(results, table)
    if ends:
        lines.append(
            ["95 % interval", *(f"[{low:.2f}, {high:.2f}]" for low, high in ends.values())]
        )
    else:
        print("No interval: the results lack the numbers of single videos.", file=sys.stderr)
    lines += [
        [f"{row['system']}, table {row['table']}", row["total"], row["quality"], row["semantic"]]
        for row in paper_rows()
    ]
    for name, *values in [["percent", "Total", "Quality", "Semantic"], *lines]:
        print(f"{name:34}" + "".join(f"{value:>16}" for value in values))
    if options.results.is_dir():
        content = {
            "percent": row,
            "interval": ends,
            "scores": results.scores,
            "table": {name: list(asdict(scale).values()) for name, scale in table.items()},
        }
        (options.results / TOTAL).write_text(json.dumps(content, indent=1) + "\n")
    return ""


def _ends(results: Results, table: Table) -> dict[str, tuple[float, float]]:
    """Return the ends of the intervals in percent; empty where no single videos are known."""
    if not all(results.videos.get(dimension) for dimension in DIMENSIONS):
        return {}
    low, high = (asdict(end) for end in bootstrap(results, table))
    return {key: (100 * low[key], 100 * high[key]) for key in low}


def _read_table(path: Path | None) -> Table:
    if path is None:
        return DIMENSIONS
    try:
        given: Mapping[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        table = {name: Scale(*map(float, values)) for name, values in given.items()}
        if table.keys() != DIMENSIONS.keys():
            raise ValueError("it does not name the 16 dimensions")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a normalisation table ({error}). Write an object of lists: dimension, "
            "then low, high and weight."
        ) from error
    return table


def verify(options: argparse.Namespace) -> str:
    """Return the settings in which two runs differ, in the order of comparison."""
    if not (found := compare(options.run, options.other)):
        print("No choice of the protocol differs.")
        return ""
    return "\nThen: ".join([f"The first choice that differs: {found[0]}", *found[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m turbo.vbench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = argparse.ArgumentParser(add_help=False)
    info.add_argument("--info", type=Path, help="VBench_full_info.json; downloaded without it")

    command = commands.add_parser("plan", help=plan.__doc__, parents=[info])
    command.set_defaults(command=plan)
    command.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    command.add_argument("--model", required=True, choices=list(MODELS), metavar="NAME")
    command.add_argument("--augmented", type=Path, help="a longer prompt for each line")
    command.add_argument("--dimension", nargs="+", default=[], choices=list(DIMENSIONS))
    command.add_argument("--samples", type=positive, default=SAMPLES, help="clips of a prompt")
    command.add_argument(
        "--flicker-samples",
        type=positive,
        default=SAMPLES,
        help="clips of a prompt of temporal flickering; VBench asks for 25 and its static filter",
    )
    command.add_argument("--seed", type=int, default=0, help="of the first sample")
    command.add_argument("--steps", type=int, help="default: the model's")
    command.add_argument("--guidance", type=float, help="default: the model's")

    command = commands.add_parser("make", help=make.__doc__)
    command.set_defaults(command=make)
    command.add_argument("run", type=Path, metavar="RUN")
    command.add_argument("--device", default="auto")
    command.add_argument("--dtype", choices=get_args(Dtype), default="auto")
    command.add_argument("--memory", choices=get_args(Memory))

    command = commands.add_parser("score", help="Score the clips of a plan.", parents=[info])
    command.set_defaults(command=score)
    command.add_argument("run", type=Path, metavar="RUN")
    command.add_argument("--python", type=Path, help="of an environment with the public package")
    command.add_argument(
        "--dimension", nargs="+", default=[], choices=list(DIMENSIONS), help="default: the plan's"
    )
    command.add_argument("--device", default="cuda")

    command = commands.add_parser("total", help=total.__doc__)
    command.set_defaults(command=total)
    command.add_argument(
        "results", type=Path, help="a run, a *_eval_results.json, or a zip of them"
    )
    command.add_argument("--table", type=Path, help="JSON: another normalisation table")

    command = commands.add_parser("verify", help=verify.__doc__)
    command.set_defaults(command=verify)
    command.add_argument("run", type=Path, metavar="RUN")
    command.add_argument("other", type=Path, metavar="OTHER")
    return parser


if __name__ == "__main__":
    main()
