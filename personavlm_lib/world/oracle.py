"""The oracle: a ChatModel that answers any prompt of the agent from the life plan.

`run(respond(...), oracle)` and `run(live(...), oracle)` leave gold memory and, through a Recorder, the SFT samples:
what the model is trained on is what it will see. An answer rests on what stands in the conversation alone (appendix C):
the oracle knows the plan, but says only what the profile or a retrieved memory has shown it.
"""

import random
from collections import Counter
from collections.abc import Iterable

from personavlm_lib.agent.prompts import periods
from personavlm_lib.agent.protocol import EpisodeReply, SemanticReply
from personavlm_lib.agent.replies import write_answer, write_episodes, write_pairs, write_retrieve, write_semantic
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.models import Ask, Reply
from personavlm_lib.world.lexicon import STYLES
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.questions import Hop, Question
from personavlm_lib.world.tellers import FACTS, keywords, last_step, profile, sentence

KEPT = ("name", *FACTS, "intent", "image")  # kinds of beat that semantic memory keeps


class Oracle:
    """Knows one life: its plan by the turns that tell it, its questions by their time and words."""

    def __init__(self, plan: LifePlan, turns: list[Turn], questions: Iterable[Question] = ()):
        self.plan = plan
        self.indices = {(turn.time, turn.user): index for index, turn in enumerate(turns)}
        self.questions = {(question.time, question.query): question for question in questions}

    def start(self) -> list[str]:
        return []

    def reply(self, asked: list[tuple[list[str], Ask]]) -> list[Reply]:
        replies = []
        for transcript, ask in asked:
            transcript.append(ask.text)
            text = getattr(self, f"_{ask.purpose}")(transcript, ask)
            transcript.append(text)
            replies.append(Reply(text, tokens_out=len(text.split())))
        return replies

    def _index(self, turn: Turn) -> int:
        return self.indices[turn.time, turn.user]

    def _beat(self, turn: Turn) -> Beat:
        return self.plan.beats[self._index(turn)]

    # Response stage

    def _respond(self, transcript: list[str], ask: Ask) -> str:
        question = self.questions[ask.about.time, ask.about.user]
        # A fact is one sentence, however the prompt shows it; only the profile is not shown in sentences everywhere.
        known = [f"my {key} is {value}" for key, value in ask.shown.get("core", {}).items()]
        seen = " ".join("\n".join(known + transcript[::2]).split())
        quote = ask.shown.get("quote", False)
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
            if ask.shown.get("closing") or tried == len(attempts):
                may_be = "unknown" in (*question.options, question.answer)  # among what the answer can be
                return write_answer(
                    f"{hop.keywords} is unknown" if may_be else "unknown", "unknown" if may_be else guess
                )
            attempt = attempts[tried]
            thought = " ".join([h.sentence for h in question.hops[:number]][-1:] + [f"look up {hop.keywords}"])
            if attempt.start:
                named = {span: name for name, span in periods(question.time).items()}
                thought += f" {named[attempt.start, attempt.end]} {attempt.start:%Y-%m-%d}"
            return write_retrieve(thought, hop.keywords, attempt.start, attempt.end, quote=quote)
        if not question.hops and not any(said in seen for said in (question.thought, *question.told[-1:])):
            return write_answer("unknown", guess)
        return write_answer(last_step(question, seen), question.answer)

    @staticmethod
    def _count(question: Question, seen: str, ask: Ask, guess: str) -> str:
        """Searches by the same words until all is seen that is to be counted, or no search is left; then counts."""
        notes = [hop.note for hop in question.hops if hop.sentence in seen]
        if len(notes) < len(question.hops) and not ask.shown.get("closing"):
            keywords = question.hops[0].keywords
            return write_retrieve(f"look up {keywords}", keywords, quote=ask.shown.get("quote", False))
        counted = Counter(note.split()[-1] for note in notes)
        return write_answer(" ".join(notes) or "unknown", counted.most_common(1)[0][0] if counted else guess)

    @staticmethod
    def _judge(question: Question, ask: Ask, guess: str) -> str:
        """Yes or no to a style: compares it with the one that suits the trait's level as the prompt shows it.

        Not the two levels: a model that has just written the one copies it for the other, and never looks.
        """
        trait = question.thought.split()[1]  # "my extraversion high takes sociable"
        words = dict(line.split(": ") for line in ask.shown["personality"].splitlines())
        level = (words if ask.shown["quote"] else ask.shown["levels"])[trait]
        style = STYLES[trait].get(level.split()[-1], "nothing")
        asked = question.thought.split()[-1]
        answer = guess if style == "nothing" else "yes" if style == asked else "no"
        return write_answer(f"my {trait} {level} takes {style} asked {asked}", answer)

    # Update stage

    def _personality(self, transcript: list[str], ask: Ask) -> str:
        beat = self._beat(ask.about)
        return write_pairs(dict(zip(TRAITS, beat.scores, strict=True)))

    def _semantic(self, transcript: list[str], ask: Ask) -> str:
        beat = self._beat(ask.about)
        if beat.kind not in KEPT:
            reply = SemanticReply(beat.kind.replace("_", " "), False, "", "")
        else:
            content = sentence(beat) + (f" (Image Object: {beat.key})" if beat.kind == "image" else "")
            reply = SemanticReply(f"new {beat.kind}", True, content, keywords(beat))
        return write_semantic(reply, quote=ask.shown["quote"])

    def _core(self, transcript: list[str], ask: Ask) -> str:
        told = self.plan.beats[: self._index(ask.about[-1]) + 1]
        return write_pairs(profile(told), quote=ask.shown["quote"])

    def _procedural(self, transcript: list[str], ask: Ask) -> str:
        kept: dict[str, str] = {}
        for beat in self.plan.beats[: self._index(ask.about[-1]) + 1]:
            if beat.kind in ("habit", "goal"):
                kept[beat.value] = sentence(beat)
            elif beat.kind == "goal_end":
                kept.pop(beat.value, None)
        return write_pairs(dict(list(kept.items())[:5]), quote=ask.shown["quote"])

    def _episodic(self, transcript: list[str], ask: Ask) -> str:
        """One topic per run of turns about the same thing: same kind of beat and same person or key."""
        topics: list[list[int]] = []
        beats = [self._beat(turn) for turn in ask.about]
        for index, beat in enumerate(beats):
            if topics and index and beats[topics[-1][-1]].kind == beat.kind and beat.kind != "event":
                topics[-1].append(index)
            else:
                topics.append([index])
        replies = []
        for topic in topics:
            summary = " ".join(sentence(beats[i]) for i in topic)
            keywords = dict.fromkeys(word for i in topic for word in (beats[i].who, beats[i].key or beats[i].value))
            replies.append(EpisodeReply(summary, " ".join(keywords), tuple(topic)))
        return write_episodes(replies, quote=ask.shown["quote"])
