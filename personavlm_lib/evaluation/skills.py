"""Measure what a model can do, skill by skill, with the agent's own prompts, loop and parsers.

The oracle replays simulated lives that no model was trained on. The requests of the update stage
become items, with the oracle's reply as the right one. The items of the response stage are made
from the memory that the oracle writes. The suite uses only the agent's own formats, so it can
measure any ChatModel. One reply may count for two skills, such as the decision and the content of a
semantic memory.
"""

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from functools import partial
from math import ceil, isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from statsmodels.stats.proportion import proportion_confint

from personavlm_lib.agent import protocol
from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.benchmark.lives import Life, as_query, simulate_life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.benchmark.recordings import after_session, gold_memory
from personavlm_lib.benchmark.seeds import SKILL_USERS, USERS_PER_SKILL_SUITE
from personavlm_lib.benchmark.tasks import MAKERS
from personavlm_lib.evaluation.failures import FailurePolicy, NoReply
from personavlm_lib.evaluation.judges import accuracy
from personavlm_lib.evaluation.statistics import cluster_bootstrap
from personavlm_lib.memory.records import SESSION_GAP, BigFive, SemanticMemory, Turn
from personavlm_lib.memory.search import PAPER_RETRIEVER, Retrieved, RetrievedEpisode, Retriever
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, Trajectory
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.simulation.scenes import COLORS, COUNTS, LOOSE, SIGN_WORDS

# What a question about an image asks for, by the list that contains the answer.
IN_SCENES = {"colour": COLORS, "thing": LOOSE, "count": COUNTS, "word": SIGN_WORDS}
PER_LIFE = 2  # items of one pool from one life; exceptions, for pools that share a skill:
SHARES = {"retrieve": 2, "answer": 1, "in context": 1, "semantic True": 2, "semantic False": 2}

SKILLS = yaml.safe_load(Path(__file__).with_name("skills.yaml").read_text(encoding="utf-8"))
CONCEPTS = SKILLS["thing seen again"]["options"]
# Skill -> the values that one reply adds to the mean of the skill: a hit or a miss, one value per
# entry, or none.
Scores = dict[str, list[float]]
# Scores the gold reply against the model's, which is a text or, for whole trajectories, a Response.
Score = Callable[[str, Any], Scores]


@dataclass(frozen=True)
class SkillSettings:
    """Settings of a skill suite.

    questions: about how many items per skill.
    seed: of the simulated lives.
    recognizer: crops visual concepts when the gold memory is written.
    retrieving: False for a model that was not trained to retrieve, such as a backbone. The raw
        turns that it would have to retrieve are then in its prompt, as in the baselines.
    """

    questions: int
    seed: int
    prompts: PromptSet = NANO
    recognizer: ConceptRecognizer | None = None
    retrieving: bool = True


@dataclass(frozen=True)
class SkillItem:
    """One request about the life of `user`, with the right reply and how to score the model's."""

    user: str
    request: str
    trajectory: Trajectory[str | Response]
    gold: str
    score: Score


# ---------------------------------------------------------------- scores of a reply


def _f1_values(gold: set, predicted: set) -> list[float]:
    """Values whose mean is F1: two ones per element in both sets, one zero per element in one."""
    hits = len(gold & predicted)
    misses = len(gold ^ predicted)
    return [1.0] * 2 * hits + [0.0] * misses


def _score_step(gold: str, reply: str) -> Scores:
    """Score the first reasoning step. The F1 is that of the decision to answer at once."""
    gold_step = protocol.parse_step(gold)
    step = protocol.parse_step(reply)
    wanted = gold_step.retrieve
    search = step.retrieve
    if wanted and wanted.start:
        period = (wanted.start, wanted.end)
        found = search is not None and (search.start, search.end) == period
        return {"time window": [float(found)]}
    scores = {"answer or retrieve, F1": _f1_values(_decision(gold_step), _decision(step))}
    if wanted:
        words = set(search.keywords.replace(",", " ").split()) if search else set()
        wanted_words = set(wanted.keywords.split())
        scores["keywords"] = [float(wanted_words <= words)]
    return scores


def _decision(step: protocol.Step) -> set[str]:
    return {"answer"} if step.answer and not step.retrieve else set()


def _score_personality(gold: str, reply: str) -> Scores:
    """Score a personality reading; an unreadable one counts as neutral."""
    wanted = protocol.parse_personality(gold)
    assert wanted is not None
    reading = protocol.parse_personality(reply) or BigFive.neutral()
    errors = []
    for a, b in zip(wanted.as_tuple(), reading.as_tuple(), strict=True):
        errors.append(abs(a - b))
    exact = not any(errors)
    return {"Big Five of a turn": [float(exact)], "Big Five, error": errors}


def _score_semantic(gold: str, reply: str) -> Scores:
    wanted = protocol.parse_semantic(gold)
    assert wanted is not None
    memory = protocol.parse_semantic(reply)
    gold_decision = {"keep"} if wanted.decision else set()
    decision = {"keep"} if memory and memory.decision else set()
    scores = {"semantic decision, F1": _f1_values(gold_decision, decision)}
    if wanted.decision:
        same = memory is not None and memory.content == wanted.content
        scores["semantic content"] = [float(same)]
    return scores


def _score_episodic(gold: str, reply: str) -> Scores:
    wanted = _topics(gold)
    topics = _topics(reply)
    boundaries = _f1_values(_boundaries(wanted), _boundaries(topics))
    exact = topics == wanted
    return {"topic boundaries, F1": boundaries, "topics": [float(exact)]}


def _topics(text: str) -> set[tuple[int, ...]]:
    return {topic.indices for topic in protocol.parse_episodes(text) if topic.indices}


def _boundaries(topics: set[tuple[int, ...]]) -> set[int]:
    starts = {min(indices) for indices in topics}
    return starts - {0}


def _score_core(gold: str, reply: str) -> Scores:
    return {"core update": _entry_values(protocol.parse_core(gold), protocol.parse_core(reply))}


def _score_procedural(gold: str, reply: str) -> Scores:
    wanted = protocol.parse_procedural(gold)
    return {"procedural update": _entry_values(wanted, protocol.parse_procedural(reply))}


def _entry_values(gold: dict[str, str], predicted: dict[str, str]) -> list[float]:
    """One value per key of either side: whether both have the same entry."""
    return [float(gold.get(key) == predicted.get(key)) for key in gold | predicted]


def _score_answer(skill: str, question: Question, gold: str, response: Response) -> Scores:
    return {skill: [accuracy(question, response.answer)]}


UPDATE_SCORES: dict[str, Score] = {
    "personality": _score_personality,
    "semantic": _score_semantic,
    "episodic": _score_episodic,
    "core": _score_core,
    "procedural": _score_procedural,
}


# ---------------------------------------------------------------- items


@dataclass(frozen=True)
class _FixedRetriever(Retriever):
    """Returns the same memories for any first query, and nothing once they are excluded."""

    results: Retrieved = Retrieved()

    def retrieve(self, *_, exclude: Collection[str] = frozenset(), **__) -> Retrieved:
        if set(self.results.ids) <= set(exclude):
            return Retrieved()
        return self.results


def _single_request(request: ChatRequest) -> Trajectory[str]:
    reply = yield request
    assert isinstance(reply, ChatReply)
    return reply.text


def _questions(life: Life, rng: random.Random) -> list[Question]:
    """All questions about a life at quiet moments, in random order.

    The moments are late on a day with turns, and in the morning one day and two weeks later. A
    question appears only once: the same one about the same image on several days would count one
    observation several times.
    """
    days = sorted({turn.time.date() for turn in life.turns[12:]})
    unique = {}
    for day in days:
        for days_later, hour in ((0, 23), (1, 7), (14, 7)):
            moment = datetime.combine(day + timedelta(days=days_later), time(hour))
            if not _is_quiet(life, moment):
                continue
            for make in MAKERS:
                for question in make(life.plan, rng, moment):
                    unique[question.text, question.answer, question.hops] = question
    return rng.sample(list(unique.values()), len(unique))


def _is_quiet(life: Life, moment: datetime) -> bool:
    """Whether no turn is within two session gaps of the moment."""
    return all(abs(turn.time - moment) > 2 * SESSION_GAP for turn in life.turns)


class _ResponseItems:
    """Makes the items of the response stage about one life, each with the name of its pool."""

    def __init__(self, life: Life, store: MemoryStore, settings: SkillSettings, rng: random.Random):
        self.life = life
        self.store = store
        self.retrieving = settings.retrieving
        self.rng = rng
        self.agent = AgentSettings(
            settings.prompts,
            max_retrievals=3 if settings.retrieving else 0,
            max_tokens=64 * settings.prompts.room,
        )

    def make(self) -> Iterator[tuple[str, SkillItem]]:
        for question in _questions(self.life, self.rng):
            hops = question.hops
            if not hops:
                pool = "answer"
            elif hops[0].start:
                pool = "time window"
            else:
                pool = "retrieve"
            yield pool, self._first_step(question)
            if len(hops) == 1 and not hops[0].start and question.evidence:
                view = self.store.as_of(question.time)
                yield from self._scene_items(question, view)
                yield from self._fact_items(question, view)

    def _first_step(self, question: Question) -> SkillItem:
        """The first reasoning step alone; the oracle's step is the right one."""
        view = self.store.as_of(question.time)
        oracle = replace(self.life, questions=(question,)).oracle
        agent = replace(self.agent, max_retrievals=3)
        request = next(respond(as_query(question), view, PAPER_RETRIEVER, agent))
        assert isinstance(request, ChatRequest)
        (gold,) = oracle.reply([(oracle.start(), request)])
        assert isinstance(gold, ChatReply)  # the oracle does not fail
        trajectory = _single_request(request)
        return SkillItem(self.life.user, request.text, trajectory, gold.text, _score_step)

    def _answer(
        self, skill: str, question: Question, memories: Retrieved, turns: list[Turn]
    ) -> SkillItem:
        """The answer from `memories`.

        A model that does not retrieve gets `turns`, the source turns of the memories.
        """
        query = as_query(question)
        view = self.store.as_of(question.time)
        retriever = _FixedRetriever(results=memories)
        context = None if self.retrieving else turns
        trajectory = respond(query, view, retriever, self.agent, context=context)
        lines = [turn.user for turn in turns]
        request = "\n".join([*lines, question.query])
        score = partial(_score_answer, skill, question)
        return SkillItem(self.life.user, request, trajectory, question.answer, score)

    def _scene_items(self, question: Question, view: MemoryView) -> Iterator[tuple[str, SkillItem]]:
        """Items about one detail of an image, answered from the episodes with the image's turn."""
        if not question.hops[0].sentence.endswith("<img>"):
            return
        turn = view.turn(question.evidence[-1])
        for target, values in IN_SCENES.items():
            if question.answer not in values:
                continue
            episodes = []
            for episode in view.episodes:
                if turn.index in episode.turns:
                    episodes.append(RetrievedEpisode(**vars(episode), raw=(turn,)))
            skill = f"{target} in a scene"
            yield skill, self._answer(skill, question, Retrieved(episodic=episodes), [turn])

    def _fact_items(self, question: Question, view: MemoryView) -> Iterator[tuple[str, SkillItem]]:
        """Items that look up a question's fact among more and more other facts, and in context.

        Yields nothing if the fact is not in semantic memory or does not contain the answer.
        """
        hop = question.hops[0]
        facts = [memory for memory in view.semantic if not memory.concept]
        subject = hop.keywords.removesuffix(" now")
        about_subject = [fact for fact in facts if fact.content.startswith(f"{subject} ")]
        matching = [fact for fact in about_subject if fact.content == hop.sentence]
        if not matching or question.answer not in hop.sentence.split():
            return
        newest = matching[-1:]
        open_question = replace(question, kind="open", options=())
        lookups = [("option from value", question, newest, 1)]
        for n in (4, 8, 12):
            lookups.append((f"look up among {n}", open_question, newest, n))
        if question.task == "Latest Preference Recognition" and len(about_subject) > 1:
            lookups.append(("newest of several", open_question, about_subject, 8))
        others = [fact for fact in facts if fact not in about_subject]
        for skill, asked, relevant, n in lookups:
            if len(others) >= n - len(relevant):
                memories = self._mixed(relevant, others, n)
                turns = [view.turn(memory.sources[0]) for memory in memories]
                yield skill, self._answer(skill, asked, Retrieved(semantic=memories), turns)
        soon = after_session(view.turns, question.evidence[-1])
        yield "in context", self._first_step(replace(question, time=soon))

    def _mixed(
        self, relevant: list[SemanticMemory], others: list[SemanticMemory], n: int
    ) -> list[SemanticMemory]:
        """The relevant memories and random others, `n` in all (or more), in order of id."""
        missing = max(0, n - len(relevant))
        memories = relevant + self.rng.sample(others, missing)
        return sorted(memories, key=lambda memory: memory.id)


def _update_item(user: str, sample: dict, prompts: PromptSet) -> tuple[str, SkillItem]:
    """The item of one recorded request of the update stage, with the name of its pool."""
    request_message, gold_message = sample["messages"]
    text = request_message["content"]
    gold = gold_message["content"]
    purpose = sample["purpose"]
    images = tuple(sample["images"])
    request = ChatRequest(text, images, 256 * prompts.room, new_conversation=True, purpose=purpose)
    pool = purpose
    if purpose == "semantic":
        memory = protocol.parse_semantic(gold)
        assert memory is not None
        pool = f"semantic {memory.decision}"
    return pool, SkillItem(user, text, _single_request(request), gold, UPDATE_SCORES[purpose])


def _life_items(folder: Path, number: int, settings: SkillSettings) -> dict[str, list[SkillItem]]:
    """All items about one simulated life, by pool."""
    rng = random.Random(f"skills {settings.seed} {number}")
    first_seed = SKILL_USERS.start + USERS_PER_SKILL_SUITE * settings.seed
    life = simulate_life(first_seed + number, folder, 28, 1.0, 0, 0)
    samples: list[dict] = []
    prompts = settings.prompts
    store = gold_memory(life, folder / life.user, settings.recognizer, samples, prompts)
    pools = defaultdict(list)
    for pool, item in _ResponseItems(life, store, settings, rng).make():
        pools[pool].append(item)
    for sample in rng.sample(samples, len(samples)):
        pool, item = _update_item(life.user, sample, prompts)
        pools[pool].append(item)
    return pools


def skill_suite(folder: Path, settings: SkillSettings) -> list[SkillItem]:
    """About `settings.questions` items per skill, on half as many simulated lives (at least two).

    The lives are written into `folder`.
    """
    lives = max(2, settings.questions // PER_LIFE)
    suite: list[tuple[str, SkillItem]] = []
    for number in range(lives):
        for pool, items in _life_items(folder, number, settings).items():
            per_life = SHARES.get(pool, PER_LIFE)
            most = ceil(per_life * settings.questions / (PER_LIFE * lives))
            suite += [(pool, item) for item in items[:most]]
    suite.sort(key=lambda entry: (entry[0], len(entry[1].request)))
    return [item for _, item in suite]


# ---------------------------------------------------------------- measurement


def measure_skills(
    model: ChatModel, settings: SkillSettings, seen_again: float = nan, width: int = 48
) -> pd.DataFrame:
    """Measure a model on a `skill_suite`: one row per value that a reply adds to a skill.

    Columns: skill, value, user, item (position in the suite), error, and for inspection request,
    gold, reply. An item that got no reply has an error and no value. Raises StageStopped if too
    many in a row get none (see `FailurePolicy`).
    `seen_again` is a skill of the recognizer, not of the model: the share of 50 things that it
    recognizes when it sees them again.
    """
    with tempfile.TemporaryDirectory(prefix="skills-") as folder:
        items = skill_suite(Path(folder), settings)
        policy = FailurePolicy(NoReply)
        trajectories = [item.trajectory for item in items]
        results = run_trajectories(trajectories, model, width, policy.on_error, policy.on_result)
    rows = []
    for position, (item, result) in enumerate(zip(items, results, strict=True)):
        reply = result.raw if isinstance(result, Response) else result
        about = dict(
            user=item.user, item=position, request=item.request, gold=item.gold, reply=reply
        )
        scores = item.score(item.gold, result)
        error = ""
        if isinstance(result, NoReply):
            error = result.error
            scores = dict.fromkeys(scores, [])
        for skill, values in scores.items():
            for value in values or [nan]:
                rows.append(dict(skill=skill, value=value, error=error, **about))
    if not isnan(seen_again):
        hits = round(CONCEPTS * seen_again)
        for i in range(CONCEPTS):
            value = float(i < hits)
            seen = dict(user=str(i), item=-1 - i, error="")
            rows.append(dict(skill="thing seen again", value=value, **seen))
    return pd.DataFrame(rows)


def skill_table(frame: pd.DataFrame, cluster: str = "user") -> pd.DataFrame:
    """One row per skill, in the order of SKILLS.

    Columns: skill, n (items), score, low, high, target, chance, unscored (items without a reply,
    not among the n). The score is the share of right
    replies unless the name says F1 or error. The 95% intervals resample lives, or the column
    `cluster`, such as "model" for models that differ in their seed. If all clusters are equal,
    resampling would suggest certainty, so the interval is Wilson's.
    """
    rows = []
    for skill, about in SKILLS.items():
        asked = frame[frame["skill"] == skill]
        items = asked[asked["error"] == ""]
        values = items.dropna(subset="value")
        if values.empty:
            continue
        score = cluster_bootstrap(values, "value", cluster)
        low = score.low
        high = score.high
        if not high > low:  # equal, or nan for a single cluster
            right = round(score.mean * len(values))
            low, high = proportion_confint(right, len(values), method="wilson")
        n = len(items[[cluster, "item"]].drop_duplicates())
        chance = 1 / about["options"] if "options" in about else nan
        unscored = len(asked[[cluster, "item"]].drop_duplicates()) - n
        target = about.get("target", nan)
        rows.append((skill, n, score.mean, low, high, target, chance, unscored))
    columns = ["skill", "n", "score", "low", "high", "target", "chance", "unscored"]
    return pd.DataFrame(rows, columns=columns)
