"""Whole data sets from a seed: lives, questions, SFT and RL samples (paper, section 4, Fig. 7 and 8, appendix C).

Lives are made in parallel processes, in jobs of a fixed size that share nothing: what comes out depends on the seed
alone, not on the number of workers. All is written into a folder beside the wanted one, which gets its name at the end.
"""

import json
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from personavlm_lib.benchmark import mixtures, recordings
from personavlm_lib.benchmark.formats import LIVES, SFT, data_card, write_parquet
from personavlm_lib.benchmark.lives import Life, read_lives, write_lives
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.benchmark.tables import dialogue_table, question_table
from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.benchmark.validation import Violation, validate_life
from personavlm_lib.memory.encoder import TextEncoder
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.progress import with_progress
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import LifePlan, sample_plan
from personavlm_lib.simulation.storyteller import StorytellingResult

CHUNK = 20  # lives of one job: texts that they share are encoded once
CHUNKS = 6  # of one process, which then makes room for another: its memory grows


@dataclass(frozen=True)
class Group:
    """Lives of one kind: seeds from `first` on, within `days`, of `size` or of `turns` at least and at most; what is
    asked about each, and how many samples are made of them all."""

    name: str
    first: int
    users: int
    days: int
    questions: int
    pairs: int
    turns: tuple[int, int] | None = None
    size: float = 1.0
    sft: int = 0
    rl: int = 0


SHORT = Group("test_short", 50_000, 100, 90, 10, 2, (20, 100))
LONG = Group("test_long", 60_000, 100, 90, 10, 2, (100, 500))
DATASET_SIZES = {
    "nano": (
        Group("train", 0, 100, 28, 24, 4, sft=6_000, rl=480),
        Group("test", 50_000, 12, 70, 26, 4, size=1.2),
    ),
    "short": (SHORT,),
    "long": (LONG,),
    "paper": (Group("train", 0, 500, 28, 68, 6, (20, 100), sft=78_000, rl=5_600), SHORT, LONG),
}


def read_personas(path: Path, needed: int) -> tuple[list[str], int]:
    """The first `needed` texts of a PersonaHub file, one {"persona": text} a line, and how many lines are broken.

    ValueError for fewer.
    """
    found, broken = [], 0
    for line in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            found.append(json.loads(line)["persona"].strip() or found[len(found)])
        except (ValueError, LookupError, TypeError, AttributeError):
            broken += 1
    if len(found) < needed:
        raise ValueError(
            f'{path} has {len(found)} lines {{"persona": text}} and {broken} broken ones; needed: {needed}'
        )
    return found[:needed], broken


def group_questions(plan: LifePlan, n: int, pairs: int) -> tuple[Question, ...]:
    """`n` choice questions and `pairs` pairs, or as many as there are; the same may come again at another moment."""
    asked: dict[tuple[datetime, str], Question] = {}
    for attempt in range(4):
        if wanted := n - sum(q.kind == "choice" for q in asked.values()):
            for question in make_questions(
                plan, min(wanted, 24), 0 if attempt else pairs, seed=attempt
            ):
                asked.setdefault((question.time, question.query), question)
    ordered = sorted(asked.values(), key=lambda q: q.time)
    return tuple(replace(q, case=f"{plan.user}_{i:03d}") for i, q in enumerate(ordered))


def synthesize(
    groups: Iterable[Group], seed: int, out: Path, workers: int, recognizer: Callable[[], ConceptRecognizer], personas: Path | None = None,
    wording: str = "canonical", teller: Callable[[list[LifePlan], Path], StorytellingResult] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Makes a data set in the new folder `out`: how much of each there is. `eyes` opens what sees in each process.

    `teller`, if given, tells the lives in place of the templates and keeps its stories in `out`.stories: what it could
    not tell is left out, and the same call goes on with it.

    Lives as JSON Lines and Parquet, `images/`, `sft.parquet`, `rl.jsonl`, `findings.csv` of the rules, `README.md`.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: name a new folder, or remove it first")
    texts, broken = (
        read_personas(personas, sum(group.users for group in groups)) if personas else ([], 0)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        (folder / "images").mkdir(parents=True)
        places = [(group, place) for group in groups for place in range(group.users)]
        texts = texts or [""] * len(places)
        plans = [
            (*place, _plan(*place, seed, text)) for place, text in zip(places, texts, strict=True)
        ]
        told = None
        if teller:
            print(
                story := teller([plan for *_, plan in plans], out.with_name(f"{out.name}.stories"))
            )
            told = {
                user: [(turn.user, turn.assistant) for turn in turns]
                for user, turns in story.lives.items()
            }
            plans = [one for one in plans if one[2].user in told]
        work = partial(_work, folder=folder, recognizer=recognizer, wording=wording, told=told)
        parts = ([one for one in plans if one[0] == group] for group in groups)
        jobs = [part[i : i + CHUNK] for part in parts for i in range(0, len(part), CHUNK)]
        results = []
        for start in with_progress(range(0, len(jobs), CHUNKS * workers), "synthesize", "round"):
            # The executor's own max_tasks_per_child hangs where all workers end at once.
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                results += pool.map(work, jobs[start : start + CHUNKS * workers])
        kinds, findings = ([one for result in results for one in result[i]] for i in (0, 1))
        made = _gather(groups, random.Random(f"mixtures {seed}"), folder, kinds, findings)
        folder.rename(out)
    return made | {"findings": len(findings), "broken_personas": broken}


def _plan(group: Group, place: int, seed: int, persona: str) -> LifePlan:
    own = 100_000 * seed + group.first + place
    turns = random.Random(f"turns {own}").randint(*group.turns) if group.turns else None
    return sample_plan(own, group.days, group.size, persona=persona, turns=turns)


def _work(
    plans: list[tuple[Group, int, LifePlan]], folder: Path, recognizer: Callable[[], ConceptRecognizer], wording: str,
    told: dict[str, list[tuple[str, str]]] | None,
) -> tuple[list[str], list[Violation]]:  # fmt: skip
    """Makes and checks some lives of a group, writes them and their samples: the samples' kinds, and what was found."""
    torch.set_num_threads(1)  # how a sum is rounded should not depend on how many cores there are
    kinds, findings, made = [], [], []
    for group, place, plan in plans:
        turns = render_dialogue(plan, folder / "images", wording=wording)
        if told:
            words = zip(turns, told[plan.user], strict=True)
            turns = [
                replace(turn, user=user, assistant=assistant) for turn, (user, assistant) in words
            ]
        made.append(Life(plan, tuple(turns), group_questions(plan, group.questions, group.pairs)))
        write_lives(folder / f"{group.name}_{place:05d}.part", made[-1:])
        findings += validate_life(made[-1])
    if group.sft:
        encoder, seeing = TextEncoder(), recognizer()
        encoder.encode([hop.keywords for life in made for q in life.questions for hop in q.hops])
        for (_, place, _), life in zip(plans, made, strict=True):
            samples: list[dict] = []
            empty = MemoryStore.in_memory(encoder, folder / "images" / f"{life.user}_crops")
            with recordings.gold_memory(life, empty, seeing, samples) as store:
                samples += recordings.answer_samples(
                    life, store, random.Random(f"answers {life.plan.seed}")
                )
            kinds += map(mixtures.sample_kind, samples)
            with open(folder / f"{place:05d}.sft", "w") as file:
                for sample in samples:
                    images = [
                        Path(image).relative_to(folder).as_posix() for image in sample["images"]
                    ]
                    file.write(json.dumps(sample | {"images": images}) + "\n")
    return kinds, findings


def _gather(
    groups: Iterable[Group],
    rng: random.Random,
    folder: Path,
    kinds: list[str],
    findings: list[Violation],
) -> dict[str, int]:
    """Puts what the jobs left together, draws the mixtures, and writes the card: how much of each there is."""
    lives, chosen, asked = {}, [], []
    for group in groups:
        whole = folder / f"{group.name}.jsonl"
        with open(whole, "w") as file:
            file.writelines(_taken(folder.glob(f"{group.name}_*.part")))
        write_parquet(whole.with_suffix(".parquet"), map(json.loads, open(whole)), LIVES)
        lives[group.name] = read_lives(whole)
        if group.sft:
            chosen = mixtures.draw_mixture(kinds, group.sft, rng)
            wanted = set(chosen)
            lines = {i: line for i, line in enumerate(_taken(folder.glob("*.sft"))) if i in wanted}
            write_parquet(folder / "sft.parquet", (json.loads(lines[i]) for i in chosen), SFT)
            asked = [
                question for _, question in mixtures.rl_questions(lives[group.name], group.rl, rng)
            ]
            rows = [
                json.dumps(asdict(question), default=datetime.isoformat) + "\n"
                for question in asked
            ]
            (folder / "rl.jsonl").write_text("".join(rows))
    pd.DataFrame(map(asdict, findings), columns=["rule", "user", "index", "why"]).to_csv(
        folder / "findings.csv", index=False
    )
    told = [life for group in lives.values() for life in group]
    tables = {
        "Dialogues, on average": _averages(dialogue_table(lives), "group"),
        "Questions, on average": _averages(question_table(told), "kind"),
        "Questions by task": _counts(question.task for life in told for question in life.questions),
        "SFT samples": _counts(kinds[i] for i in chosen),
        "RL samples": _counts(question.kind for question in asked),
        "Findings of the rules": _counts(finding.rule for finding in findings),
    }
    files = sorted(path.name for path in folder.glob("*.parquet"))
    (folder / "README.md").write_text(data_card("Simulated lives", tables, files), encoding="utf-8")
    return {"lives": len(told), "sft": len(chosen), "rl": len(asked)}


def _taken(parts: Iterable[Path]) -> Iterator[str]:
    """The lines of all parts, by their names; each is removed once it is read."""
    for part in sorted(parts):
        with open(part) as file:
            yield from file
        part.unlink()


def _averages(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """How many rows there are of each, and the means of their numbers."""
    groups = table.groupby(by, sort=False)
    return groups.size().rename("n").to_frame().join(groups.mean(numeric_only=True)).reset_index()


def _counts(names: Iterable[str]) -> pd.DataFrame:
    """How many of each there are, and their share of all."""
    found = (
        pd.Series(list(names), name="name", dtype=str)
        .value_counts()
        .sort_index()
        .reset_index(name="n")
    )
    return found.assign(percent=100 * found["n"] / found["n"].sum())
