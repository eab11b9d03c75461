"""The command line: `python -m personavlm_lib --help`. Whatever fails ends in one line and exit code 1."""

import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer
import yaml

from personavlm_lib.processes import exit_with_parent
from personavlm_lib.study.profiles import (
    ROOT,
    STAGES,
    ProfileError,
    load_profile,
    require,
    stage_folder,
)

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
Profile = Annotated[str, typer.Option(help="a name in profiles/, or the path of a YAML file")]
Run = Annotated[str, typer.Option(help="folder under runs/; the profile's name if not given")]
Seed = Annotated[int | None, typer.Option(help="in place of the profile's")]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="a parameter to change, in YAML")
]


SUGGESTED_FIXES = {
    "StoreError": "restore it from a copy, or delete its folder; a run's memories are written again by "
    "'python -m personavlm_lib reproduce 05_evaluate --force'"
}  # what an error's own words, written for any user of the package, do not say of a run


def _changes(given: list[str]) -> dict:
    if wrong := [change for change in given if "=" not in change]:
        raise ProfileError(f"--set takes KEY=VALUE, not {wrong[0]!r}")
    return {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in given)}


@app.command()
def reproduce(
    stages: Annotated[
        list[str] | None, typer.Argument(help="only these and what they need")
    ] = None,
    profile: Profile = "nano",
    run: Run = "",
    seed: Seed = None,
    force: Annotated[
        bool, typer.Option("--force", help="rerun these stages even if they are finished")
    ] = False,
) -> int:
    """The whole study on a profile: what is done is skipped, what was stopped goes on."""
    from personavlm_lib.study.chain import reproduce

    return reproduce(
        str(Path(profile).resolve()) if "." in profile else profile, run, stages or [], seed, force
    )


@app.command()
def run(
    stage: str, profile: Profile = "nano", run: Run = "", seed: Seed = None, changes: Changes = ()
) -> int:
    """One stage of it, with parameters of your own."""
    from personavlm_lib.study.chain import hold
    from personavlm_lib.study.runner import run_stage

    exit_with_parent()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that a stopped chain leaves no kernel behind
    executed = ""
    try:
        given, changed = load_profile(profile, seed), _changes(changes)
        run = run or given.name
        executed = f". Executed notebook: {stage_folder(run, stage) / 'notebook.ipynb'}"
        with hold(run):
            run_stage(stage, given, run, changed)
    except Exception as error:
        look = "" if isinstance(error, ProfileError) else executed
        print(f"{stage} failed: {_one_line(error)}{look}", file=sys.stderr, flush=True)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    """An error in one line; papermill's carries that of the cell."""
    kind, message = (
        getattr(error, "ename", type(error).__name__),
        getattr(error, "evalue", str(error)),
    )
    message = textwrap.shorten(message, 500)
    return f"{kind}: {message}" + (f": {SUGGESTED_FIXES[kind]}" if kind in SUGGESTED_FIXES else "")


@app.command()
def figures() -> int:
    """Draws figures/ anew from results/reference/ (laid out as a run, tables only)."""
    from personavlm_lib.study import figures, report

    os.environ["PERSONAVLM_RUNS"] = str(ROOT / "results")
    drawn = report.draw("reference", report.load_evidence("reference"))
    for name, figure in drawn.items():
        print(figures.save(figure, ROOT / "figures", name))
    if not drawn:
        raise FileNotFoundError(
            "results/reference/ holds no tables: copy those of a finished run there"
        )
    return 0


@app.command()
def locomo(
    file: Annotated[Path, typer.Argument(help="conversations of LoCoMo's shape")],
    ranking: Annotated[str, typer.Option(help="dense (the paper), bm25 or hybrid")] = "hybrid",
    json: Annotated[Path | None, typer.Option(help="also write the numbers there")] = None,
) -> int:
    """Evidence recall of a ranking, turns as units: per category and for all, with intervals."""
    from personavlm_lib.evaluation.locomo import report_locomo

    report_locomo(file, ranking, json)
    return 0


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option(help="the new folder of the data set")],
    size: Annotated[str, typer.Option(help="nano, short, long or paper")] = "nano",
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    workers: Annotated[int, typer.Option(help="processes; 0: one for each core")] = 0,
    personas: Annotated[
        Path | None, typer.Option(help='PersonaHub\'s JSON Lines of {"persona": text}')
    ] = None,
    wording: Annotated[str, typer.Option(help="canonical or paraphrased")] = "canonical",
    teller: Annotated[
        str, typer.Option(help="a model that tells the lives, http://host:port/v1#model")
    ] = "",
    prices: Annotated[
        tuple[float, float], typer.Option(help="of its million tokens, in and out")
    ] = (0.0, 0.0),
) -> int:
    """A data set from a seed: lives, questions, and for nano and paper the samples to train on."""
    from functools import partial

    from personavlm_lib.benchmark.synthesis import DATASET_SIZES, synthesize
    from personavlm_lib.simulation.storyteller import generate_dialogues
    from personavlm_lib.study.components import open_model, open_recognizer

    if size not in DATASET_SIZES:
        raise ProfileError(f"--size is {size!r}; choose {', '.join(DATASET_SIZES)}")
    recognizer = partial(open_recognizer, "classical", "nano")
    cost = dict(price_in=prices[0], price_out=prices[1])
    tell = (
        partial(generate_dialogues, model=open_model(teller), name=teller, draw=False, **cost)
        if teller
        else None
    )
    made = synthesize(
        DATASET_SIZES[size],
        seed,
        out,
        workers or os.cpu_count() or 1,
        recognizer,
        personas,
        wording,
        tell,
    )
    print(f"{out}: {', '.join(f'{n} {name}' for name, n in made.items())}")
    return 0


@app.command()
def shortcuts(
    file: Annotated[
        Path, typer.Argument(help="lives of a run (JSON Lines), or a file of Persona-MME's shape")
    ],
    json: Annotated[Path | None, typer.Option(help="also write the numbers there")] = None,
) -> int:
    """What guessing by the options' surface gets right: per task, four baselines with intervals."""
    from personavlm_lib.evaluation.shortcuts import report_shortcuts

    report_shortcuts(file, json)
    return 0


@app.command()
def skills(
    model: Annotated[
        list[str],
        typer.Option(help="hub id, folder, or RUN/STAGE of a finished run; may be repeated"),
    ],
    seed: Annotated[int, typer.Option(help="of the lives that are asked about")] = 0,
    questions: Annotated[int, typer.Option(help="for each skill")] = 64,
    prompts: Annotated[str, typer.Option(help="prompt set: nano or full")] = "nano",
    shown: Annotated[
        bool, typer.Option("--shown", help="of a model that was not taught to retrieve")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="also write the numbers there")] = None,
    plot: Annotated[Path | None, typer.Option(help="folder for the radar, as PNG and PDF")] = None,
) -> int:
    """What models can do, skill by skill, on fresh lives; of several, which differ in their seed, also the mean."""
    import pandas as pd

    from personavlm_lib.agent.prompt_sets import PromptSet
    from personavlm_lib.evaluation import skills
    from personavlm_lib.models.local import LocalModel
    from personavlm_lib.study import figures
    from personavlm_lib.study.components import open_recognizer
    from personavlm_lib.training.clip import concept_top1

    recognizer, given = open_recognizer("classical", "nano"), PromptSet(prompts)
    again = concept_top1(recognizer.encoder, 50, seed, recognizer.threshold, recognizer.detector)[
        "top1"
    ]
    values = []
    for name in model:
        of, _, stage = name.rpartition("/")
        source = require(of, stage) / "model" if stage in STAGES else name
        suite = skills.SkillSettings(questions, seed, given, recognizer, retrieving=not shown)
        measured = skills.measure_skills(LocalModel(source), suite, again)
        values.append(measured.assign(model=name))
    tables = [
        skills.skill_table(part).assign(model=name)
        for name, part in zip(model, values, strict=True)
    ]
    tables += (
        [skills.skill_table(pd.concat(values), "model").assign(model="all")]
        if len(model) > 1
        else []
    )
    rows = pd.concat(tables).assign(seed=seed, prompts=given.label, retrieving=not shown)
    print(rows.iloc[:, :-3].round(3).to_string(index=False, na_rep=""))
    if json:
        rows.to_json(json, orient="records", indent=1)
    if plot:
        print(figures.save(figures.skills_radar(rows), plot, "skills"))
    return 0


@app.command()
def doctor() -> int:
    """What is installed, found and missing, each with its mend."""
    from personavlm_lib.study.doctor import run_checks

    return run_checks()


@app.command()
def chat(
    run_: Annotated[
        str, typer.Option("--run", help="the finished run whose model answers")
    ] = "nano",
    memory: Annotated[
        Path | None, typer.Option(help="folder of the memory; runs/<run>/chat if not given")
    ] = None,
) -> int:
    """A conversation with the agent of a finished run, which remembers it."""
    from personavlm_lib.study.chat import converse

    return converse(run_, memory)


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="folder or hub id")],
    host: str = "127.0.0.1",
    port: int = 8000,
) -> int:
    """An OpenAI-compatible server over a local model; port 0 takes a free one."""
    from personavlm_lib.models.serve import ChatServer, LocalModel

    with ChatServer(LocalModel(model), host, port) as server:
        print(f"Answers as {server.source} until Ctrl-C", flush=True)
        server.serve_forever()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code. A failure is told in one line."""
    try:
        return app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    except Exception as error:  # whatever it is, the reader gets one line
        print(error if isinstance(error, ProfileError) else _one_line(error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
