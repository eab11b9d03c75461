"""The command line: `python -m personavlm_lib --help`. Whatever fails ends in one line and exit code 1."""

import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer
import yaml

from personavlm_lib.study.profiles import ROOT, ProfileError, load_profile, stage_folder
from personavlm_lib.work import follow

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
Profile = Annotated[str, typer.Option(help="a name in profiles/, or the path of a YAML file")]
Run = Annotated[str, typer.Option(help="folder under runs/; the profile's name if not given")]
Seed = Annotated[int | None, typer.Option(help="in place of the profile's")]
Changes = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="a parameter to change, in YAML")]


MENDS = {
    "StoreError": "restore it from a copy, or delete its folder; a run's memories are written again by "
    "'python -m personavlm_lib reproduce 05_evaluate --anew'"
}  # what an error's own words, written for any user of the package, do not say of a run


def _changes(given: list[str]) -> dict:
    if wrong := [change for change in given if "=" not in change]:
        raise ProfileError(f"--set takes KEY=VALUE, not {wrong[0]!r}")
    return {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in given)}


@app.command()
def reproduce(
    stages: Annotated[list[str] | None, typer.Argument(help="only these and what they need")] = None,
    profile: Profile = "nano",
    run: Run = "",
    seed: Seed = None,
    anew: Annotated[bool, typer.Option("--anew", help="run them again even if they are done")] = False,
) -> int:
    """The whole study on a profile: what is done is skipped, what was stopped goes on."""
    from personavlm_lib.study.chain import reproduce

    return reproduce(str(Path(profile).resolve()) if "." in profile else profile, run, stages or [], seed, anew)


@app.command()
def run(stage: str, profile: Profile = "nano", run: Run = "", seed: Seed = None, changes: Changes = ()) -> int:
    """One stage of it, with parameters of your own."""
    from personavlm_lib.study.chain import hold
    from personavlm_lib.study.runner import run_stage

    follow()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped chain leaves no kernel behind
    executed = ""
    try:
        given, changed = load_profile(profile, seed), _changes(changes)
        run = run or given.name
        executed = f". Executed notebook: {stage_folder(run, stage) / 'notebook.ipynb'}"
        with hold(run):
            run_stage(stage, given, run, changed)
    except Exception as error:
        look = "" if isinstance(error, ProfileError) else executed
        print(f"{stage} failed: {_told(error)}{look}", file=sys.stderr, flush=True)
        return 1
    return 0


def _told(error: Exception) -> str:
    """An error in one line; papermill's carries that of the cell."""
    kind, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    message = textwrap.shorten(message, 500)
    return f"{kind}: {message}" + (f": {MENDS[kind]}" if kind in MENDS else "")


@app.command()
def figures() -> int:
    """Draws figures/ anew from results/reference/ (laid out as a run, tables only)."""
    from personavlm_lib.study import figures, report

    os.environ["PERSONAVLM_RUNS"] = str(ROOT / "results")
    drawn = report.draw(report.load_evidence("reference"))
    for name, figure in drawn.items():
        print(figures.save(figure, ROOT / "figures", name))
    if not drawn:
        raise FileNotFoundError("results/reference/ holds no tables: copy those of a finished run there")
    return 0


@app.command()
def locomo(
    file: Annotated[Path, typer.Argument(help="conversations of LoCoMo's shape")],
    ranking: Annotated[str, typer.Option(help="dense (the paper), bm25 or hybrid")] = "hybrid",
    json: Annotated[Path | None, typer.Option(help="also write the numbers there")] = None,
) -> int:
    """Evidence recall of a ranking, turns as units: per category and for all, with intervals."""
    from personavlm_lib.evaluation.locomo import locomo

    locomo(file, ranking, json)
    return 0


@app.command()
def doctor() -> int:
    """What is installed, found and missing, each with its mend."""
    from personavlm_lib.study.doctor import examine

    return examine()


@app.command()
def chat(
    run_: Annotated[str, typer.Option("--run", help="the finished run whose model answers")] = "nano",
    memory: Annotated[Path | None, typer.Option(help="folder of the memory; runs/<run>/chat if not given")] = None,
) -> int:
    """A conversation with the agent of a finished run, which remembers it."""
    from personavlm_lib.study.chat import converse

    return converse(run_, memory)


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="folder or hub id")], host: str = "127.0.0.1", port: int = 8000
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
        print(error if isinstance(error, ProfileError) else _told(error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
