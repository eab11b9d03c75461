"""The command line, `personavlm --help`.

Any failure is one line. Exit codes: 2 for a wrong option or argument, 130 after Ctrl-C, 1 for any
other failure. Commands import what they need themselves, so that the others work without it.
"""

import atexit
import importlib.util
import os
import re
import signal
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Annotated

import yaml
from typer import Abort, Argument, BadParameter, Option, Typer

from personavlm_lib.environment import use_utf_8, use_writable_caches
from personavlm_lib.processes import exit_with_parent
from personavlm_lib.study import options, profiles
from personavlm_lib.study.profiles import STAGES, Profile, ProfileError

app = Typer(
    name="personavlm", help="A reproduction study of the paper PersonaVLM.", add_completion=False
)
ProfileName = Annotated[
    str, Option(callback=options.check_profile, help="name in profiles/, or path of a YAML file")
]
Run = Annotated[
    str, Option(callback=options.check_run, help="folder under runs/; default: the profile's name")
]
Seed = Annotated[
    int | None,
    Option(
        min=0,
        max=options.LARGEST_SEED,
        help="random seed of training and sampling; default: the profile's",
    ),
]
WorldSeed = Annotated[
    int | None, Option(min=0, max=99, help="seed of the simulated users; default: the profile's")
]
Changes = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="change a parameter (in YAML); repeatable"),
]
Json = Annotated[
    Path | None, Option(callback=options.check_new_file, help="also write the numbers to this file")
]

INTERRUPTED = 130  # exit code after Ctrl-C, as in shells
# What the messages of general-purpose errors cannot say about a run
SUGGESTED_FIXES = {
    "StoreError": "restore it from a copy, or delete its folder; a run's memories are rewritten by "
    "'personavlm reproduce 05_evaluate --force'"
}
TRAINING_PACKAGES = ("accelerate", "trl")  # of personavlm[training]; the others are in [study]


@app.command()
def reproduce(
    stages: Annotated[
        list[str] | None,
        Argument(callback=options.check_stages, help="only these stages and what they need"),
    ] = None,
    profile: ProfileName = "nano",
    run: Run = "",
    seed: Seed = None,
    world_seed: WorldSeed = None,
    force: Annotated[
        bool,
        Option(
            "--force", help="delete the output of these stages (default: all) and run them again"
        ),
    ] = False,
) -> int:
    """Run the whole study on a profile. Finished stages are skipped, interrupted ones resumed."""
    from personavlm_lib.study.chain import reproduce

    _require_packages(stages or list(profiles.load_profile(profile).stages))
    if "." in profile:  # a path: Snakemake runs in the project's folder
        profile = str(Path(profile).resolve())
    return reproduce(profile, run, stages or [], force, seed, world_seed)


def _require_packages(stages: list[str]) -> None:
    """Raise ModuleNotFoundError now for what would otherwise fail after some stages."""
    packages = ["papermill", "snakemake"]
    if "02_sft" in stages or "03_grpo" in stages:
        packages += TRAINING_PACKAGES
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@app.command()
def run(
    stage: Annotated[
        str, Argument(callback=options.one_of(STAGES), help="name of the stage, such as 02_sft")
    ],
    profile: ProfileName = "nano",
    run: Run = "",
    seed: Seed = None,
    world_seed: WorldSeed = None,
    changes: Changes = None,
) -> int:
    """Run one stage of the study, optionally with changed parameters."""
    from personavlm_lib.study.chain import hold
    from personavlm_lib.study.runner import run_stage

    loaded = profiles.load_profile(profile, seed, world_seed)
    run = run or loaded.name
    changed = _parse_changes(changes or [])
    _check_changes(loaded, stage, run, changed)
    exit_with_parent()
    # raise SystemExit on SIGTERM, so that an interrupted chain leaves no kernel behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hint = f". Executed notebook: {profiles.stage_folder(run, stage) / 'notebook.ipynb'}"
    try:
        with hold(run):
            run_stage(stage, loaded, run, changed)
    except Exception as error:
        if isinstance(error, ProfileError):
            hint = ""  # raised before the notebook was executed
        print(f"{stage} failed: {_one_line(error)}{hint}", file=sys.stderr, flush=True)
        return 1
    return 0


def _parse_changes(options: list[str]) -> dict:
    """Parse the KEY=VALUE options of --set."""
    changes = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator:
            raise BadParameter(f"{option!r} is not KEY=VALUE", param_hint="'--set'")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadParameter(f"{value!r} is not YAML", param_hint="'--set'") from None
    return changes


def _check_changes(profile: Profile, stage: str, run: str, changes: dict) -> None:
    """Raise BadParameter if the stage has parameters for the profile, but not for the changes."""
    profiles.stage_parameters(profile, stage, run)
    try:
        profiles.stage_parameters(profile, stage, run, changes)
    except ProfileError as error:
        raise BadParameter(str(error), param_hint="'--set'") from None


def _one_line(error: Exception) -> str:
    """Describe an error in one line; for papermill's error, the one that the cell raised."""
    name = getattr(error, "ename", type(error).__name__)
    message = textwrap.shorten(getattr(error, "evalue", str(error)), 500)
    missing = re.match(r"(?:No module named|import of) '?(\w+)", message)
    if name == "ModuleNotFoundError" and missing:
        package = missing[1]
        extra = "training" if package in TRAINING_PACKAGES else "study"
        return f"the package {package} is not installed: pip install 'personavlm[{extra}]'"
    line = f"{name}: {message}"
    if name in SUGGESTED_FIXES:
        line += f": {SUGGESTED_FIXES[name]}"
    return line


@app.command()
def figures() -> int:
    """Redraw figures/ from the tables in results/reference/."""
    options.require_checkout()
    from personavlm_lib.study import figures, report

    # results/reference/ is laid out as a run
    os.environ["PERSONAVLM_RUNS"] = str(profiles.ROOT / "results")
    drawn = report.draw("reference", report.load_evidence("reference"))
    for name, figure in drawn.items():
        print(figures.save(figure, profiles.ROOT / "figures", name))
    if not drawn:
        raise FileNotFoundError(
            "no tables in results/reference/: copy those of a finished run there"
        )
    return 0


@app.command()
def locomo(
    file: Annotated[
        Path, Argument(exists=True, dir_okay=False, help="conversations in LoCoMo's format")
    ],
    ranking: Annotated[
        str,
        Option(callback=options.one_of(options.RANKINGS), help="dense (the paper), bm25 or hybrid"),
    ] = "hybrid",
    json: Json = None,
) -> int:
    """Measure the evidence recall of a ranking over turns, per category and overall."""
    from personavlm_lib.evaluation.locomo import report_locomo

    report_locomo(file, ranking, json)
    return 0


@app.command()
def naturalness(
    lives: Annotated[Path, Argument(exists=True, dir_okay=False, help="lives of a data set")],
    data: Annotated[Path, Option(envvar="PERSONAVLM_DATA", exists=True, file_okay=False)],
    messages: Annotated[int, Option(min=1, help="number per role and source")] = 300,
    json: Json = None,
) -> int:
    """Compare how natural simulated messages are with those of LoCoMo and MemoryBank in --data."""
    from personavlm_lib.evaluation.naturalness import report_naturalness

    report_naturalness(lives, data, messages, json)
    return 0


@app.command()
def synthesize(
    out: Annotated[
        Path, Option(callback=options.check_new_folder, help="new folder for the data set")
    ],
    size: Annotated[
        str, Option(callback=options.one_of(options.SIZES), help="nano, short, long or paper")
    ] = "nano",
    seed: Annotated[int, Option(min=0, max=99, help="seed of the users, and of the mixtures")] = 0,
    workers: Annotated[int, Option(min=0, help="number of processes; 0: one per core")] = 0,
    personas: Annotated[
        Path | None,
        Option(exists=True, dir_okay=False, help='PersonaHub\'s JSON Lines of {"persona": text}'),
    ] = None,
    wording: Annotated[
        str,
        Option(callback=options.one_of(options.WORDINGS), help="canonical, paraphrased or natural"),
    ] = "canonical",
    generator: Annotated[
        str,
        Option(
            callback=options.check_server,
            help="model that writes the dialogues: http://host:port/v1#model",
        ),
    ] = "",
    prices: Annotated[
        tuple[float, float],
        Option(callback=options.check_prices, help="price per million input and output tokens"),
    ] = (0.0, 0.0),
) -> int:
    """Synthesize a data set: lives and questions; for nano and paper also training samples."""
    if generator and wording == "natural":
        raise BadParameter("choose natural frames or a generator", param_hint="'--wording'")
    if generator:
        from personavlm_lib.models.endpoint import EndpointModel

        model = EndpointModel(generator)
        model.listed_models()  # fail now if the server cannot be reached
    from personavlm_lib.benchmark.sizes import DATASET_SIZES
    from personavlm_lib.benchmark.synthesis import SynthesisSettings, synthesize
    from personavlm_lib.simulation.storyteller import StorytellerSettings, generate_dialogues
    from personavlm_lib.study.components import bundled_image_encoder, open_recognizer

    groups = DATASET_SIZES[size]
    if any(group.sft for group in groups):
        bundled_image_encoder()  # the training samples need it: fail now if it is missing
    recognizer = partial(open_recognizer, "classical", "nano")
    generate = None
    if generator:
        storyteller = StorytellerSettings(
            name=generator, price_in=prices[0], price_out=prices[1], draw=False
        )
        generate = partial(generate_dialogues, model=model, settings=storyteller)
    processes = workers or os.cpu_count() or 1
    settings = SynthesisSettings(seed, processes, recognizer, personas, wording, generate)
    counts = synthesize(groups, out, settings)
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{out}: {summary}")
    return 0


@app.command()
def shortcuts(
    file: Annotated[
        Path,
        Argument(
            exists=True,
            dir_okay=False,
            help="lives of a run (JSON Lines), or a file in Persona-MME's format",
        ),
    ],
    json: Json = None,
) -> int:
    """Measure what four baselines that see only the options' surface get right, per task."""
    from personavlm_lib.evaluation.shortcuts import report_shortcuts

    report_shortcuts(file, json)
    return 0


@app.command()
def skills(
    model: Annotated[
        list[str],
        Option(
            callback=options.check_models,
            help="hub id, folder, RUN/STAGE of a finished run, or http://...#name; repeatable",
        ),
    ],
    seed: Annotated[
        int, Option(min=0, max=options.LARGEST_SEED, help="random seed of the lives")
    ] = 0,
    questions: Annotated[int, Option(min=1, help="number of questions per skill")] = 64,
    prompts: Annotated[
        str, Option(callback=options.one_of(options.PROMPT_SETS), help="prompt set: nano or full")
    ] = "nano",
    no_retrieval: Annotated[
        bool,
        Option("--no-retrieval", help="put the evidence into the prompt, for a model before SFT"),
    ] = False,
    json: Json = None,
    plot: Annotated[
        Path | None,
        Option(callback=options.check_folder, help="folder for the radar chart, as PNG and PDF"),
    ] = None,
) -> int:
    """Measure models skill by skill on new lives; several (one per training seed) also averaged."""
    sources = [_model_source(name) for name in model]
    import pandas as pd

    from personavlm_lib.agent.prompt_sets import PromptSet
    from personavlm_lib.evaluation import skills
    from personavlm_lib.study import figures
    from personavlm_lib.study.components import open_model, open_recognizer
    from personavlm_lib.training.clip import concept_top1

    recognizer = open_recognizer("classical", "nano")
    prompt_set = PromptSet(prompts)
    retrieving = not no_retrieval
    recognition = concept_top1(
        recognizer.encoder, 50, seed, recognizer.threshold, recognizer.detector
    )
    again = recognition["top1"]
    values = []
    tables = []
    for name, source in zip(model, sources, strict=True):
        opened = open_model(source)
        settings = skills.SkillSettings(
            questions, seed, prompt_set, recognizer, retrieving=retrieving
        )
        measured = skills.measure_skills(opened, settings, again)
        measured = measured.assign(model=name)
        values.append(measured)
        tables.append(skills.skill_table(measured).assign(model=name))
    if len(model) > 1:
        tables.append(skills.skill_table(pd.concat(values), "model").assign(model="all"))
    table = pd.concat(tables).assign(seed=seed, prompts=prompt_set.label, retrieving=retrieving)
    printed = table.drop(columns=["seed", "prompts", "retrieving"])
    print(printed.round(3).to_string(index=False, na_rep=""))
    if json:
        table.to_json(json, orient="records", indent=1)
    if plot:
        print(figures.save(figures.skills_radar(table), plot, "skills"))
    return 0


def _model_source(name: str) -> str | Path:
    """The model folder for RUN/STAGE; any other name is a hub id or a folder already."""
    run, _, stage = name.rpartition("/")
    return profiles.require(run, stage) / "model" if stage in STAGES else name


@app.command()
def doctor(
    profile: Annotated[
        str, Option(help="profile whose servers and downloads are checked too")
    ] = "",
) -> int:
    """Check what is installed, found and missing, with a suggested fix for each."""
    from personavlm_lib.study.doctor import run_checks

    return run_checks(profile)


@app.command()
def chat(
    run: Annotated[
        str, Option(callback=options.check_run, help="a finished run; default: nano")
    ] = "",
    model: Annotated[
        str,
        Option(
            callback=options.check_optional_model,
            help="any other model: hub id, folder, RUN/STAGE, or http://...#name",
        ),
    ] = "",
    memory: Annotated[
        Path | None,
        Option(
            callback=options.check_folder,
            help="default: runs/<run>/chat, or for --model runs/chat/memory/<model>/user",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        Option(exists=True, dir_okay=False, help="picture attached to the first message"),
    ] = None,
) -> int:
    """Chat with an agent that remembers: the one of a finished run, or any model."""
    if run and model:
        raise BadParameter("name a run or a model, not both", param_hint="'--model'")
    run = run or "nano"
    source = _model_source(model or f"{run}/03_grpo")
    from personavlm_lib.memory.images import read_image
    from personavlm_lib.study.chat import chat_with_model, chat_with_run

    pictures = [str(picture)] if picture else []
    for path in pictures:
        read_image(path)  # fail now if it is no picture
    if model:
        return chat_with_model(model, source, memory, pictures)
    return chat_with_run(run, source, memory, pictures)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; print any failure as one line."""
    words = sys.argv[1:] if arguments is None else arguments
    use_utf_8()
    use_writable_caches()
    try:
        code = app(words or ["--help"], prog_name="personavlm", standalone_mode=False)
    except (KeyboardInterrupt, Abort):  # some versions of typer return 130 instead
        code = INTERRUPTED
    except Exception as error:
        print(_failure(error), file=sys.stderr)
        return getattr(error, "exit_code", 1)  # 2 for the errors that typer raises itself
    if code == INTERRUPTED:
        print(_interruption(words), file=sys.stderr, flush=True)
        if arguments is None:
            _exit_without_threads(code)
    return code


def _exit_without_threads(code: int) -> None:
    """End this process without waiting for threads, which may wait for a server for minutes."""
    sys.stdout.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _interruption(words: list[str]) -> str:
    """What to print after Ctrl-C: only some commands keep what they have done so far."""
    has_generator = any(word.startswith("--generator") for word in words)
    if words[0] in ("reproduce", "run") or has_generator:
        return "Interrupted. Rerun the same command to resume."
    return "Interrupted."


def _failure(error: Exception) -> str:
    if isinstance(error, ProfileError):
        return str(error)
    if hasattr(error, "format_message"):  # of typer: names the option and the allowed values
        return " ".join(error.format_message().split())
    return _one_line(error)


if __name__ == "__main__":
    sys.exit(main())
