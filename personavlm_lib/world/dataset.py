"""Lives, gold memories and training samples, on disk (paper, sections 3.2 and 4, appendix B.2 and C).

Gold memory is what the agent's own update stage leaves behind when the oracle speaks; SFT samples are recordings of it.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import cycle, islice, zip_longest
from pathlib import Path

import pandas as pd

from personavlm_lib.agent.prompts import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, respond
from personavlm_lib.agent.update import live
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import Turn, split_sessions
from personavlm_lib.memory.search import PAPER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import Eyes
from personavlm_lib.models import Recorder, run
from personavlm_lib.world.oracle import Oracle
from personavlm_lib.world.plan import LifePlan, sample_plan
from personavlm_lib.world.questions import Hop, Question
from personavlm_lib.world.tasks import ask
from personavlm_lib.world.tellers import tell

# Appendix B.2: shares of the SFT samples by purpose, and of the RL samples by kind of question.
SFT_MIXTURE = {"respond": 0.436, "personality": 0.103, "memory": 0.461}
RL_MIXTURE = {"open": 0.21, "choice": 0.556, "binary": 0.234}
MEMORY_PURPOSES = ("semantic", "core", "procedural", "episodic")
CONCEPTS = 6 / 78  # share of all SFT samples that are concept samples: semantic memory of an object that was shown


@dataclass(frozen=True)
class Life:
    """One simulated user: the dialogue as told, the questions about it, and the plan behind both."""

    plan: LifePlan
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]

    @property
    def user(self) -> str:
        return self.plan.user

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.plan, list(self.turns), self.questions)


def make_life(seed: int, images: Path, days: int, size: float, questions: int, alignment: int) -> Life:
    """A life with `questions` questions and `alignment` pairs of alignment items; pictures go to `images`."""
    plan = sample_plan(seed, days, size)
    return Life(plan, tuple(tell(plan, images)), tuple(ask(plan, questions, alignment)))


def retold(life: Life, images: Path) -> Life:
    """The same life and questions, told in varied wording."""
    return replace(life, turns=tuple(tell(life.plan, images, wording="varied")))


def write_lives(path: Path, lives: Iterable[Life]) -> None:
    """JSON Lines: what the plan is sampled from, turns and questions; image paths relative to the file's folder."""
    with open(path, "w") as file:
        for life in lives:
            turns = [
                replace(t, images=tuple(str(Path(i).relative_to(path.parent)) for i in t.images)) for t in life.turns
            ]
            row = {"user": life.user, "plan": life.plan.given}
            row |= {"turns": [asdict(t) for t in turns], "questions": [asdict(q) for q in life.questions]}
            file.write(json.dumps(row, default=datetime.isoformat) + "\n")


def read_lives(path: Path) -> list[Life]:
    """The lives of a file that `write_lives` wrote."""
    return [_life(json.loads(line), path.parent) for line in path.read_text().splitlines()]


def _life(row: dict, folder: Path) -> Life:
    def moment(text: str | None) -> datetime | None:
        return text and datetime.fromisoformat(text)

    turns = [
        Turn(moment(t["time"]), t["user"], t["assistant"], tuple(str(folder / i) for i in t["images"]), t["index"])
        for t in row["turns"]
    ]
    questions = []
    for q in row["questions"]:
        hops = tuple(Hop(**h | {"start": moment(h["start"]), "end": moment(h["end"])}) for h in q["hops"])
        fields = q | {"time": moment(q["time"]), "hops": hops, "options": tuple(q["options"])}
        questions.append(Question(**fields | {"evidence": tuple(q["evidence"]), "told": tuple(q["told"])}))
    return Life(sample_plan(**row["plan"]), tuple(turns), tuple(questions))


def as_query(question: Question) -> Turn:
    """The question as the user's next message."""
    return Turn(question.time, question.query)


def gold_memory(
    life: Life, folder: Path | MemoryStore, eyes: Eyes | None, samples: list[dict] | None = None,
    prompts: PromptSet = NANO, encoder: Encoder | None = None,
) -> MemoryStore:  # fmt: skip
    """The memory that the update stage writes into the new `folder` (or empty store) when the oracle speaks;
    conversations are appended to `samples`."""
    store = folder if isinstance(folder, MemoryStore) else MemoryStore(folder, encoder)
    recorder = Recorder(life.oracle, [] if samples is None else samples)
    with store.transaction():  # one for the life, not one a turn: what is cut short is made anew
        run([live(store, list(life.turns), prompts, eyes, written_by="oracle")], recorder)
    return store


def answer_samples(
    life: Life, store: MemoryStore, rng: random.Random, without: float = 0.05, prompts: PromptSet = NANO
) -> list[dict]:
    """Recordings of the oracle answering this life's questions, each given only what its own retrievals brought.

    A quarter of the choice questions comes without its options. A share `without` is asked with no memory and no
    retrieval: there the sample teaches to say that it is unknown, and to guess. Twice that share has no profile, and
    retrieval all the same: else an empty profile alone would come to mean that nothing is known. Three times that share
    has no episodes, which mostly hold what semantic memory does: else that would never be read. And one in eight is
    asked just after the evidence was told, when it still stands in the context and nothing is to be retrieved.
    """
    samples: list[dict] = []
    retriever = PAPER
    trajectories, golds = [], []
    questions = [
        q if q.kind == "binary" or rng.random() > 0.25 else replace(q, kind="open", options=()) for q in life.questions
    ]
    questions = [_at_once(q, life) if rng.random() < 0.125 else q for q in questions]
    for question in questions:
        draw, view = rng.random(), store.as_of(question.time)
        blind = draw < without and question.options
        if blind:
            view = view.without("core", "semantic", "episodic", "procedural")
        elif draw < 3 * without and question.hops:
            view = view.without("core")
        elif draw < 6 * without and question.hops:
            view = view.without("episodic")
        settings = AgentSettings(prompts, random_top_k=True, max_retrievals=0 if blind else 3)
        trajectories.append(respond(as_query(question), view, retriever, settings, rng=random.Random(rng.random())))
        golds.append(None if blind else question.answer)
    recorder = Recorder(Oracle(life.plan, list(life.turns), questions), samples)
    answers = [response.answer for response in run(trajectories, recorder, width=1)]
    kept = zip(samples, answers, golds, strict=True)
    return [sample for sample, answer, gold in kept if gold is None or answer == gold]


def _at_once(question: Question, life: Life) -> Question:
    """The question as it is asked five minutes after the session in which its one piece of evidence was told."""
    if len(question.hops) != 1 or question.hops[0].start or not question.evidence:
        return question
    told = life.turns[question.evidence[-1]]
    end = next(session[-1].time for session in split_sessions(life.turns) if told in session)
    return replace(question, time=end + timedelta(minutes=5))


def kind(sample: dict) -> str:
    """A sample's purpose; "concept" for semantic memory of an object."""
    concept = sample["purpose"] == "semantic" and "(Image Object:" in sample["messages"][-1]["content"]
    return "concept" if concept else sample["purpose"]


def split(total: int, shares: dict[str, float]) -> dict[str, int]:
    """`total` in whole numbers by shares; those that lose most by rounding down are rounded up."""
    counts = {name: int(share * total) for name, share in shares.items()}
    short = sorted(shares, key=lambda name: counts[name] - shares[name] * total)[: total - sum(counts.values())]
    return {name: count + (name in short) for name, count in counts.items()}


def mix(samples: list[dict], total: int, rng: random.Random) -> list[dict]:
    """`total` samples in the shares of SFT_MIXTURE; see `mixture`."""
    return [samples[place] for place in mixture(map(kind, samples), total, rng)]


def mixture(kinds: Iterable[str], total: int, rng: random.Random) -> list[int]:
    """Places of `total` samples of these kinds, by SFT_MIXTURE: none twice before all of its group are drawn.

    Of memory samples the concepts come first, in their share of all, and then each purpose in turn.
    """
    queues: dict[str, list[int]] = {}
    for place, name in enumerate(kinds):
        queues.setdefault(name, []).append(place)
    for queue in queues.values():
        rng.shuffle(queue)
    concepts, wanted = queues.get("concept", []), round(CONCEPTS * total)
    turns = zip_longest(*(queues.get(purpose, []) for purpose in MEMORY_PURPOSES))
    others = [place for places in turns for place in places if place is not None]
    queues["memory"] = concepts[:wanted] + others + concepts[wanted:]
    drawn: list[int] = []
    for group, count in split(total, SFT_MIXTURE).items():
        drawn += islice(cycle(queues.get(group, [])), count)
    rng.shuffle(drawn)
    return drawn


def rl_questions(lives: list[Life], total: int, rng: random.Random) -> list[tuple[Life, Question]]:
    """`total` prompts in the shares of RL_MIXTURE, none twice before all are drawn; open ones are choice questions
    without their options."""
    pairs = [(life, question) for life in lives for question in life.questions]
    rng.shuffle(pairs)
    pools = {binary: cycle([p for p in pairs if (p[1].kind == "binary") == binary]) for binary in (True, False)}
    drawn = []
    for name, count in split(total, RL_MIXTURE).items():
        picked = islice(pools[name == "binary"], count)
        drawn += [(life, replace(q, kind="open", options=()) if name == "open" else q) for life, q in picked]
    rng.shuffle(drawn)
    return drawn


def dialogues(groups: dict[str, list[Life]]) -> pd.DataFrame:
    """One row per dialogue (Fig. 8): group, user, turns, pictured (turns with a picture), sessions, days spanned."""
    rows = [
        (group, life.user, len(turns := life.turns), sum(bool(turn.images) for turn in turns),
         len(split_sessions(turns)), (turns[-1].time.date() - turns[0].time.date()).days + 1)
        for group, lives in groups.items() for life in lives
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "user", "turns", "pictured", "sessions", "days"])


def needed_picture(life: Life, question: Question) -> str:
    """The first picture among the gold evidence, without which there is no answer.

    None for the personality, which shows in how the turns are worded.
    """
    pictures = [path for i in question.evidence for path in life.turns[i].images]
    return pictures[0] if pictures and question.kind != "binary" else ""


def questions(lives: list[Life]) -> pd.DataFrame:
    """One row per question: user, task, aspect, kind, its words and its answer's (options aside), needs_picture."""
    rows = [
        (q.user, q.task, q.aspect, q.kind, len(q.text.split()), len(q.answer.split()), bool(needed_picture(life, q)))
        for life in lives for q in life.questions
    ]  # fmt: skip
    return pd.DataFrame(rows, columns="user task aspect kind question_words answer_words needs_picture".split())
