"""The oracle: a ChatModel that answers any prompt of the agent from the life plan.

`run(respond(...), oracle)` and `run(live(...), oracle)` leave gold memory and, through a Recorder, the SFT samples:
what the model is trained on is what it will see. An answer rests on what stands in the conversation alone (appendix C):
the oracle knows the plan, but says only what the profile or a retrieved memory has shown it.
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
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.simulation.lexicon import REPLY_STYLES
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.wording import FACTS, core_profile, search_keywords, statement

MEMORABLE_KINDS = ("name", *FACTS, "intent", "image")  # kinds of beat that semantic memory keeps


class Oracle:
    """Knows one life: its plan by the turns that tell it, its questions by their time and words."""

    def __init__(self, plan: LifePlan, turns: list[Turn], questions: Iterable[Question] = ()):
        self.plan = plan
        self.indices = {(turn.time, turn.user): index for index, turn in enumerate(turns)}
        self.questions = {(question.time, question.query): question for question in questions}

    def start(self) -> list[str]:
        return []

    def reply(self, asked: list[tuple[list[str], ChatRequest]]) -> list[ChatReply]:
        replies = []
        for transcript, ask in asked:
            transcript.append(ask.text)
            text = getattr(self, f"_{ask.purpose}")(transcript, ask)
            transcript.append(text)
            replies.append(ChatReply(text, tokens_out=len(text.split())))
        return replies

    def _index(self, turn: Turn) -> int:
        return self.indices[turn.time, turn.user]

    def _event(self, turn: Turn) -> LifeEvent:
        return self.plan.events[self._index(turn)]

    # Response stage

    def _respond(self, transcript: list[str], ask: ChatRequest) -> str:
        question = self.questions[ask.subject.time, ask.subject.user]
        # A fact is one sentence, however the prompt shows it; only the profile is not shown in sentences everywhere.
        known = [f"my {key} is {value}" for key, value in ask.slots.get("core", {}).items()]
        seen = " ".join("\n".join(known + transcript[::2]).split())
        quote = ask.slots.get("quote", False)
        guess = random.Random(question.case).choice(question.options or ("unknown",))
        if question.kind == "binary":
            return self._judge(question, ask, guess)
        if question.hops and question.hops[0].note:
            return self._count(question, seen, ask, guess)
        for number, hop in enumerate(question.hops):
            if hop.sentence in seen:
                continue
            attempts = [hop, Hop(hop.keywords, hop.sentence)] if hop.start else [hop]
            wanted = write_pairs({"keywords": hop.keywords}, quote=quote) + "\n"
            tried = sum(written.count(wanted) for written in transcript[1::2])
            if ask.slots.get("closing") or tried == len(attempts):
                may_be = "unknown" in (
                    *question.options,
                    question.answer,
                )  # among what the answer can be
                return write_answer(
                    f"{hop.keywords} is unknown" if may_be else "unknown",
                    "unknown" if may_be else guess,
                )
            attempt = attempts[tried]
            thought = " ".join(
                [h.sentence for h in question.hops[:number]][-1:] + [f"look up {hop.keywords}"]
            )
            if attempt.start:
                named = {span: name for name, span in periods(question.time).items()}
                thought += f" {named[attempt.start, attempt.end]} {attempt.start:%Y-%m-%d}"
            return write_retrieve(thought, hop.keywords, attempt.start, attempt.end, quote=quote)
        if not question.hops and not any(
            said in seen for said in (question.thought, *question.history[-1:])
        ):
            return write_answer("unknown", guess)
        return write_answer(final_thought(question, seen), question.answer)

    @staticmethod
    def _count(question: Question, seen: str, ask: ChatRequest, guess: str) -> str:
        """Searches by the same words until all is seen that is to be counted, or no search is left; then counts."""
        notes = [hop.note for hop in question.hops if hop.sentence in seen]
        if len(notes) < len(question.hops) and not ask.slots.get("closing"):
            keywords = question.hops[0].keywords
            return write_retrieve(
                f"look up {keywords}", keywords, quote=ask.slots.get("quote", False)
            )
        counted = Counter(note.split()[-1] for note in notes)
        return write_answer(
            " ".join(notes) or "unknown", counted.most_common(1)[0][0] if counted else guess
        )

    @staticmethod
    def _judge(question: Question, ask: ChatRequest, guess: str) -> str:
        """Yes or no to a style: compares it with the one that suits the trait's level as the prompt shows it.

        Not the two levels: a model that has just written the one copies it for the other, and never looks.
        """
        trait = question.thought.split()[1]  # "my extraversion high takes sociable"
        words = dict(line.split(": ") for line in ask.slots["personality"].splitlines())
        level = (words if ask.slots["quote"] else ask.slots["levels"])[trait]
        style = REPLY_STYLES[trait].get(level.split()[-1], "nothing")
        asked = question.thought.split()[-1]
        answer = guess if style == "nothing" else "yes" if style == asked else "no"
        return write_answer(f"my {trait} {level} takes {style} asked {asked}", answer)

    # Update stage

    def _personality(self, transcript: list[str], ask: ChatRequest) -> str:
        event = self._event(ask.subject)
        return write_pairs(dict(zip(TRAITS, event.scores, strict=True)))

    def _semantic(self, transcript: list[str], ask: ChatRequest) -> str:
        event = self._event(ask.subject)
        if event.kind not in MEMORABLE_KINDS:
            reply = SemanticReply(event.kind.replace("_", " "), False, "", "")
        else:
            content = statement(event) + (
                f" (Image Object: {event.key})" if event.kind == "image" else ""
            )
            reply = SemanticReply(f"new {event.kind}", True, content, search_keywords(event))
        return write_semantic(reply, quote=ask.slots["quote"])

    def _core(self, transcript: list[str], ask: ChatRequest) -> str:
        told = self.plan.events[: self._index(ask.subject[-1]) + 1]
        return write_pairs(core_profile(told), quote=ask.slots["quote"])

    def _procedural(self, transcript: list[str], ask: ChatRequest) -> str:
        kept: dict[str, str] = {}
        for event in self.plan.events[: self._index(ask.subject[-1]) + 1]:
            if event.kind in ("habit", "goal"):
                kept[event.value] = statement(event)
            elif event.kind == "goal_end":
                kept.pop(event.value, None)
        return write_pairs(dict(list(kept.items())[:5]), quote=ask.slots["quote"])

    def _episodic(self, transcript: list[str], ask: ChatRequest) -> str:
        """One topic per run of turns about the same thing: same kind of beat and same person or key."""
        topics: list[list[int]] = []
        events = [self._event(turn) for turn in ask.subject]
        for index, event in enumerate(events):
            if (
                topics
                and index
                and events[topics[-1][-1]].kind == event.kind
                and event.kind != "event"
            ):
                topics[-1].append(index)
            else:
                topics.append([index])
        replies = []
        for topic in topics:
            summary = " ".join(statement(events[i]) for i in topic)
            keywords = dict.fromkeys(
                word for i in topic for word in (events[i].who, events[i].key or events[i].value)
            )
            replies.append(EpisodeReply(summary, " ".join(keywords), tuple(topic)))
        return write_episodes(replies, quote=ask.slots["quote"])


def value_chain(told: Sequence[str]) -> str:
    """The sentences of a fact that changed as one, from value to value and with the last one's cause or what follows.

    `my drink is cola from cola is tea because stress`: each step is one look-up. Of several sentences that begin alike
    it would have to be known which is the newest before its value is said.
    """
    *before, last = told
    steps = [sentence.split(" because ")[0] for sentence in before] + [last]
    return " ".join([steps[0], *(f"from {step.split(' from ')[1]}" for step in steps[1:])])


def final_thought(question: Question, seen: str) -> str:
    """The last reasoning step: the thought, with how the fact came to be what it is as far as that stands in `seen`."""
    if (
        not question.history or not question.hops and question.thought in seen
    ):  # the second: the profile, which is newest
        return question.thought
    *before, last = question.history
    before = list(itertools.takewhile(lambda sentence: sentence in seen, reversed(before)))[::-1]
    return value_chain([*before, question.thought if question.hops else last])
