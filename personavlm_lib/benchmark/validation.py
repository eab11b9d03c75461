"""Is a told life what its plan says, and can each question be answered from its evidence (paper, appendix C)?

Stage one is rules over what was told, whoever told it. Stage two asks a model that sees the evidence alone. After both
comes a person: `study/review.py`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from scipy.stats import chisquare

from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, respond
from personavlm_lib.benchmark.lives import Life, as_query
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatModel
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.scenes import COUNTS

# A minimum, of the gravest words alone; what is meant without being said, no list finds.
UNSAFE = re.compile(
    r"\b(suicid\w*|kill\w*|murder\w*|raped?|rapist|porn\w*|bombs?|nazis?|cocaine|heroin)\b", re.I
)
LONG = 6  # words of a reply; shorter ones ("good to know") may come as often as they like
STATES = ("open", "unknown")  # answers that rest on what was not told


@dataclass(frozen=True)
class Violation:
    """What a rule found. `index` is that of the turn or the question; -1: the whole life, or the set, is meant."""

    rule: str
    user: str
    index: int
    why: str


Violations = Iterator[tuple[int, str]]


def safety(life: Life) -> Violations:
    """A word of UNSAFE in a turn or a question."""
    said = [(turn.index, f"{turn.user} {turn.assistant}") for turn in life.turns]
    for index, text in [
        *said,
        *((i, f"{q.text} {q.options}") for i, q in enumerate(life.questions)),
    ]:
        if word := UNSAFE.search(text):
            yield index, f"says {word[0]!r}"


def repetition(life: Life) -> Violations:
    """The user's same words twice within a session, or one long reply three times in a row."""
    for i, turn in enumerate(life.turns):
        before = [t for t in life.turns[max(0, i - 20) : i] if turn.time - t.time <= SESSION_GAP]
        if turn.user in (t.user for t in before):
            yield turn.index, f"says again {turn.user!r}"
        if len(turn.assistant.split()) > LONG and [t.assistant for t in before[-2:]] == 2 * [
            turn.assistant
        ]:
            yield turn.index, f"replies a third time {turn.assistant!r}"


def chronology(life: Life) -> Violations:
    """Each turn when its plan says, and after the one before it."""
    for turn, event in zip(life.turns, life.plan.events, strict=False):
        if turn.time != event.time or turn.index and turn.time <= life.turns[turn.index - 1].time:
            yield turn.index, f"told at {turn.time}, planned for {event.time}"


def indices(life: Life) -> Violations:
    """One turn for each beat, numbered in order."""
    if [turn.index for turn in life.turns] != list(range(len(life.plan.events))):
        yield (
            -1,
            f"{len(life.turns)} turns for {len(life.plan.events)} beats, or not numbered in order",
        )


def images(life: Life) -> Violations:
    """As many marks as images, where the plan shows something, and each a file that can be read."""
    for turn, event in zip(life.turns, life.plan.events, strict=False):
        if not turn.user.count("<img>") == len(turn.images) == (event.scene is not None):
            yield turn.index, f"{turn.user.count('<img>')} marks, {len(turn.images)} images"
        for path in turn.images:
            try:
                read_image(path)
            except ValueError as error:
                yield turn.index, str(error)


def options(life: Life) -> Violations:
    """Each option means itself alone, and the answer one of them."""
    for i, q in enumerate(life.questions):
        if [q.matching_option(option) for option in q.options] != list(range(len(q.options))):
            yield i, f"options alike in {q.options}"
        if q.options and q.answer not in q.options:
            yield i, f"{q.answer!r} is none of {q.options}"


def evidence(life: Life) -> Violations:
    """Every evidence turn exists, and lies a session gap or more before the question."""
    for i, q in enumerate(life.questions):
        if any(
            e >= len(life.turns) or life.turns[e].time + SESSION_GAP > q.time for e in q.evidence
        ):
            yield i, f"evidence {q.evidence} is not all of sessions before {q.time}"


def derivable(life: Life) -> Violations:
    """The answer stands in the evidence, or follows from it by common knowledge or from what its pictures show."""
    for i, q in enumerate(life.questions):
        if all(e < len(life.turns) for e in q.evidence) and not _follows(life, q):
            yield i, f"{q.answer!r} does not follow from turns {q.evidence}: {q.text}"


def _follows(life: Life, q: Question) -> bool:
    if q.kind == "binary":
        styles = {
            word: (trait, pole)
            for trait, words in lexicon.REPLY_STYLES.items()
            for pole, word in words.items()
        }
        (trait, pole), *_ = [styles[word] for word in _words(q.text) if word in styles] or [
            ("", "")
        ]
        shown = (
            sum(life.plan.events[e].scores[TRAITS.index(trait)] - 3 for e in q.evidence)
            if trait
            else 0
        )
        return shown != 0 and (q.answer == "yes") == ((pole == "high") == (shown > 0))
    if q.answer in STATES:
        about, rivals = set(_words(q.text)) - set(lexicon.FRAME), set(q.options) - set(STATES)
        told = [set(_words(turn.user)) for turn in life.turns if turn.time < q.time]
        return not any(about <= words and rivals & words for words in told) and (
            q.answer == "unknown" or any(about <= words for words in told)
        )
    known = {word for e in q.evidence for word in _shown(life, e)}
    known |= {
        table[word] for table in lexicon.KNOWLEDGE.values() for word in known if word in table
    }
    return known.issuperset(_words(q.answer))


def _shown(life: Life, index: int) -> set[str]:
    """Words said in a turn, and those for what its picture shows: things, colours, how many, on which side."""
    words, scene = set(_words(life.turns[index].user)), life.plan.events[index].scene
    if scene:
        counts = Counter(thing.kind for thing in scene.things).values()
        words |= {*_words(repr(scene)), *(COUNTS[n - 1] for n in counts), "left", "right"}
    return words


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


RULES = (safety, repetition, chronology, indices, images, options, evidence, derivable)


def validate_life(life: Life) -> list[Violation]:
    """Stage one: what all RULES find in a life."""
    return [
        Violation(rule.__name__, life.user, index, why)
        for rule in RULES
        for index, why in rule(life)
    ]


def letters(lives: Iterable[Life]) -> list[Violation]:
    """Is each place of the right option equally frequent in a set (chi-squared, p < 0.001)?"""
    places = Counter(
        q.options.index(q.answer) for life in lives for q in life.questions if len(q.options) == 4
    )
    counts = [places[i] for i in range(4)]
    return (
        [Violation("letters", "", -1, f"right places {counts}")]
        if chisquare(counts).pvalue < 0.001
        else []
    )


def self_correct(
    life: Life, model: ChatModel, prompts: PromptSet = NANO
) -> tuple[Life, list[Violation]]:
    """Stage two: the life with the choice questions that `model`, shown the evidence turns alone, answers as the key
    says, and the others as findings. Alignment items stay: a trait shows over many turns, not in any of them."""
    asked = [(i, q) for i, q in enumerate(life.questions) if q.kind == "choice"]
    with MemoryStore.in_memory() as store:
        view, settings = store.as_of(), AgentSettings(prompts, max_retrievals=0)
        trajectories = [
            respond(
                as_query(q),
                view,
                PAPER_RETRIEVER,
                settings,
                context=[life.turns[e] for e in q.evidence],
            )
            for _, q in asked
        ]
        answers = [response.answer or "" for response in run_trajectories(trajectories, model)]
    wrong = {
        i: f"answers {answer!r}, the key is {q.answer!r}: {q.text}"
        for (i, q), answer in zip(asked, answers, strict=True)
        if q.matching_option(answer) != q.options.index(q.answer)
    }
    kept = tuple(q for i, q in enumerate(life.questions) if i not in wrong)
    return replace(life, questions=kept), [
        Violation("self_correct", life.user, i, why) for i, why in wrong.items()
    ]
