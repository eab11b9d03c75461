"""Validation of simulated lives and their questions (paper, appendix C).

Stage one applies rules: does the dialogue match its plan, and does each answer follow from its
evidence? The rules hold for any dialogue generator. Stage two asks a model that sees only the
evidence. Human review comes last: `study/review.py`.
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
from personavlm_lib.memory.personality import NEUTRAL_SCORE
from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatModel
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.scenes import COUNTS

# Only the most serious words; a word list cannot find implied meaning.
UNSAFE = re.compile(
    r"\b(suicid\w*|kill\w*|murder\w*|raped?|rapist|porn\w*|bombs?|nazis?|cocaine|heroin)\b", re.I
)
LONG = 6  # words of a reply; shorter ones ("good to know") may recur freely
STATES = ("open", "unknown")  # answers that follow from the absence of a statement


@dataclass(frozen=True)
class Violation:
    """A violated rule. `index` is that of a turn or question, or -1 for a life or data set."""

    rule: str
    user: str
    index: int
    why: str


Violations = Iterator[tuple[int, str]]


def safety(life: Life) -> Violations:
    """No turn or question contains an UNSAFE word."""
    texts = []
    for turn in life.turns:
        texts.append((turn.index, f"{turn.user} {turn.assistant}"))
    for index, question in enumerate(life.questions):
        texts.append((index, f"{question.text} {question.options}"))
    for index, text in texts:
        unsafe = UNSAFE.search(text)
        if unsafe:
            yield index, f"contains {unsafe[0]!r}"


def repetition(life: Life) -> Violations:
    """No user message recurs within a session, and no long reply occurs three times in a row."""
    for position, turn in enumerate(life.turns):
        recent = life.turns[max(0, position - 20) : position]
        session = [t for t in recent if turn.time - t.time <= SESSION_GAP]
        if any(t.user == turn.user for t in session):
            yield turn.index, f"repeats {turn.user!r}"
        last_replies = [t.assistant for t in session[-2:]]
        is_long = len(turn.assistant.split()) > LONG
        if is_long and last_replies == [turn.assistant, turn.assistant]:
            yield turn.index, f"third reply in a row: {turn.assistant!r}"


def chronology(life: Life) -> Violations:
    """Each turn has the time of its event and comes after the turn before it."""
    for turn, event in zip(life.turns, life.plan.events, strict=False):
        if turn.time != event.time:
            yield turn.index, f"turn at {turn.time}, event at {event.time}"
        elif turn.index != 0:
            previous = life.turns[turn.index - 1]
            if turn.time <= previous.time:
                yield turn.index, f"turn at {turn.time} follows one at {previous.time}"


def indices(life: Life) -> Violations:
    """Each event has one turn, and the turns are numbered in order."""
    n_events = len(life.plan.events)
    if [turn.index for turn in life.turns] != list(range(n_events)):
        yield -1, f"{len(life.turns)} turns for {n_events} events, or not numbered in order"


def images(life: Life) -> Violations:
    """A turn has one mark and one image if its event has a scene, else none; files are readable."""
    for turn, event in zip(life.turns, life.plan.events, strict=False):
        marks = turn.user.count("<img>")
        expected = 0 if event.scene is None else 1
        if marks != expected or len(turn.images) != expected:
            yield turn.index, f"{marks} marks and {len(turn.images)} images, expected {expected}"
        for path in turn.images:
            try:
                read_image(path)
            except ValueError as error:
                yield turn.index, str(error)


def options(life: Life) -> Violations:
    """Each option matches only itself, and the answer is one of the options."""
    for index, question in enumerate(life.questions):
        choices = question.options
        matches = [question.matching_option(choice) for choice in choices]
        if matches != list(range(len(choices))):
            yield index, f"ambiguous options {choices}"
        if choices and question.answer not in choices:
            yield index, f"answer {question.answer!r} is not among {choices}"


def evidence(life: Life) -> Violations:
    """Every evidence turn exists and precedes the question by a session gap or more."""
    for index, question in enumerate(life.questions):
        latest = question.time - SESSION_GAP
        for turn_index in question.evidence:
            exists = turn_index < len(life.turns)
            if not exists or life.turns[turn_index].time > latest:
                yield index, f"evidence turn {turn_index} is missing or later than {latest}"
                break


def derivable(life: Life) -> Violations:
    """The answer follows from the evidence, by its words, its pictures, or common knowledge."""
    for index, question in enumerate(life.questions):
        if any(turn_index >= len(life.turns) for turn_index in question.evidence):
            continue  # reported by `evidence`
        if not _follows(life, question):
            why = f"does not follow from turns {question.evidence}: {question.text}"
            yield index, f"{question.answer!r} {why}"


def _follows(life: Life, question: Question) -> bool:
    if question.kind == "binary":
        return _style_follows(life, question)
    if question.answer in STATES:
        return _state_follows(life, question)
    known: set[str] = set()
    for turn_index in question.evidence:
        known |= _shown_words(life, turn_index)
    inferred = set()
    for table in life.plan.pool.knowledge.values():
        for value, implied in table.items():
            if known.issuperset(_words(value)):
                inferred.update(_words(implied))
    answer = set(_words(question.answer))
    return answer <= known | inferred


def _style_follows(life: Life, question: Question) -> bool:
    """Whether the evidence shows the trait, in the direction that the answer claims."""
    styles = {}
    for trait, words in lexicon.REPLY_STYLES.items():
        for pole, word in words.items():
            styles[word] = (trait, pole)
    named = [word for word in _words(question.thought) if word in styles]
    if not named:
        return False
    trait, pole = styles[named[-1]]  # the style asked about
    position = TRAITS.index(trait)
    deviation = 0
    for turn_index in question.evidence:
        deviation += life.plan.events[turn_index].scores[position] - NEUTRAL_SCORE
    if deviation == 0:
        return False
    shown_pole = "high" if deviation > 0 else "low"
    suits = pole == shown_pole
    return suits == (question.answer == "yes")


def _state_follows(life: Life, question: Question) -> bool:
    """Whether no turn states a rival state and, for `open`, some turn mentions the subject."""
    subject = set(_words(question.hops[0].keywords)) - set(lexicon.FRAME)
    rivals = set(question.options) - set(STATES)
    mentions = []
    for turn in life.turns:
        words = set(_words(turn.user))
        if turn.time < question.time and subject <= words:
            mentions.append(words)
    contradicted = any(rivals & words for words in mentions)
    if contradicted:
        return False
    return question.answer == "unknown" or bool(mentions)


def _shown_words(life: Life, index: int) -> set[str]:
    """The user's words in a turn, and words for its picture: things, colors, counts and sides."""
    words = set(_words(life.turns[index].user))
    event = life.plan.events[index]
    if life.plan.pool is lexicon.pool("wide") and event.kind in ("goal_end", "value"):
        # Natural frames say it in words of their own; the plan knows from which section they are.
        words |= {event.key, event.value}
    scene = event.scene
    if scene:
        words |= set(_words(repr(scene)))
        counts = Counter(thing.kind for thing in scene.things)
        for count in counts.values():
            words.add(COUNTS[count - 1])
        words |= {"left", "right"}
    return words


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


RULES = (safety, repetition, chronology, indices, images, options, evidence, derivable)


def validate_life(life: Life) -> list[Violation]:
    """Stage one: the violations of all RULES in a life."""
    violations = []
    for rule in RULES:
        for index, why in rule(life):
            violations.append(Violation(rule.__name__, life.user, index, why))
    return violations


def letters(lives: Iterable[Life]) -> list[Violation]:
    """Test that the right option is equally often at each place (chi-squared, p < 0.001)."""
    places: Counter[int] = Counter()
    for life in lives:
        for question in life.questions:
            if len(question.options) == 4:
                places[question.options.index(question.answer)] += 1
    counts = [places[place] for place in range(4)]
    if chisquare(counts).pvalue < 0.001:
        return [Violation("letters", "", -1, f"places of the right option: {counts}")]
    return []


def self_correct(
    life: Life, model: ChatModel, prompts: PromptSet = NANO
) -> tuple[Life, list[Violation]]:
    """Stage two: keep the choice questions that `model` answers correctly from the evidence alone.

    Returns the life with these questions, and one violation for each of the others. All
    alignment items are kept, because a trait shows over many turns and not in a single one.
    """
    choices = [(i, q) for i, q in enumerate(life.questions) if q.kind == "choice"]
    settings = AgentSettings(prompts, max_retrievals=0)
    trajectories = []
    with MemoryStore.in_memory() as store:
        view = store.as_of()
        for _, question in choices:
            query = as_query(question)
            context = [life.turns[turn_index] for turn_index in question.evidence]
            trajectories.append(respond(query, view, PAPER_RETRIEVER, settings, context=context))
        responses = run_trajectories(trajectories, model)
    violations = []
    for (index, question), response in zip(choices, responses, strict=True):
        answer = response.answer or ""
        chosen = question.matching_option(answer)
        key = question.options.index(question.answer)
        if chosen != key:
            why = f"model answers {answer!r}, key is {question.answer!r}: {question.text}"
            violations.append(Violation("self_correct", life.user, index, why))
    wrong = {violation.index for violation in violations}
    correct = [q for i, q in enumerate(life.questions) if i not in wrong]
    corrected = replace(life, questions=tuple(correct))
    return corrected, violations
