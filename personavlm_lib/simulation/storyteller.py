"""A language model as teller: it is told the plan, session by session, and its stories are checked as the template's
need not be (paper, section 4 and appendix C: dialogues written by a large model).

What is checked can be decided by rules: that a turn states its fact, in words that are given, and gives nothing else of
the plan away. Whether it also denies the fact, or sounds as the personality does, is for a reader to judge.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.memory.personality import summarize_profile
from personavlm_lib.memory.records import TRAITS, Turn, split_sessions
from personavlm_lib.models.chat import ChatModel, ChatRequest, Trajectory
from personavlm_lib.models.endpoint import EndpointError
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.progress import with_progress
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.lexicon import FRAME
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.scenes import caption
from personavlm_lib.simulation.wording import statement

PICTURE = "[picture]"  # for `<img>`, which in a prompt would stand for a picture that is there
LONGEST = 600  # characters of one message
# What a sentence of the plan may leave to the grammar when it is said freely; every other word of it must stand.
FREE = set(
    "my i is of from with every do need for now because name relation value style to a an the".split()
)
MARKUP = re.compile(r"[<>{}\[\]*#`|\\]|https?:")
LOOP = re.compile(r"\b(\w+(?:\W+\w+){0,5})(?:\W+\1\b){2,}", re.IGNORECASE)
Story = list[tuple[str, str]]  # what user and assistant say, for each beat of a session


@dataclass
class StorytellingResult:
    """`lives`: user -> turns, whole lives only. `failures`: how many were left out, by reason; `refusals`: stories that
    were refused on the way, by reason (one may have several). Tokens and cost are those of this call."""

    lives: dict[str, list[Turn]] = field(default_factory=dict)
    failures: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        why, on_the_way = (
            ", ".join(f"{n} {w}" for w, n in c.items()) for c in (self.failures, self.refusals)
        )
        left = (
            f"{self.failures.total()} left out ({why or 'none'}; the same call goes on with them)"
        )
        spent = f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out, cost {self.cost:.2f}"
        return f"{len(self.lives)} lives told, {left}; stories refused: {on_the_way or 'none'}; {spent}"


class Session(NamedTuple):
    """A part of a plan that is told at once, the prompt for it, and the words that tell of any beat of the plan."""

    events: Sequence[LifeEvent]
    prompt: str
    telling: set[str]


def sessions(plan: LifePlan) -> list[Session]:
    """The plan's sessions in order, as the update stage will find them."""
    held = [
        f"{b.who} {b.friend} {b.value if b.kind != 'image' else ''}"
        for b in plan.events
        if b.kind != "small_talk"
    ]
    held = _words(" ".join(held)) - FREE
    return [Session(events, _prompt(plan, events), held) for events in split_sessions(plan.events)]


def _prompt(plan: LifePlan, events: Sequence[LifeEvent]) -> str:
    tools = dict(statement=statement, must=_must, caption=caption, traits=TRAITS)
    personality = summarize_profile(plan.personality_at(events[0].time))
    return PromptSet("story")("story", plan=plan, events=events, personality=personality, **tools)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _must(event: LifeEvent) -> set[str]:
    """The words that state the beat: value, key, whose it is, and the cause."""
    return set() if event.kind == "small_talk" else _words(statement(event)) - FREE


def read_story(text: str) -> Story | None:
    """The turns of a reply; None where it holds no JSON of that shape."""
    text = text.rpartition("</think>")[2]
    try:
        turns = json.loads(text[text.index("{") : text.rindex("}") + 1])["turns"]
        return [(turn["user"].strip(), turn["assistant"].strip()) for turn in turns]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def story_problems(
    story: Story | None, session: Session, said: set[str]
) -> Iterator[tuple[str, str]]:
    """Kind and description of all that is wrong with a story. `said`: what users said elsewhere in this life."""
    if story is None:
        yield "no JSON", 'the reply is not {"turns": [{"user": "...", "assistant": "..."}, ...]}'
    elif len(story) != len(session.events):
        yield "number of turns", f"there are {len(story)} exchanges, not {len(session.events)}"
    else:
        users = [user for user, _ in story]
        for n, (event, (user, assistant)) in enumerate(zip(session.events, story, strict=True), 1):
            both, used, pictures = (
                f"{user} {assistant}".replace(PICTURE, " "),
                _words(user),
                int(bool(event.scene)),
            )
            missing = [w for w in sorted(_must(event)) if not used & {w, f"{w}s", f"{w}es"}]
            seen = _words(caption(event.scene)) - {*FRAME} if event.scene else set()
            leaked = _words(both) & (session.telling | seen) - _words(statement(event))
            again = LOOP.search(both[: 2 * LONGEST]) or user in said or users.count(user) > 1
            for wrong, kind, what in (
                (not all(0 < len(t) <= LONGEST for t in (user, assistant)), "length", "a message is empty or too long"),
                (MARKUP.search(both) or not both.isprintable(), "markup", "not plain text in one line"),
                (again, "repetition", "it repeats itself or what was said before"),
                (missing, "fact missing", f"the user does not say {', '.join(missing)}"),
                ((user.count(PICTURE), assistant.count(PICTURE)) != (pictures, 0), "picture marks",
                 f"the user writes {PICTURE} {pictures} times, the assistant never"),
                (leaked, "leak", f"{', '.join(sorted(leaked))} belongs elsewhere, or to the picture alone"),
            ):  # fmt: skip
                if wrong:
                    yield kind, f"exchange {n}: {what}"


def _kept(file: Path, name: str) -> dict[str, Story]:
    """The stories of a file by their prompts; a line that a crash cut short is cut off."""
    file.touch()
    content = file.read_bytes()
    os.truncate(file, whole := content.rfind(b"\n") + 1)
    rows = [row for row in map(json.loads, content[:whole].splitlines()) if row["told_by"] == name]
    return {row["user"] + row["prompt"]: [tuple(turn) for turn in row["turns"]] for row in rows}


def generate_dialogues(
    plans: Sequence[LifePlan], folder: Path, model: ChatModel, name: str = "", *, tries: int = 3, width: int = 8,
    price_in: float = 0.0, price_out: float = 0.0, draw: bool = True,
) -> StorytellingResult:  # fmt: skip
    """The plans as `model` tells them, up to `width` sessions side by side, each up to `tries` times.

    Sessions that passed are kept in `folder`/stories.jsonl, one a line, and not asked for again if the same `name` told
    them; pictures are in `folder`/images. A life that lacks a session is left out. A server is left alone once `width`
    sessions in a row got no answer. Prices are for a million tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stories, told, silent = _kept(file := folder / "stories.jsonl", name), StorytellingResult(), []

    def telling(plan: LifePlan, session: Session, said: set[str]) -> Trajectory[str]:
        """Tells a session and keeps it; the result is why that was not possible, else empty."""
        if len(silent) >= width:
            return silent[-1]
        ask = ChatRequest(
            session.prompt,
            max_tokens=200 + 160 * len(session.events),
            new_conversation=True,
            purpose="story",
        )
        for _ in range(tries):
            try:
                reply = yield ask
            except (EndpointError, ValueError) as error:
                silent.append(getattr(error, "kind", "request refused"))
                return silent[-1]
            silent.clear()
            told.tokens_in, told.tokens_out = (
                told.tokens_in + reply.tokens_in,
                told.tokens_out + reply.tokens_out,
            )
            if not (found := list(story_problems(story := read_story(reply.text), session, said))):
                said.update(user for user, _ in story)
                stories[plan.user + session.prompt] = story
                row = {"user": plan.user, "prompt": session.prompt, "told_by": name, "turns": story}
                with open(file, "a") as book:
                    book.write(json.dumps(row) + "\n")
                return ""
            told.refusals.update({kind for kind, _ in found})
            wrong = "\n".join(f"- {what}" for _, what in found)
            ask = replace(
                ask,
                text=f"This cannot be used:\n{wrong}\nWrite the whole JSON again, put right.",
                new_conversation=False,
            )
        return found[0][0]

    parts, waiting = [(plan, sessions(plan)) for plan in plans], []
    for plan, part in parts:
        said: set[str] = set()
        for session in part:
            story = stories.get(plan.user + session.prompt)
            if story and not list(
                story_problems(story, session, said)
            ):  # the rules may have changed
                said.update(user for user, _ in story)
            else:
                waiting.append((plan, session, said))
    why = run_trajectories(
        (telling(*one) for one in with_progress(waiting, "stories", "session")), model, width
    )
    failed = {plan.user: reason for (plan, *_), reason in zip(waiting, why, strict=True) if reason}
    told.failures.update(failed.values())
    for plan, part in parts:
        if plan.user not in failed:
            words = [turn for session in part for turn in stories[plan.user + session.prompt]]
            told.lives[plan.user] = [
                replace(turn, user=user.replace(PICTURE, "<img>"), assistant=assistant)
                for turn, (user, assistant) in zip(
                    render_dialogue(plan, folder / "images", draw), words, strict=True
                )
            ]
    told.cost = (told.tokens_in * price_in + told.tokens_out * price_out) / 1e6
    return told
