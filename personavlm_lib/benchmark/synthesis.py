"""Whole data sets from a seed: lives, questions, SFT and RL samples.

See section 4, Fig. 7 and 8, and appendix C of the paper. Parallel processes work on independent
jobs of a fixed size, so the result depends on the seed alone, not on the number of workers. All
files are written to a temporary folder next to the target, which is renamed at the end.
"""

import json
import multiprocessing
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from personavlm_lib.benchmark import mixtures, recordings
from personavlm_lib.benchmark.formats import LIVES, SFT, data_card, write_parquet
from personavlm_lib.benchmark.lives import Life, read_lives, write_lives
from personavlm_lib.benchmark.natural_questions import phrase_questions
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.benchmark.seeds import user_seeds
from personavlm_lib.benchmark.sizes import Group
from personavlm_lib.benchmark.tables import dialogue_table, question_table
from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.benchmark.validation import Violation, validate_life
from personavlm_lib.memory.encoder import TextEncoder
from personavlm_lib.memory.records import Turn
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.progress import with_progress
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import LifePlan, sample_plan
from personavlm_lib.simulation.storyteller import StorytellingResult

CHUNK = 20  # lives per job: the texts that they share are encoded once
JOBS_PER_PROCESS = 6  # then a new process replaces it, because its memory grows
QUESTIONS_PER_ATTEMPT = 24
MAX_ATTEMPTS = 4

DialogueGenerator = Callable[[list[LifePlan], Path], StorytellingResult]
Exchanges = list[tuple[str, str]]  # user and assistant messages, one pair per turn
JobResult = tuple[list[str], list[Violation]]  # the kinds of the SFT samples, rule violations


@dataclass(frozen=True)
class SynthesisSettings:
    """Settings of a data set, apart from its groups.

    `seed` is the world seed of the users, and draws the mixtures of samples. `recognizer` opens the
    concept recognizer within each process. `personas` is a PersonaHub file.
    `generator` writes the dialogues in place of the templates, which use `wording`.
    """

    seed: int
    workers: int
    recognizer: Callable[[], ConceptRecognizer]
    personas: Path | None = None
    wording: str = "canonical"
    generator: DialogueGenerator | None = None

    @property
    def pool(self) -> str:
        """The pool of values: natural frames are written for the wide one."""
        return "wide" if self.wording == "natural" else "nano"


class _PlannedLife(NamedTuple):
    """A life to make: its group, its place within the group, and its plan."""

    group: Group
    place: int
    plan: LifePlan


def read_personas(path: Path, needed: int) -> tuple[list[str], int]:
    """Read the first `needed` texts of a PersonaHub file with one {"persona": text} per line.

    Also returns the number of broken lines. Raises ValueError if the file has fewer texts.
    """
    personas = []
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        persona = _parse_persona(line)
        if persona:
            personas.append(persona)
        else:
            broken += 1
    if len(personas) < needed:
        raise ValueError(
            f'{path} has {len(personas)} lines of the form {{"persona": text}} and '
            f"{broken} broken ones, but {needed} personas are needed: "
            "choose a longer file or a smaller size"
        )
    return personas[:needed], broken


def _parse_persona(line: str) -> str:
    """The persona of a line, or "" if the line is broken."""
    try:
        row = json.loads(line)
    except ValueError:
        return ""
    persona = row.get("persona") if isinstance(row, dict) else None
    return persona.strip() if isinstance(persona, str) else ""


def group_questions(plan: LifePlan, n: int, pairs: int) -> tuple[Question, ...]:
    """`n` choice questions and `pairs` pairs of alignment items, fewer where the life is too short.

    A question may recur at another moment.
    """
    questions: dict[tuple[datetime, str], Question] = {}
    for attempt in range(MAX_ATTEMPTS):
        choices = [q for q in questions.values() if q.kind == "choice"]
        missing = n - len(choices)
        if missing == 0:
            break
        alignment = pairs if attempt == 0 else 0
        batch = min(missing, QUESTIONS_PER_ATTEMPT)
        for question in make_questions(plan, batch, alignment, seed=attempt):
            questions.setdefault((question.time, question.query), question)
    ordered = sorted(questions.values(), key=lambda q: q.time)
    if plan.pool is lexicon.pool("wide"):
        ordered = phrase_questions(plan, ordered)
    return tuple(replace(q, case=f"{plan.user}_{i:03d}") for i, q in enumerate(ordered))


def synthesize(groups: Sequence[Group], out: Path, settings: SynthesisSettings) -> dict[str, int]:
    """Make a data set in the new folder `out` and return the number of items of each kind.

    Writes the lives as JSON Lines and Parquet, `images/`, `sft.parquet`, `rl.jsonl`, the rule
    violations in `findings.csv`, and `README.md`. A dialogue generator keeps its stories in
    `out`.stories and may fail on some lives, which are left out. Raises FileExistsError if `out`
    exists, and ValueError if the generator completes no life of a group: repeat the call to resume.
    After a failure, `out` does not exist.
    """
    if out.exists():
        raise FileExistsError(f"{out} already exists: choose a new folder, or remove it first")
    n_users = sum(group.users for group in groups)
    personas = [""] * n_users
    broken = 0
    if settings.personas:
        personas, broken = read_personas(settings.personas, n_users)
    with _complete_or_absent(out) as folder:
        (folder / "images").mkdir(parents=True)
        planned = _plan_lives(groups, settings.seed, personas, settings.pool)
        dialogues = None
        if settings.generator:
            stories = out.with_name(f"{out.name}.stories")
            dialogues = _generate_dialogues(settings.generator, planned, stories)
            planned = _completed_lives(planned, dialogues, stories)
        work = partial(
            _run_job,
            folder=folder,
            recognizer=settings.recognizer,
            wording=settings.wording,
            dialogues=dialogues,
        )
        jobs = _split_into_jobs(planned, groups)
        kinds, violations = _run_jobs(work, jobs, settings.workers)
        rng = random.Random(f"mixtures {settings.seed}")
        counts = _gather(groups, rng, folder, kinds, violations)
    counts["findings"] = len(violations)
    counts["broken_personas"] = broken
    return counts


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """A context with a temporary path, whose folder becomes `out` at the end.

    After a failure it is deleted, and so are the parents of `out` that were created for it.
    """
    created = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
            folder = Path(temporary) / out.name
            yield folder
            folder.rename(out)
    except BaseException:
        with suppress(OSError):  # stories that a rerun needs are in one of them
            for parent in created:
                parent.rmdir()
        raise


def _plan_lives(
    groups: Sequence[Group], seed: int, personas: list[str], pool: str
) -> list[_PlannedLife]:
    planned: list[_PlannedLife] = []
    for group in groups:
        members = range(group.first, group.first + group.users)
        for place, life_seed in enumerate(user_seeds(members, seed)):
            persona = personas[len(planned)]
            turns = None
            if group.turns:
                rng = random.Random(f"turns {life_seed}")
                turns = rng.randint(*group.turns)
            plan = sample_plan(
                life_seed, group.days, group.size, persona=persona, turns=turns, pool=pool
            )
            planned.append(_PlannedLife(group, place, plan))
    return planned


def _generate_dialogues(
    generator: DialogueGenerator, planned: list[_PlannedLife], stories: Path
) -> dict[str, Exchanges]:
    """user -> exchanges, for the lives that the generator completed; prints its report."""
    result = generator([life.plan for life in planned], stories)
    print(result)
    dialogues = {}
    for user, turns in result.lives.items():
        dialogues[user] = [(turn.user, turn.assistant) for turn in turns]
    return dialogues


def _completed_lives(
    planned: list[_PlannedLife], dialogues: dict[str, Exchanges], stories: Path
) -> list[_PlannedLife]:
    """The lives with dialogues. ValueError if they leave a group empty."""
    completed = [life for life in planned if life.plan.user in dialogues]
    left_out = len(planned) - len(completed)
    groups_left = {life.group.name for life in completed}
    for life in planned:
        if life.group.name in groups_left:
            continue
        file = stories / "stories.jsonl"
        fix = f"rerun the same command to resume from the accepted stories in {stories}"
        if file.is_file() and file.stat().st_size == 0:
            shutil.rmtree(stories)
            fix = "no story was accepted, choose another model"
        raise ValueError(
            f"no data set was written, because the generator completed no life of the group "
            f"{life.group.name!r} ({left_out} of {len(planned)} lives left out): {fix}"
        )
    if left_out:
        print(f"{left_out} lives left out: to retry them, delete the data set and rerun")
    return completed


def _split_into_jobs(
    planned: list[_PlannedLife], groups: Sequence[Group]
) -> list[list[_PlannedLife]]:
    """Jobs of up to CHUNK lives of the same group."""
    jobs = []
    for group in groups:
        members = [life for life in planned if life.group == group]
        for start in range(0, len(members), CHUNK):
            jobs.append(members[start : start + CHUNK])
    return jobs


def _run_jobs(
    work: Callable[[list[_PlannedLife]], JobResult], jobs: list[list[_PlannedLife]], workers: int
) -> JobResult:
    """Run all jobs in parallel processes and join their results in order."""
    kinds = []
    violations = []
    round_size = JOBS_PER_PROCESS * workers
    for start in with_progress(range(0, len(jobs), round_size), "synthesize", "round"):
        # The executor's own max_tasks_per_child hangs when all workers end at once.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                with _without_interrupts():
                    results = pool.map(work, jobs[start : start + round_size])
                for job_kinds, job_violations in results:
                    kinds += job_kinds
                    violations += job_violations
            except KeyboardInterrupt:
                for process in multiprocessing.active_children():
                    process.terminate()  # otherwise the pool would wait for their jobs
                raise
    return kinds, violations


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A context that Ctrl-C interrupts only at its end.

    Processes that are started in it never get the signal, so that only their parent reports it.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _run_job(
    job: list[_PlannedLife],
    folder: Path,
    recognizer: Callable[[], ConceptRecognizer],
    wording: str,
    dialogues: dict[str, Exchanges] | None,
) -> JobResult:
    """Make, validate and write the lives of one job, and the SFT samples that its group needs."""
    torch.set_num_threads(1)  # the number of cores must not change how sums are rounded
    images = folder / "images"
    lives = []
    violations = []
    for group, place, plan in job:
        turns = render_dialogue(plan, images, wording=wording)
        if dialogues:
            turns = _replace_messages(turns, dialogues[plan.user])
        questions = group_questions(plan, group.questions, group.pairs)
        life = Life(plan, tuple(turns), questions)
        write_lives(folder / f"{group.name}_{place:05d}.part", [life])
        violations += validate_life(life)
        lives.append(life)
    kinds: list[str] = []
    if job[0].group.sft:
        encoder = TextEncoder()
        concept_recognizer = recognizer()
        encoder.encode(_search_keywords(lives))  # in one batch; the encoder caches them
        for planned, life in zip(job, lives, strict=True):
            samples = _record_samples(life, images, encoder, concept_recognizer)
            kinds += map(mixtures.sample_kind, samples)
            _write_samples(folder / f"{planned.place:05d}.sft", samples)
    return kinds, violations


def _replace_messages(turns: list[Turn], exchanges: Exchanges) -> list[Turn]:
    replaced = []
    for turn, (user, assistant) in zip(turns, exchanges, strict=True):
        replaced.append(replace(turn, user=user, assistant=assistant))
    return replaced


def _search_keywords(lives: list[Life]) -> list[str]:
    keywords = []
    for life in lives:
        for question in life.questions:
            keywords += [hop.keywords for hop in question.hops]
    return keywords


def _record_samples(
    life: Life, images: Path, encoder: TextEncoder, recognizer: ConceptRecognizer
) -> list[dict]:
    """All SFT samples of a life: first those of the update stage, then those of its questions."""
    samples: list[dict] = []
    rng = random.Random(f"answers {life.plan.seed}")
    crops = images / f"{life.user}_crops"
    empty = MemoryStore.in_memory(encoder, crops)
    with recordings.gold_memory(life, empty, recognizer, samples) as store:
        samples += recordings.answer_samples(life, store, rng)
    return samples


def _write_samples(path: Path, samples: list[dict]) -> None:
    """Write one sample per line, with image paths relative to the file's folder."""
    with open(path, "w", encoding="utf-8") as file:
        for sample in samples:
            images = []
            for image in sample["images"]:
                relative = Path(image).relative_to(path.parent)
                images.append(relative.as_posix())
            row = sample | {"images": images}
            file.write(json.dumps(row) + "\n")


def _gather(
    groups: Sequence[Group],
    rng: random.Random,
    folder: Path,
    kinds: list[str],
    violations: list[Violation],
) -> dict[str, int]:
    """Join the files of the jobs, draw the mixtures and write the card; returns the counts."""
    lives: dict[str, list[Life]] = {}
    sft_places: list[int] = []
    rl_questions: list[Question] = []
    for group in groups:
        lives[group.name] = _join_lives(folder, group.name)
        if group.sft:
            sft_places = mixtures.draw_mixture(kinds, group.sft, rng)
            _join_samples(folder, sft_places)
            drawn = mixtures.rl_questions(lives[group.name], group.rl, rng)
            rl_questions = [question for _, question in drawn]
            _write_questions(folder / "rl.jsonl", rl_questions)
    columns = ["rule", "user", "index", "why"]
    found = pd.DataFrame(map(asdict, violations), columns=columns)
    found.to_csv(folder / "findings.csv", index=False)
    all_lives = [life for members in lives.values() for life in members]
    tables = {
        "Dialogues, on average": _averages(dialogue_table(lives), "group"),
        "Questions, on average": _averages(question_table(all_lives), "kind"),
        "Questions by task": _counts(q.task for life in all_lives for q in life.questions),
        "SFT samples": _counts(kinds[place] for place in sft_places),
        "RL samples": _counts(question.kind for question in rl_questions),
        "Rule violations": _counts(violation.rule for violation in violations),
    }
    files = sorted(path.name for path in folder.glob("*.parquet"))
    card = data_card("Simulated lives", tables, files)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {"lives": len(all_lives), "sft": len(sft_places), "rl": len(rl_questions)}


def _join_lives(folder: Path, group: str) -> list[Life]:
    """Join the lives of a group into one JSON Lines file and one Parquet file, and read them."""
    path = folder / f"{group}.jsonl"
    parts = folder.glob(f"{group}_*.part")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(_read_and_remove(parts))
    with open(path, encoding="utf-8") as file:
        rows = map(json.loads, file)
        write_parquet(path.with_suffix(".parquet"), rows, LIVES)
    return read_lives(path)


def _join_samples(folder: Path, places: list[int]) -> None:
    """Write the samples at these places among those of all jobs to `sft.parquet`, in this order."""
    wanted = set(places)
    lines = {}
    parts = folder.glob("*.sft")
    for place, line in enumerate(_read_and_remove(parts)):
        if place in wanted:
            lines[place] = line
    rows = (json.loads(lines[place]) for place in places)
    write_parquet(folder / "sft.parquet", rows, SFT)


def _write_questions(path: Path, questions: list[Question]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for question in questions:
            file.write(json.dumps(asdict(question), default=datetime.isoformat) + "\n")


def _read_and_remove(parts: Iterable[Path]) -> Iterator[str]:
    """Yield the lines of all files in the order of their names; remove each file that is read."""
    for part in sorted(parts):
        with open(part, encoding="utf-8") as file:
            yield from file
        part.unlink()


def _averages(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """The number of rows of each group, and the means of its numeric columns."""
    groups = table.groupby(by, sort=False)
    sizes = groups.size().rename("n")
    means = groups.mean(numeric_only=True)
    averages = sizes.to_frame().join(means)
    return averages.reset_index()


def _counts(names: Iterable[str]) -> pd.DataFrame:
    """The number of times each name occurs, and its percentage of all."""
    column = pd.Series(list(names), name="name", dtype=str)
    counts = column.value_counts().sort_index()
    table = counts.reset_index(name="n")
    table["percent"] = 100 * table["n"] / table["n"].sum()
    return table
