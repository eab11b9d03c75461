"""A language model as teller: it is told the plan, session by session, and its stories are checked as the template's
need not be (paper, section 4 and appendix C: dialogues written by a large model).

What is checked can be decided by rules: that a turn states its fact, in words that are given, and gives nothing else of
the plan away. Whether it also denies the fact, or sounds as the personality does, is for a reader to judge.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from personavlm_lib.agent.prompts import PromptSet
from personavlm_lib.memory.personality import summarise
from personavlm_lib.memory.records import TRAITS, Turn, split_sessions
from personavlm_lib.models import Ask, ChatModel, Trajectory, run
from personavlm_lib.models.endpoint import EndpointError
from personavlm_lib.work import progress
from personavlm_lib.world import lexicon
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.scenes import caption
from personavlm_lib.world.tellers import sentence, tell

PICTURE = "[picture]"  # for `<img>`, which in a prompt would stand for a picture that is there
LONGEST = 600  # characters of one message
# What a sentence of the plan may leave to the grammar when it is said freely; every other word of it must stand.
FREE = set("my i is of with every do need for now because name relation value style to a an the".split())
MARKUP = re.compile(r"[<>{}\[\]*#`|\\]|https?:")
LOOP = re.compile(r"\b(\w+(?:\W+\w+){0,5})(?:\W+\1\b){2,}", re.IGNORECASE)
Story = list[tuple[str, str]]  # what user and assistant say, for each beat of a session


@dataclass
class Told:
    """`lives`: user -> turns, whole lives only. `failures`: how many were left out, by reason; `refusals`: stories that
    were refused on the way, by reason (one may have several). Tokens and cost are those of this call."""

    lives: dict[str, list[Turn]] = field(default_factory=dict)
    failures: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        counts = [", ".join(f"{n} {why}" for why, n in c.most_common()) for c in (self.failures, self.refusals)]
        told = f"{len(self.lives)} lives told, {self.failures.total()} left out"
        told += f" ({counts[0]}: the same call goes on with them)" if counts[0] else ""
        told += f"; stories refused: {counts[1]}" if counts[1] else ""
        return f"{told}; {self.tokens_in:,} tokens in, {self.tokens_out:,} out, cost {self.cost:.2f}"


@dataclass(frozen=True)
class Session:
    """A part of a plan that is told at once, and what the model is told to tell it."""

    plan: LifePlan
    beats: Sequence[Beat]
    prompt: str
    given_away: frozenset[str]  # the words that would tell of any beat of the plan

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.plan.user} {self.prompt}".encode()).hexdigest()[:16]


def sessions(plan: LifePlan) -> list[Session]:
    """The plan's sessions in order, as the update stage will find them."""
    held = [f"{b.who} {b.friend} {b.value if b.kind != 'image' else ''}" for b in plan.beats if b.kind != "small_talk"]
    held = frozenset(_words(" ".join(held)) - FREE)
    return [Session(plan, beats, _prompt(plan, beats), held) for beats in split_sessions(plan.beats)]


def _prompt(plan: LifePlan, beats: Sequence[Beat]) -> str:
    shown = [
        {
            "time": beat.time,
            "said": sentence(beat) + (f" because of {beat.cause}" if beat.cause not in sentence(beat) else ""),
            "words": [] if beat.kind == "small_talk" else sorted(_must(beat)),
            "picture": caption(beat.scene) if beat.scene else "",
            "tone": ", ".join(f"{t} {s}" for t, s in zip(TRAITS, beat.scores, strict=True) if s != 3),
        }
        for beat in beats
    ]
    personality = summarise(plan.personality_at(beats[0].time))
    return PromptSet("story")("story", plan=plan, beats=shown, personality=personality)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _must(beat: Beat) -> set[str]:
    """The words that state the beat: value, key, whose it is, and the cause."""
    return set() if beat.kind == "small_talk" else _words(f"{sentence(beat)} {beat.cause}") - FREE


def _must_not(session: Session, beat: Beat) -> set[str]:
    """The words that would give away other beats, or what only the picture shows."""
    seen = _words(caption(beat.scene)) - set(lexicon.FRAME) if beat.scene else set()
    return (session.given_away | seen) - _words(f"{sentence(beat)} {beat.cause}")


def read_story(text: str) -> Story | None:
    """The turns of a reply; None where it holds no JSON of that shape."""
    text = text.rpartition("</think>")[2]
    try:
        turns = json.loads(text[text.index("{") : text.rindex("}") + 1])["turns"]
        return [(turn["user"].strip(), turn["assistant"].strip()) for turn in turns]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def problems(story: Story | None, session: Session, said: set[str]) -> Iterator[tuple[str, str]]:
    """Kind and description of all that is wrong with a story. `said`: what users said elsewhere in this life."""
    if story is None:
        yield "no JSON", 'the reply is not {"turns": [{"user": "...", "assistant": "..."}, ...]}'
        return
    if len(story) != len(session.beats):
        yield "number of turns", f"there are {len(story)} exchanges, not {len(session.beats)}"
        return
    for n, (beat, (user, assistant)) in enumerate(zip(session.beats, story, strict=True), 1):
        used, both = _words(user), f"{user} {assistant}".replace(PICTURE, " ")
        if not all(0 < len(text) <= LONGEST for text in (user, assistant)):
            yield "length", f"exchange {n}: a message is empty or longer than {LONGEST} characters"
        elif MARKUP.search(both) or not both.isprintable():
            yield "markup", f"exchange {n} is not plain text in one line"
        elif LOOP.search(both) or user in said or [u for u, _ in story].count(user) > 1:
            yield "repetition", f"exchange {n} repeats itself or what was said before"
        if missing := [word for word in sorted(_must(beat)) if not used & {word, f"{word}s", f"{word}es"}]:
            yield "fact missing", f"exchange {n}: the user does not say {', '.join(missing)}"
        if user.count(PICTURE) != bool(beat.scene) or PICTURE in assistant:
            yield "picture marks", f"exchange {n}: the user writes {PICTURE} {int(bool(beat.scene))} times, nobody else"
        if leaked := _words(both) & _must_not(session, beat):
            yield "leak", f"exchange {n} says {', '.join(sorted(leaked))}, which belongs elsewhere or to the picture"


@dataclass
class _Book:
    """The stories that passed, one a line on disk, each written at once; what a crash cut short is cut off."""

    path: Path
    name: str
    stories: dict[str, Story] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.touch()
        content = self.path.read_bytes()
        os.truncate(self.path, whole := content.rfind(b"\n") + 1)
        for row in map(json.loads, content[:whole].splitlines()):
            if row["told_by"] == self.name:
                self.stories[row["key"]] = [tuple(turn) for turn in row["turns"]]

    def write(self, session: Session, story: Story) -> None:
        row = {"user": session.plan.user, "key": session.key, "told_by": self.name, "turns": story}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.stories[session.key] = story


@dataclass
class _Server:
    """How many sessions in a row got no answer, and why the last did not: a server that is gone is left alone."""

    silent: int = 0
    kind: str = ""


def _telling(
    session: Session, said: set[str], book: _Book, told: Told, server: _Server, tries: int, patience: int
) -> Trajectory[str]:
    """Tells a session and writes it into the book; the result is why that was not possible, else empty."""
    if server.silent >= patience:
        return server.kind
    room = 200 + 160 * len(session.beats)
    ask = Ask(session.prompt, max_tokens=room, fresh=True, purpose="story", about=session)
    for _ in range(tries):
        try:
            reply = yield ask
            if isinstance(reply, Exception):  # a failed ask's place
                raise reply
        except (EndpointError, ValueError) as error:
            server.silent, server.kind = server.silent + 1, getattr(error, "kind", "request refused")
            return server.kind
        server.silent = 0
        told.tokens_in, told.tokens_out = told.tokens_in + reply.tokens_in, told.tokens_out + reply.tokens_out
        found = list(problems(story := read_story(reply.text), session, said))
        if not found:
            said.update(user for user, _ in story)
            book.write(session, story)
            return ""
        told.refusals.update({kind for kind, _ in found})
        wrong = "\n".join(f"- {what}" for _, what in found)
        ask = Ask(f"This cannot be used:\n{wrong}\nWrite the whole JSON again, with this put right.", max_tokens=room)
    return found[0][0]


def tell_lives(
    plans: Sequence[LifePlan], folder: Path, model: ChatModel, name: str = "", *, tries: int = 3, width: int = 8,
    price_in: float = 0.0, price_out: float = 0.0, draw: bool = True,
) -> Told:  # fmt: skip
    """The plans as `model` tells them, up to `width` sessions side by side, each up to `tries` times.

    Sessions that passed are kept in `folder`/stories.jsonl and not asked for again, if the same `name` told them;
    pictures are in `folder`/images. A life that lacks a session is left out. Prices are for a million tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    book, told, server, waiting = _Book(folder / "stories.jsonl", name), Told(), _Server(), []
    parts = [sessions(plan) for plan in plans]
    for part in parts:
        said: set[str] = set()
        for session in part:
            story = book.stories.pop(session.key, None)
            if story and not list(problems(story, session, said)):  # the rules may have changed
                said.update(user for user, _ in story)
                book.stories[session.key] = story
            else:
                waiting.append((session, said))
    ahead = progress(waiting, "stories", "session")
    telling = (_telling(*pair, book, told, server, tries, width) for pair in ahead)
    failed = {s.plan.user: why for (s, _), why in zip(waiting, run(telling, model, width), strict=True) if why}
    told.failures.update(failed.values())
    for plan, part in zip(plans, parts, strict=True):
        if plan.user not in failed:
            words = [turn for session in part for turn in book.stories[session.key]]
            told.lives[plan.user] = [
                replace(turn, user=user.replace(PICTURE, "<img>"), assistant=assistant)
                for turn, (user, assistant) in zip(tell(plan, folder / "images", draw), words, strict=True)
            ]
    told.cost = (told.tokens_in * price_in + told.tokens_out * price_out) / 1e6
    return told
