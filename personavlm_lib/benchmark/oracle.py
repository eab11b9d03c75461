"""The oracle: a ChatModel that answers every agent prompt from the life plan.

Driving the response and update stages with the oracle yields gold memory and, through a Recorder,
the SFT samples, so training conversations have the format of the agent's own. The oracle knows the
plan, but states only facts that the profile or a retrieved memory contains, so that an answer uses
nothing but the conversation (appendix C).
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.agent.protocol import EpisodeReply, SemanticReply
from personavlm_lib.agent.protocol_writer import (
    write_answer,
    write_episodes,
    write_pairs,
    write_retrieve,
    write_semantic,
)
from personavlm_lib.benchmark.questions import Hop, Question
from personavlm_lib.memory.records import MAX_PROCEDURAL, TRAITS, Turn
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.simulation.lexicon import REPLY_STYLES
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.wording import FACTS, core_profile, search_keywords, statement

MEMORABLE_KINDS = ("name", *FACTS, "intent", "image")  # event kinds that semantic memory stores


def value_chain(statements: Sequence[str]) -> str:
    """Join the statements of one changing fact, oldest first, into a chain of its values.

    `my drink is cola from cola is tea because stress`: each step is one look-up, from value to
    value, and the last statement keeps its cause or consequence. Separate sentences would all begin
    with the same words, so a model would have to know the newest one before it states a value.
    """
    *earlier, newest = statements
    steps = [sentence.split(" because ")[0] for sentence in earlier]
    steps.append(newest)
    chain = [steps[0]]
    for step in steps[1:]:
        change = step.split(" from ")[1]
        chain.append(f"from {change}")
    return " ".join(chain)


def final_thought(question: Question, seen: str) -> str:
    """The last reasoning step: the thought, with its fact's history as far as `seen` shows it."""
    if not question.history:
        return question.thought
    if not question.hops and question.thought in seen:
        return question.thought  # the profile shows the newest value
    *earlier, newest = question.history
    newest_first = reversed(earlier)
    shown = list(itertools.takewhile(lambda sentence: sentence in seen, newest_first))
    oldest_first = shown[::-1]
    last = question.thought if question.hops else newest
    return value_chain([*oldest_first, last])


class Oracle:
    """The oracle of one life; it finds plan events by turn, and questions by time and text."""

    def __init__(self, plan: LifePlan, turns: list[Turn], questions: Iterable[Question] = ()):
        self.plan = plan
        self.indices = {(turn.time, turn.user): index for index, turn in enumerate(turns)}
        self.questions = {(question.time, question.query): question for question in questions}

    def start(self) -> list[str]:
        return []

    def reply(self, asked: list[tuple[list[str], ChatRequest]]) -> list[ChatReply | Exception]:
        replies: list[ChatReply | Exception] = []
        for transcript, request in asked:
            transcript.append(request.text)
            answer_purpose = getattr(self, f"_{request.purpose}")
            text = answer_purpose(transcript, request)
            transcript.append(text)
            replies.append(ChatReply(text, tokens_out=len(text.split())))
        return replies

    def _index(self, turn: Turn) -> int:
        return self.indices[turn.time, turn.user]

    def _event(self, turn: Turn) -> LifeEvent:
        return self.plan.events[self._index(turn)]

    # Response stage

    def _respond(self, transcript: list[str], request: ChatRequest) -> str:
        query = request.subject
        question = self.questions[query.time, query.user]
        rng = random.Random(question.case)
        guess = rng.choice(question.options or ("unknown",))
        if question.kind == "binary":
            return self._judge(question, request, guess)
        seen = _shown_text(transcript, request)
        if question.hops and question.hops[0].note:
            return self._count(question, seen, request, guess)
        for number, hop in enumerate(question.hops):
            if hop.sentence not in seen:
                return self._search(question, number, transcript, request, guess)
        if not question.hops:
            # The profile shows either the bare fact or the newest statement of it.
            facts = (question.thought, *question.history[-1:])
            if not any(fact in seen for fact in facts):
                return write_answer("unknown", guess)
        thought = final_thought(question, seen)
        return write_answer(thought, question.answer)

    @staticmethod
    def _search(
        question: Question, number: int, transcript: list[str], request: ChatRequest, guess: str
    ) -> str:
        """Search for hop `number`, in its period first and then at any time, or give up."""
        hop = question.hops[number]
        quote = request.slots.get("quote", False)
        attempts = [hop]
        if hop.start:
            attempts.append(Hop(hop.keywords, hop.sentence))
        replies = transcript[1::2]
        search = write_pairs({"keywords": hop.keywords}, quote=quote) + "\n"
        tried = sum(reply.count(search) for reply in replies)
        if request.slots.get("closing") or tried == len(attempts):
            return _give_up(question, hop, guess)
        attempt = attempts[tried]
        thought = f"look up {hop.keywords}"
        if number > 0:
            previous = question.hops[number - 1]
            thought = f"{previous.sentence} {thought}"
        if attempt.start:
            span = (attempt.start, attempt.end)
            named = periods(question.time)
            period = next(name for name in named if named[name] == span)
            date = attempt.start.strftime("%Y-%m-%d")
            thought += f" {period} {date}"
        return write_retrieve(thought, hop.keywords, attempt.start, attempt.end, quote=quote)

    @staticmethod
    def _count(question: Question, seen: str, request: ChatRequest, guess: str) -> str:
        """Repeat one search until every hop is seen or no search is left; then count the notes."""
        notes = [hop.note for hop in question.hops if hop.sentence in seen]
        all_seen = len(notes) == len(question.hops)
        if not all_seen and not request.slots.get("closing"):
            keywords = question.hops[0].keywords
            thought = f"look up {keywords}"
            quote = request.slots.get("quote", False)
            return write_retrieve(thought, keywords, quote=quote)
        if not notes:
            return write_answer("unknown", guess)
        thought = " ".join(notes)
        counts = Counter(note.split()[-1] for note in notes)
        most_common, _ = counts.most_common(1)[0]
        return write_answer(thought, most_common)

    @staticmethod
    def _judge(question: Question, request: ChatRequest, guess: str) -> str:
        """Say whether a style suits the user, by the style for the trait's level in the prompt.

        The reasoning does not compare two levels: a model that has just written one level copies it
        for the other without looking.
        """
        words = question.thought.split()  # my extraversion high takes sociable asked reserved
        trait = words[1]
        asked = words[-1]
        if request.slots["quote"]:
            lines = request.slots["personality"].splitlines()
            levels = dict(line.split(": ") for line in lines)
        else:
            levels = request.slots["levels"]
        level = levels[trait]
        style = REPLY_STYLES[trait].get(level.split()[-1])
        if style is None:  # neither style suits a middle level
            style = "nothing"
            answer = guess
        elif style == asked:
            answer = "yes"
        else:
            answer = "no"
        return write_answer(f"my {trait} {level} takes {style} asked {asked}", answer)

    # Update stage

    def _personality(self, transcript: list[str], request: ChatRequest) -> str:
        event = self._event(request.subject)
        scores = dict(zip(TRAITS, event.scores, strict=True))
        return write_pairs(scores)

    def _semantic(self, transcript: list[str], request: ChatRequest) -> str:
        event = self._event(request.subject)
        kind = event.kind
        if kind in MEMORABLE_KINDS:
            content = statement(event)
            if kind == "image":
                content += f" (Image Object: {event.key})"
            keywords = search_keywords(event)
            reply = SemanticReply(f"new {kind}", True, content, keywords)
        else:
            reason = kind.replace("_", " ")
            reply = SemanticReply(reason, False, "", "")
        return write_semantic(reply, quote=request.slots["quote"])

    def _events_so_far(self, request: ChatRequest) -> tuple[LifeEvent, ...]:
        """Events up to the last turn of the session that the request is about."""
        last = self._index(request.subject[-1])
        return self.plan.events[: last + 1]

    def _core(self, transcript: list[str], request: ChatRequest) -> str:
        profile = core_profile(self._events_so_far(request))
        return write_pairs(profile, quote=request.slots["quote"])

    def _procedural(self, transcript: list[str], request: ChatRequest) -> str:
        current: dict[str, str] = {}
        for event in self._events_so_far(request):
            if event.kind in ("habit", "goal"):
                current[event.value] = statement(event)
            elif event.kind == "goal_end":
                current.pop(event.value, None)
        entries = itertools.islice(current.items(), MAX_PROCEDURAL)
        return write_pairs(dict(entries), quote=request.slots["quote"])

    def _episodic(self, transcript: list[str], request: ChatRequest) -> str:
        """One topic per run of turns with events of the same kind; each outing is its own topic."""
        events = [self._event(turn) for turn in request.subject]
        replies = []
        for topic in _topics(events):
            sentences = []
            words = []
            for position in topic:
                event = events[position]
                sentences.append(statement(event))
                words.append(event.who)
                words.append(event.key or event.value)
            summary = " ".join(sentences)
            keywords = " ".join(dict.fromkeys(words))
            replies.append(EpisodeReply(summary, keywords, tuple(topic)))
        return write_episodes(replies, quote=request.slots["quote"])


def _shown_text(transcript: list[str], request: ChatRequest) -> str:
    """The profile and the user messages as one line.

    Prompt sets print the profile in different forms, so its facts are added as sentences.
    """
    core = request.slots.get("core", {})
    profile = [f"my {key} is {value}" for key, value in core.items()]
    messages = transcript[::2]
    words = "\n".join(profile + messages).split()
    return " ".join(words)


def _give_up(question: Question, hop: Hop, guess: str) -> str:
    """Answer without the fact: `unknown` if that can be the answer, else a guess."""
    if "unknown" in (*question.options, question.answer):
        return write_answer(f"{hop.keywords} is unknown", "unknown")
    return write_answer("unknown", guess)


def _topics(events: Sequence[LifeEvent]) -> list[list[int]]:
    """Positions of consecutive events of the same kind; every outing is separate."""
    topics: list[list[int]] = []
    for position, event in enumerate(events):
        if position > 0 and events[position - 1].kind == event.kind != "event":
            topics[-1].append(position)
        else:
            topics.append([position])
    return topics
