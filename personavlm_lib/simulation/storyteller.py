"""A language model as dialogue generator, checked by rules (paper, section 4 and appendix C).

The model writes the dialogue of a plan session by session. The rules check what can be decided by
rules: that each turn states its event with the required words, and nothing else of the plan.
Only a human reader can judge whether a turn also denies its event, or fits the personality.
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
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.progress import with_progress
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.lexicon import FRAME
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.scenes import caption
from personavlm_lib.simulation.wording import statement

PICTURE = "[picture]"  # stands for `<img>`, which in a prompt would mean an attached picture
LONGEST = 600  # characters of one message
# Words of a plan's sentence that a free wording may drop; it must contain all other words.
FREE = set(
    "my i is of from with every do need for now because name relation value style "
    "to a an the".split()
)
MARKUP = re.compile(r"[<>{}\[\]*#`|\\]|https?:")
LOOP = re.compile(r"\b(\w+(?:\W+\w+){0,5})(?:\W+\1\b){2,}", re.IGNORECASE)
Story = list[tuple[str, str]]  # what user and assistant say, for each event of a session


@dataclass(frozen=True)
class StorytellerSettings:
    """Settings of `generate_dialogues`.

    `name` identifies the model: stories are reused only if they are stored under the same name.
    `tries` is the number of attempts per session. `width` is the number of sessions in a row
    without an answer after which no more requests are sent, and of those in progress with a local
    model. Prices are per million tokens. `draw` renders the pictures.
    """

    name: str = ""
    tries: int = 3
    width: int = 8
    price_in: float = 0.0
    price_out: float = 0.0
    draw: bool = True


@dataclass
class StorytellingResult:
    """The generated lives, and the failures, tokens and cost of generating them.

    `lives` maps users to turns and holds complete lives only; `failures` counts the other lives by
    reason. `rejections` counts rejected stories by reason (a story may have several). Tokens and
    cost are those of this call.
    """

    lives: dict[str, list[Turn]] = field(default_factory=dict)
    failures: Counter = field(default_factory=Counter)
    rejections: Counter = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        parts = [f"{len(self.lives)} lives generated"]
        left_out = f"{self.failures.total()} left out"
        if self.failures:
            left_out += f" ({_reasons(self.failures)})"
        parts.append(left_out)
        parts.append(f"rejected stories: {_reasons(self.rejections)}")
        tokens = f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out"
        parts.append(f"{tokens}, cost {self.cost:.2f}")
        return "; ".join(parts)


def _reasons(counts: Counter) -> str:
    """`2 timeout, 1 leak`, or `none`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


class Session(NamedTuple):
    """A part of a plan that is written at once.

    `prompt` asks for it; `plan_words` are the words that give away any event of the whole plan.
    """

    events: Sequence[LifeEvent]
    prompt: str
    plan_words: set[str]


def sessions(plan: LifePlan) -> list[Session]:
    """The plan's sessions in order, divided as in the update stage."""
    plan_words: set[str] = set()
    for event in plan.events:
        if event.kind == "small_talk":
            continue
        plan_words |= _words(event.who) | _words(event.friend)
        if event.kind != "image":
            plan_words |= _words(event.value)
    plan_words -= FREE
    placeholders = [Turn(event.time, "", index=i) for i, event in enumerate(plan.events)]
    parts = []
    for turns in split_sessions(placeholders):
        events = [plan.events[turn.index] for turn in turns]
        parts.append(Session(events, _prompt(plan, events), plan_words))
    return parts


def _prompt(plan: LifePlan, events: Sequence[LifeEvent]) -> str:
    personality = plan.personality_at(events[0].time)
    return PromptSet("story")(
        "story",
        plan=plan,
        events=events,
        personality=summarize_profile(personality),
        statement=statement,
        required_words=_required_words,
        caption=caption,
        traits=TRAITS,
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _required_words(event: LifeEvent) -> set[str]:
    """The words that state the event: value, key, whose it is, and the cause."""
    if event.kind == "small_talk":
        return set()
    return _words(statement(event)) - FREE


def read_story(text: str) -> Story | None:
    """The turns of a reply; None if it contains no JSON of the requested shape."""
    _, _, text = text.rpartition("</think>")
    try:
        start = text.index("{")
        end = text.rindex("}") + 1
        turns = json.loads(text[start:end])["turns"]
        return [(turn["user"].strip(), turn["assistant"].strip()) for turn in turns]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def story_problems(
    story: Story | None, session: Session, earlier_messages: set[str]
) -> Iterator[tuple[str, str]]:
    """Check a story; yields its problems as (kind, description).

    `earlier_messages` are the user's messages in other sessions of this life.
    """
    if story is None:
        yield "no JSON", 'the reply is not {"turns": [{"user": "...", "assistant": "..."}, ...]}'
        return
    if len(story) != len(session.events):
        yield "number of turns", f"there are {len(story)} exchanges, not {len(session.events)}"
        return
    message_counts = Counter(user for user, _ in story)
    for number, (event, exchange) in enumerate(zip(session.events, story, strict=True), 1):
        place = f"exchange {number}"
        user, assistant = exchange
        text = f"{user} {assistant}".replace(PICTURE, " ")
        if not 0 < len(user) <= LONGEST or not 0 < len(assistant) <= LONGEST:
            yield "length", f"{place}: a message is empty or too long"
        if MARKUP.search(text) or not text.isprintable():
            yield "markup", f"{place}: it is not plain text in one line"
        repeated = user in earlier_messages or message_counts[user] > 1
        if repeated or LOOP.search(text[: 2 * LONGEST]):
            yield "repetition", f"{place}: it repeats itself or an earlier message"
        missing = _missing_words(event, user)
        if missing:
            yield "fact missing", f"{place}: the user does not say {', '.join(missing)}"
        pictures = 1 if event.scene else 0
        if user.count(PICTURE) != pictures or PICTURE in assistant:
            rule = f"the user must write {PICTURE} {pictures} times, the assistant never"
            yield "picture marks", f"{place}: {rule}"
        leaked = _leaked_words(event, session, text)
        if leaked:
            rule = "these words belong to other exchanges, or to the picture alone"
            yield "leak", f"{place}: {rule}: {', '.join(leaked)}"


def _missing_words(event: LifeEvent, message: str) -> list[str]:
    """The required words that `message` lacks, in singular and plural."""
    words = _words(message)
    missing = []
    for word in sorted(_required_words(event)):
        if not words & {word, f"{word}s", f"{word}es"}:
            missing.append(word)
    return missing


def _leaked_words(event: LifeEvent, session: Session, text: str) -> list[str]:
    """The words of `text` that give away another event, or what only the picture shows."""
    allowed = _words(statement(event))
    secret = session.plan_words
    if event.scene:
        depicted = _words(caption(event.scene)) - set(FRAME)
        secret = secret | depicted
    leaked = (_words(text) & secret) - allowed
    return sorted(leaked)


def _retry_message(problems: list[tuple[str, str]]) -> str:
    lines = ["This reply cannot be used:"]
    lines += [f"- {description}" for _, description in problems]
    lines.append("Rewrite the whole JSON with these problems fixed.")
    return "\n".join(lines)


def _load_stories(file: Path, name: str) -> dict[str, Story]:
    """Load the stories of `file` by user and prompt.

    Truncates the file after its last complete line, in case a crash left part of a line.
    """
    file.touch()
    content = file.read_bytes()
    complete = content.rfind(b"\n") + 1
    os.truncate(file, complete)
    stories: dict[str, Story] = {}
    for line in content[:complete].splitlines():
        row = json.loads(line)
        if row["model"] == name:
            key = row["user"] + row["prompt"]
            stories[key] = [(user, assistant) for user, assistant in row["turns"]]
    return stories


class _Storyteller:
    """One call of `generate_dialogues`: its stories, their file, and the result so far."""

    def __init__(self, folder: Path, settings: StorytellerSettings):
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.file = folder / "stories.jsonl"
        self.stories = _load_stories(self.file, settings.name)
        self.result = StorytellingResult()
        self.errors: list[str] = []  # kinds of the errors since the last reply

    def write_session(
        self, plan: LifePlan, session: Session, earlier_messages: set[str]
    ) -> Trajectory[str]:
        """Have the model write a session and store it.

        The result is the reason for a failure, or "" if the session was accepted.
        """
        if len(self.errors) >= self.settings.width:
            return self.errors[-1]
        request = ChatRequest(
            session.prompt,
            max_tokens=200 + 160 * len(session.events),
            new_conversation=True,
            purpose="story",
        )
        for _ in range(self.settings.tries):
            try:
                reply = yield request
            except ValueError as error:
                self.errors.append(getattr(error, "kind", "request refused"))
                return self.errors[-1]
            self.errors.clear()
            self.result.tokens_in += reply.tokens_in
            self.result.tokens_out += reply.tokens_out
            story = read_story(reply.text)
            problems = list(story_problems(story, session, earlier_messages))
            if not problems:
                assert story is not None
                earlier_messages.update(user for user, _ in story)
                self.save(plan, session, story)
                return ""
            self.result.rejections.update({kind for kind, _ in problems})
            text = _retry_message(problems)
            request = replace(request, text=text, new_conversation=False)
        first_kind, _ = problems[0]
        return first_kind

    def save(self, plan: LifePlan, session: Session, story: Story) -> None:
        """Add a story to the file."""
        user, prompt = plan.user, session.prompt
        self.stories[user + prompt] = story
        row = {"user": user, "prompt": prompt, "model": self.settings.name, "turns": story}
        line = json.dumps(row)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def generate_dialogues(
    plans: Sequence[LifePlan],
    folder: Path,
    model: ChatModel,
    settings: StorytellerSettings | None = None,
) -> StorytellingResult:
    """Have `model` write the dialogues of the plans.

    Accepted sessions are stored in `folder`/stories.jsonl, one per line, and reused by later calls;
    pictures are in `folder`/images. A life that lacks a session is left out. After `width` sessions
    in a row without an answer, no more requests are sent.
    """
    settings = settings or StorytellerSettings()
    storyteller = _Storyteller(folder, settings)
    plan_sessions = [(plan, sessions(plan)) for plan in plans]
    waiting = []
    for plan, parts in plan_sessions:
        earlier_messages: set[str] = set()
        for session in parts:
            stored = storyteller.stories.get(plan.user + session.prompt)
            # A stored story is checked again: the rules may have changed.
            if stored and not list(story_problems(stored, session, earlier_messages)):
                earlier_messages.update(user for user, _ in stored)
            else:
                waiting.append((plan, session, earlier_messages))
    progress = with_progress(waiting, "stories", "session")
    trajectories = (storyteller.write_session(*arguments) for arguments in progress)
    reasons = run_trajectories(trajectories, model, settings.width)

    failed = {}
    for (plan, _, _), reason in zip(waiting, reasons, strict=True):
        if reason:
            failed[plan.user] = reason
    result = storyteller.result
    result.failures.update(failed.values())
    for plan, parts in plan_sessions:
        if plan.user not in failed:
            story: Story = []
            for session in parts:
                story += storyteller.stories[plan.user + session.prompt]
            turns = render_dialogue(plan, folder / "images", settings.draw)
            result.lives[plan.user] = _with_messages(turns, story)
    cost = result.tokens_in * settings.price_in + result.tokens_out * settings.price_out
    result.cost = cost / 1e6
    return result


def _with_messages(turns: list[Turn], story: Story) -> list[Turn]:
    """`turns` with the messages of a story."""
    rewritten = []
    for turn, (user, assistant) in zip(turns, story, strict=True):
        user = user.replace(PICTURE, "<img>")
        rewritten.append(replace(turn, user=user, assistant=assistant))
    return rewritten
