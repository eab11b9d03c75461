"""What a model can do, skill by skill, asked as the agent asks: with its prompts, its loop, its parsers.

Lives nobody was trained on are lived through by the oracle. What the update stage asked of it is kept, each ask with
the reply that is right; what the response stage will ask is made from the memory that it left. So one suite measures
any ChatModel, in no private format. A reply may show two skills: decision and content of a semantic memory, say.
"""

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from math import nan
from pathlib import Path

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from personavlm_lib.agent import protocol
from personavlm_lib.agent.prompts import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.agent.update import live
from personavlm_lib.evaluation.judges import accuracy
from personavlm_lib.evaluation.statistics import cluster_bootstrap
from personavlm_lib.memory.records import SESSION_GAP, BigFive, Turn, split_sessions
from personavlm_lib.memory.search import PAPER, Retrieved, RetrievedEpisode, Retriever
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import Eyes
from personavlm_lib.models import Ask, ChatModel, Recorder, Trajectory, run
from personavlm_lib.world.dataset import as_query
from personavlm_lib.world.oracle import Oracle
from personavlm_lib.world.plan import LifePlan, sample_plan
from personavlm_lib.world.questions import Question
from personavlm_lib.world.scenes import COLORS, THINGS
from personavlm_lib.world.tasks import MAKERS
from personavlm_lib.world.tellers import tell

SEEDS = 20_000_000  # lives of the suite are numbered from here on: no other stage goes so far
IN_SCENES = {"colour": COLORS, "thing": THINGS}  # what a picture is asked for, by the list that the answer is in
PER_LIFE = 4  # questions of one skill about one life, but for those that share a skill:
SHARES = {"retrieve": 2, "answer": 1, "in context": 1, "semantic True": 2, "semantic False": 2}


@dataclass(frozen=True)
class Skill:
    """`target`: what a trained model should reach. `chance`: of a guess among what is shown. `measure`: the share that
    is right, F1, or an error, where less is better. nan where there is none."""

    target: float = nan
    chance: float = nan
    measure: str = "right"


SKILLS = {
    "look up among 4": Skill(chance=1 / 4), "look up among 8": Skill(0.95, 1 / 8),
    "look up among 12": Skill(chance=1 / 12), "newest of several": Skill(0.9), "option from value": Skill(chance=1 / 4),
    **{f"{asked} in a scene": Skill(0.9, 1 / 4) for asked in IN_SCENES}, "thing seen again": Skill(0.95, 1 / 50),
    "answer or retrieve": Skill(0.95, measure="F1"), "keywords": Skill(), "time window": Skill(0.9),
    "Big Five of a turn": Skill(), "Big Five, error": Skill(0.5, measure="error"),
    "semantic decision": Skill(0.95, measure="F1"), "semantic content": Skill(),
    "topic boundaries": Skill(measure="F1"), "topics": Skill(), "core update": Skill(), "procedural update": Skill(),
}  # fmt: skip
Scores = dict[str, list[float]]  # skill -> what one reply adds to its mean: a hit, or one entry a key, or nothing


@dataclass(frozen=True)
class Item:
    """One thing asked about the life of `user`, in words; the right reply, and what a reply says of which skills."""

    user: str
    asked: str
    trajectory: Trajectory[str | Response]
    gold: str
    score: Callable[[str, str | Response], Scores]


# ---------------------------------------------------------------- how a reply is scored


def _counted(gold: set, got: set) -> list[float]:
    """F1 as a mean: two ones for what both have, a nought for what one has and the other lacks."""
    return [1.0] * 2 * len(gold & got) + [0.0] * len(gold ^ got)


def _step(gold: str, reply: str) -> Scores:
    """F1 is that of answering at once."""
    (wanted, sought), (_, asked) = steps = [
        (step := protocol.parse_step(text), step.retrieve) for text in (gold, reply)
    ]
    if sought and sought.start:
        return {"time window": [float(bool(asked) and (asked.start, asked.end) == (sought.start, sought.end))]}
    answers = ({step.answer is not None} - {False} if retrieve is None else set() for step, retrieve in steps)
    scores = {"answer or retrieve": _counted(*answers)}
    words = set(asked.keywords.replace(",", " ").split()) if asked else set()
    return scores | ({"keywords": [float(set(sought.keywords.split()) <= words)]} if sought else {})


def _personality(gold: str, reply: str) -> Scores:
    """A reply that cannot be read counts as what it leaves behind: a neutral reading."""
    read = protocol.parse_personality(reply) or BigFive.neutral()
    wanted = protocol.parse_personality(gold).as_tuple()
    errors = [abs(a - b) for a, b in zip(wanted, read.as_tuple(), strict=True)]
    return {"Big Five of a turn": [float(not any(errors))], "Big Five, error": errors}


def _semantic(gold: str, reply: str) -> Scores:
    wanted, read = protocol.parse_semantic(gold), protocol.parse_semantic(reply)
    kept = {"semantic decision": _counted({wanted.decision} - {False}, {bool(read and read.decision)} - {False})}
    same = [float(bool(read) and read.content == wanted.content)] * wanted.decision
    return kept | ({"semantic content": same} if same else {})


def _episodic(gold: str, reply: str) -> Scores:
    topics = [{topic.indices for topic in protocol.parse_episodes(text) if topic.indices} for text in (gold, reply)]
    starts = [{min(indices) for indices in part} - {0} for part in topics]
    return {"topic boundaries": _counted(*starts), "topics": [float(topics[0] == topics[1])]}


def _entries(skill: str, parse: Callable[[str], dict]) -> Callable[[str, str], Scores]:
    def score(gold: str, reply: str) -> Scores:
        wanted, read = parse(gold), parse(reply)
        return {skill: [float(wanted.get(key) == read.get(key)) for key in wanted | read]}

    return score


UPDATES = {
    "personality": _personality, "semantic": _semantic, "episodic": _episodic,
    "core": _entries("core update", protocol.parse_core),
    "procedural": _entries("procedural update", protocol.parse_procedural),
}  # fmt: skip


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class _Shows(Retriever):
    """Brings back what it was made with, whatever it is asked for; the second time nothing."""

    shown: Retrieved = Retrieved()

    def retrieve(self, *_, exclude: Collection[str] = frozenset(), **__) -> Retrieved:
        return Retrieved() if set(self.shown.ids) <= set(exclude) else self.shown


def _once(ask: Ask) -> Trajectory[str]:
    return (yield ask).text


def _questions(plan: LifePlan, rng: random.Random) -> list[Question]:
    """All that can be asked of a life at night, on the morning after and two weeks after its turns, shuffled."""
    days = sorted({beat.time.date() for beat in plan.beats[12:]})
    moments = [datetime.combine(d + timedelta(days=i), time(h)) for d in days for i, h in ((0, 23), (1, 7), (14, 7))]
    quiet = [m for m in moments if all(abs(beat.time - m) > 2 * SESSION_GAP for beat in plan.beats)]
    asked = [question for moment in quiet for maker in MAKERS for question in maker(plan, rng, moment)]
    return rng.sample(asked, len(asked))


def _responses(
    plan: LifePlan, turns: list[Turn], store: MemoryStore, prompts: PromptSet, retrieving: bool, rng: random.Random
) -> Iterator[tuple[str, Item]]:
    """What the response stage asks, by the skill that it is for."""
    settings = AgentSettings(prompts, 3 if retrieving else 0, max_tokens=64 * prompts.room)

    def first(question: Question) -> Item:
        """The first step alone; the oracle says which is right."""
        view, oracle = store.as_of(question.time), Oracle(plan, turns, [question])
        ask = next(respond(as_query(question), view, PAPER, replace(settings, max_retrievals=3)))
        return Item(plan.user, ask.text, _once(ask), oracle.reply([(oracle.start(), ask)])[0].text, _step)

    def judged(skill: str, question: Question, shown: Retrieved, raw: list[Turn]) -> tuple[str, Item]:
        """The answer from `shown`, or, of a model that does not retrieve, from the turns behind it."""
        context = {} if retrieving else {"context": raw}
        played = respond(as_query(question), store.as_of(question.time), _Shows(shown=shown), settings, **context)
        asked = "\n".join([*(turn.user for turn in raw), question.query])
        return skill, Item(plan.user, asked, played, question.answer,
                           lambda _, response: {skill: [accuracy(question, response.answer)]})  # fmt: skip

    for question in _questions(plan, rng):
        view, hop = store.as_of(question.time), question.hops[0] if question.hops else None
        yield "answer" if hop is None else "time window" if hop.start else "retrieve", first(question)
        if len(question.hops) != 1 or hop.start or not question.evidence:
            continue
        told = turns[question.evidence[-1]]
        for scene, listed in IN_SCENES.items():
            if hop.sentence.endswith("<img>") and question.answer in listed:
                episodes = [RetrievedEpisode(**vars(e), raw=(told,)) for e in view.episodes if told.index in e.turns]
                yield judged(f"{scene} in a scene", question, Retrieved(episodic=episodes), [told])
        known = [memory for memory in view.semantic if not memory.concept]
        alike = [memory for memory in known if memory.content.startswith(f"{hop.keywords} ")]
        right = [memory for memory in alike if memory.content == hop.sentence][-1:]
        if not right or question.answer not in hop.sentence.split():
            continue
        bare = replace(question, kind="open", options=())
        asks = [
            ("option from value", question, right, 1),
            *((f"look up among {n}", bare, right, n) for n in (4, 8, 12)),
        ]
        if question.task == "Latest Preference Recognition" and len(alike) > 1:
            asks.append(("newest of several", bare, alike, 8))
        others = [memory for memory in known if memory not in alike]
        for skill, asked, kept, n in asks:
            if len(others) >= n - len(kept):
                shown = sorted(kept + rng.sample(others, max(0, n - len(kept))), key=lambda memory: memory.id)
                yield judged(skill, asked, Retrieved(semantic=shown), [view.turn(m.sources[0]) for m in shown])
        end = next(session for session in split_sessions(turns) if told in session)[-1].time
        yield "in context", first(replace(question, time=end + timedelta(minutes=5)))


@contextmanager
def suite(
    n: int, seed: int, prompts: PromptSet = NANO, eyes: Eyes | None = None, retrieving: bool = True
) -> Iterator[list[Item]]:
    """About `n` items of each skill, on n / 4 lives or two; what they show lasts as long as the context.

    `retrieving`: False for a model that was never taught to, such as a backbone: what it would have to retrieve stands
    before it as raw turns, as the baselines are asked.
    """
    items: list[tuple[str, Item]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="skills-"))
        for number in range(max(2, n // PER_LIFE)):
            rng, plan = random.Random(f"skills {seed} {number}"), sample_plan(SEEDS + 10_000 * seed + number)
            turns, samples, pools = tell(plan, Path(folder)), [], defaultdict(list)
            store = stack.enter_context(MemoryStore.in_memory(images=folder))
            with store.transaction():
                run([live(store, turns, prompts, eyes)], Recorder(Oracle(plan, turns), samples))
            for name, item in _responses(plan, turns, store, prompts, retrieving, rng):
                pools[name].append(item)
            for sample in rng.sample(samples, len(samples)):
                (text, gold), purpose = (m["content"] for m in sample["messages"]), sample["purpose"]
                ask = Ask(text, tuple(sample["images"]), 256 * prompts.room, True, purpose)
                half = f" {protocol.parse_semantic(gold).decision}" if purpose == "semantic" else ""
                pools[purpose + half].append(Item(plan.user, text, _once(ask), gold, UPDATES[purpose]))
            items += [(name, item) for name, pool in pools.items() for item in pool[: SHARES.get(name, PER_LIFE)]]
        yield [item for _, item in sorted(items, key=lambda named: (named[0], len(named[1].asked)))]


# ---------------------------------------------------------------- measuring


def measure(
    model: ChatModel, n: int, seed: int, prompts: PromptSet = NANO, eyes: Eyes | None = None, retrieving: bool = True,
    seen_again: float = nan, width: int = 48,
) -> pd.DataFrame:  # fmt: skip
    """One row per value of a `suite`: skill, user, item (its place), value, and for reading: asked, gold, reply.

    `seen_again`, a skill of its own: which share of 50 things the eyes know again.
    """
    rows = []
    with suite(n, seed, prompts, eyes, retrieving) as items:
        results = run([item.trajectory for item in items], model, width)
    for place, (item, result) in enumerate(zip(items, results, strict=True)):
        reply = result.raw if isinstance(result, Response) else result
        told = dict(user=item.user, item=place, asked=item.asked, gold=item.gold, reply=reply)
        for skill, values in item.score(item.gold, result).items():
            rows += [dict(skill=skill, value=value, **told) for value in values or [nan]]
    hits = [] if seen_again != seen_again else [float(i < round(50 * seen_again)) for i in range(50)]
    rows += [dict(skill="thing seen again", user=str(i), item=-1 - i, value=hit) for i, hit in enumerate(hits)]
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame, cluster: str = "user") -> pd.DataFrame:
    """One row per skill in the order of SKILLS: skill, measure, n (questions), score, low, high, chance, target.

    Intervals of 95% resample lives, or what else `cluster` names: of models that differ in their seed, "model". Where
    all clusters are alike, which resampling would take for certainty, Wilson's.
    """
    rows = []
    for name, skill in SKILLS.items():
        asked = frame[frame["skill"] == name]
        values = asked.dropna(subset="value")
        if len(values):
            found = cluster_bootstrap(values, "value", cluster)
            low, high = found.low, found.high
            if not high > low:
                low, high = proportion_confint(round(found.mean * len(values)), len(values), method="wilson")
            told = dict(skill=name, measure=skill.measure, n=asked[[cluster, "item"]].drop_duplicates().shape[0])
            rows.append(told | dict(score=found.mean, low=low, high=high, chance=skill.chance, target=skill.target))
    return pd.DataFrame(rows)
