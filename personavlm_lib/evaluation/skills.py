"""What a model can do, skill by skill, asked as the agent asks: with its prompts, its loop, its parsers.

Lives nobody was trained on are lived through by the oracle. What the update stage asked of it is kept, each ask with
the reply that is right; what the response stage will ask is made from the memory that it left. So one suite measures
any ChatModel, in no private format. A reply may show two skills: decision and content of a semantic memory, say.
"""

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from math import ceil, nan
from pathlib import Path

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from personavlm_lib.agent import protocol
from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.benchmark.lives import Life, as_query, simulate_life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.benchmark.recordings import gold_memory
from personavlm_lib.benchmark.tasks import MAKERS
from personavlm_lib.evaluation.judges import accuracy
from personavlm_lib.evaluation.statistics import cluster_bootstrap
from personavlm_lib.memory.records import SESSION_GAP, BigFive, Turn, split_sessions
from personavlm_lib.memory.search import PAPER_RETRIEVER, Retrieved, RetrievedEpisode, Retriever
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.chat import ChatModel, ChatRequest, Trajectory
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.simulation.scenes import COLORS, COUNTS, LOOSE, SIGN_WORDS

SEEDS = 20_000_000  # lives of the suite are numbered from here on: no other stage goes so far
# What a picture is asked for, by the list that the answer is in.
IN_SCENES = {"colour": COLORS, "thing": LOOSE, "count": COUNTS, "word": SIGN_WORDS}
PER_LIFE = 2  # questions of one skill about one life, but for those that share a skill:
SHARES = {"retrieve": 2, "answer": 1, "in context": 1, "semantic True": 2, "semantic False": 2}


# What a trained model should reach, and what a guess among what is shown does; nan where there is none.
SKILLS: dict[str, tuple[float, float]] = {
    "look up among 4": (nan, 1 / 4), "look up among 8": (0.95, 1 / 8), "look up among 12": (nan, 1 / 12),
    "newest of several": (0.9, nan), "option from value": (nan, 1 / 4),
    **{f"{asked} in a scene": (0.9, 1 / 4) for asked in IN_SCENES}, "thing seen again": (0.95, 1 / 50),
    "answer or retrieve, F1": (0.95, nan), "keywords": (nan, nan), "time window": (0.9, nan),
    "Big Five of a turn": (nan, nan), "Big Five, error": (0.5, nan), "semantic decision, F1": (0.95, nan),
    "semantic content": (nan, nan), "topic boundaries, F1": (nan, nan), "topics": (nan, nan),
    "core update": (nan, nan), "procedural update": (nan, nan),
}  # fmt: skip
Scores = dict[
    str, list[float]
]  # skill -> what one reply adds to its mean: a hit, or one entry a key, or nothing
Score = Callable[[str, str | Response], Scores]  # of the right reply and the model's


@dataclass(frozen=True)
class SkillItem:
    """One thing asked about the life of `user`, in words; the right reply, and what a reply says of which skills."""

    user: str
    asked: str
    trajectory: Trajectory[str | Response]
    gold: str
    score: Score


# ---------------------------------------------------------------- how a reply is scored


def _f1(gold: set, got: set) -> list[float]:
    """F1 as a mean: two ones for what both have, a nought for what one has and the other lacks."""
    return [1.0] * 2 * len(gold & got) + [0.0] * len(gold ^ got)


def _step(gold: str, reply: str) -> Scores:
    """F1 is that of answering at once."""
    steps = protocol.parse_step(gold), protocol.parse_step(reply)
    sought, asked = (step.retrieve for step in steps)
    if sought and sought.start:
        return {
            "time window": [
                float(bool(asked) and (asked.start, asked.end) == (sought.start, sought.end))
            ]
        }
    decided = ({"answer"} if step.answer and not step.retrieve else set() for step in steps)
    words = set(asked.keywords.replace(",", " ").split()) if asked else set()
    right = {"keywords": [float(set(sought.keywords.split()) <= words)]} if sought else {}
    return {"answer or retrieve, F1": _f1(*decided)} | right


def _personality(gold: str, reply: str) -> Scores:
    """A reply that cannot be read counts as what it leaves behind: a neutral reading."""
    pair = protocol.parse_personality(gold), protocol.parse_personality(reply) or BigFive.neutral()
    errors = [abs(a - b) for a, b in zip(*(part.as_tuple() for part in pair), strict=True)]
    return {"Big Five of a turn": [float(not any(errors))], "Big Five, error": errors}


def _semantic(gold: str, reply: str) -> Scores:
    wanted, read = protocol.parse_semantic(gold), protocol.parse_semantic(reply)
    kept = ({"keep"} if part and part.decision else set() for part in (wanted, read))
    right = (
        {"semantic content": [float(bool(read) and read.content == wanted.content)]}
        if wanted.decision
        else {}
    )
    return {"semantic decision, F1": _f1(*kept)} | right


def _episodic(gold: str, reply: str) -> Scores:
    topics = [
        {topic.indices for topic in protocol.parse_episodes(text) if topic.indices}
        for text in (gold, reply)
    ]
    starts = ({min(indices) for indices in part} - {0} for part in topics)
    return {"topic boundaries, F1": _f1(*starts), "topics": [float(topics[0] == topics[1])]}


def _entries(gold: dict[str, str], got: dict[str, str]) -> list[float]:
    return [float(gold.get(key) == got.get(key)) for key in gold | got]


UPDATES: dict[str, Score] = {
    "personality": _personality, "semantic": _semantic, "episodic": _episodic,
    "core": lambda *texts: {"core update": _entries(*map(protocol.parse_core, texts))},
    "procedural": lambda *texts: {"procedural update": _entries(*map(protocol.parse_procedural, texts))},
}  # fmt: skip


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class _Shows(Retriever):
    """Brings back what it was made with, whatever it is asked for; the second time nothing."""

    shown: Retrieved = Retrieved()

    def retrieve(self, *_, exclude: Collection[str] = frozenset(), **__) -> Retrieved:
        return Retrieved() if set(self.shown.ids) <= set(exclude) else self.shown


def _once(ask: ChatRequest) -> Trajectory[str]:
    return (yield ask).text


def _questions(life: Life, rng: random.Random) -> list[Question]:
    """What can be asked of a life at night, on the morning after and two weeks after its turns, shuffled.

    Nothing twice: of the same picture, say, from day to day, which would count one glance as many.
    """
    days = sorted({turn.time.date() for turn in life.turns[12:]})
    moments = [
        datetime.combine(d + timedelta(days=i), time(h))
        for d in days
        for i, h in ((0, 23), (1, 7), (14, 7))
    ]
    quiet = [m for m in moments if all(abs(turn.time - m) > 2 * SESSION_GAP for turn in life.turns)]
    asked = [
        question
        for moment in quiet
        for maker in MAKERS
        for question in maker(life.plan, rng, moment)
    ]
    asked = list({(q.text, q.answer, q.hops): q for q in asked}.values())
    return rng.sample(asked, len(asked))


def _responses(
    life: Life, store: MemoryStore, prompts: PromptSet, retrieving: bool, rng: random.Random
) -> Iterator[tuple[str, SkillItem]]:
    """What the response stage asks, by the skill that it is for."""
    settings = AgentSettings(prompts, 3 if retrieving else 0, max_tokens=64 * prompts.room)

    def first(question: Question) -> SkillItem:
        """The first step alone; the oracle says which is right."""
        view, oracle = store.as_of(question.time), replace(life, questions=(question,)).oracle
        ask = next(
            respond(as_query(question), view, PAPER_RETRIEVER, replace(settings, max_retrievals=3))
        )
        return SkillItem(
            life.user, ask.text, _once(ask), oracle.reply([(oracle.start(), ask)])[0].text, _step
        )

    def judged(
        skill: str, question: Question, shown: Retrieved, raw: list[Turn]
    ) -> tuple[str, SkillItem]:
        """The answer from `shown`, or, of a model that does not retrieve, from the turns behind it."""
        context = {} if retrieving else {"context": raw}
        played = respond(
            as_query(question), store.as_of(question.time), _Shows(shown=shown), settings, **context
        )
        asked = "\n".join([*(turn.user for turn in raw), question.query])
        return skill, SkillItem(life.user, asked, played, question.answer,
                           lambda _, response: {skill: [accuracy(question, response.answer)]})  # fmt: skip

    for question in _questions(life, rng):
        view, hop = store.as_of(question.time), question.hops[0] if question.hops else None
        yield (
            "answer" if hop is None else "time window" if hop.start else "retrieve",
            first(question),
        )
        if len(question.hops) != 1 or hop.start or not question.evidence:
            continue
        told = view.turn(question.evidence[-1])
        for scene, listed in IN_SCENES.items():
            if hop.sentence.endswith("<img>") and question.answer in listed:
                episodes = [
                    RetrievedEpisode(**vars(e), raw=(told,))
                    for e in view.episodes
                    if told.index in e.turns
                ]
                yield judged(f"{scene} in a scene", question, Retrieved(episodic=episodes), [told])
        known = [memory for memory in view.semantic if not memory.concept]
        about = hop.keywords.removesuffix(" now")
        alike = [memory for memory in known if memory.content.startswith(f"{about} ")]
        right = [memory for memory in alike if memory.content == hop.sentence][-1:]
        if not right or question.answer not in hop.sentence.split():
            continue
        bare = replace(question, kind="open", options=())
        asks = [("option from value", question, right, 1)]
        asks += [(f"look up among {n}", bare, right, n) for n in (4, 8, 12)]
        if question.task == "Latest Preference Recognition" and len(alike) > 1:
            asks.append(("newest of several", bare, alike, 8))
        others = [memory for memory in known if memory not in alike]
        for skill, asked, kept, n in asks:
            if len(others) >= n - len(kept):
                shown = sorted(
                    kept + rng.sample(others, max(0, n - len(kept))), key=lambda memory: memory.id
                )
                yield judged(
                    skill,
                    asked,
                    Retrieved(semantic=shown),
                    [view.turn(m.sources[0]) for m in shown],
                )
        end = next(s for s in split_sessions(view.turns) if told in s)[-1].time
        yield "in context", first(replace(question, time=end + timedelta(minutes=5)))


def skill_suite(
    folder: Path,
    n: int,
    seed: int,
    prompts: PromptSet = NANO,
    recognizer: ConceptRecognizer | None = None,
    retrieving: bool = True,
) -> list[SkillItem]:
    """About `n` items of each skill, on n / 4 lives or two, which are written into `folder`.

    `retrieving`: False for a model that was never taught to, such as a backbone: what it would have to retrieve stands
    before it as raw turns, as the baselines are asked.
    """
    items: list[tuple[str, SkillItem]] = []
    for number in range(lives := max(2, n // PER_LIFE)):
        rng, samples, pools = random.Random(f"skills {seed} {number}"), [], defaultdict(list)
        life = simulate_life(SEEDS + 10_000 * seed + number, folder, 28, 1.0, 0, 0)
        store = gold_memory(life, folder / life.user, recognizer, samples, prompts)
        for name, item in _responses(life, store, prompts, retrieving, rng):
            pools[name].append(item)
        for sample in rng.sample(samples, len(samples)):
            (text, gold), purpose = (m["content"] for m in sample["messages"]), sample["purpose"]
            ask = ChatRequest(text, tuple(sample["images"]), 256 * prompts.room, True, purpose)
            half = f" {protocol.parse_semantic(gold).decision}" if purpose == "semantic" else ""
            pools[purpose + half].append(
                SkillItem(life.user, text, _once(ask), gold, UPDATES[purpose])
            )
        for name, pool in pools.items():
            items += [
                (name, item)
                for item in pool[: ceil(SHARES.get(name, PER_LIFE) * n / (PER_LIFE * lives))]
            ]
    return [item for _, item in sorted(items, key=lambda named: (named[0], len(named[1].asked)))]


# ---------------------------------------------------------------- measuring


def measure_skills(
    model: ChatModel, n: int, seed: int, prompts: PromptSet = NANO, recognizer: ConceptRecognizer | None = None, retrieving: bool = True,
    seen_again: float = nan, width: int = 48,
) -> pd.DataFrame:  # fmt: skip
    """One row per value of a `suite`: skill, user, item (its place), value, and for reading: asked, gold, reply.

    `seen_again`, a skill of its own: which share of 50 things the eyes know again.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="skills-") as folder:
        items = skill_suite(Path(folder), n, seed, prompts, recognizer, retrieving)
        results = run_trajectories([item.trajectory for item in items], model, width)
    for place, (item, result) in enumerate(zip(items, results, strict=True)):
        reply = getattr(result, "raw", result)
        told = dict(user=item.user, item=place, asked=item.asked, gold=item.gold, reply=reply)
        for skill, values in item.score(item.gold, result).items():
            rows += [dict(skill=skill, value=value, **told) for value in values or [nan]]
    hits = (
        [] if seen_again != seen_again else [float(i < round(50 * seen_again)) for i in range(50)]
    )
    rows += [
        dict(skill="thing seen again", user=str(i), item=-1 - i, value=hit)
        for i, hit in enumerate(hits)
    ]
    return pd.DataFrame(rows)


def skill_table(frame: pd.DataFrame, cluster: str = "user") -> pd.DataFrame:
    """One row per skill in the order of SKILLS: skill, n (questions), score, low, high, target, chance.

    The score is the share that is right unless the name says F1 or error. Intervals of 95% resample lives, or what else
    `cluster` names: of models that differ in their seed, "model". Where all clusters are alike, which resampling would
    take for certainty, Wilson's.
    """
    rows = []
    for name, (target, chance) in SKILLS.items():
        asked = frame[frame["skill"] == name]
        values = asked.dropna(subset="value")
        if len(values):
            found = cluster_bootstrap(values, "value", cluster)
            ends = proportion_confint(round(found.mean * len(values)), len(values), method="wilson")
            low, high = (found.low, found.high) if found.high > found.low else ends
            n = len(asked[[cluster, "item"]].drop_duplicates())
            rows.append(
                dict(
                    skill=name,
                    n=n,
                    score=found.mean,
                    low=low,
                    high=high,
                    target=target,
                    chance=chance,
                )
            )
    return pd.DataFrame(rows)
