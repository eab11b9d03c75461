"""Chat in the terminal with an agent that remembers: that of a finished run, or any model."""

import re
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.protocol import Step, parse_step
from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.personality import BigFive, summarize_profile
from personavlm_lib.memory.records import SESSION_GAP, Turn
from personavlm_lib.memory.search import PAPER_RETRIEVER, Retrieved
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.simulation import lexicon
from personavlm_lib.study.components import open_model
from personavlm_lib.study.profiles import memory_folder, require, run_folder

HINT = """This model knows the {count} words of its simulated world.
State facts such as 'my drink is tea', 'alice job is pilot', 'every monday i do yoga'.
Ask questions such as 'what is my drink ?': each is asked on the next morning of its calendar."""
COMMANDS = """:memory        print the memory
:steps         show or hide thoughts, searches and what they find
:picture FILE  attach a picture to the next message
:help          print these commands
:quit          end the chat"""
FIRST_DAY = datetime(2024, 6, 3)  # a date that the model can read
STATEMENT_TIME = timedelta(hours=9)  # time of the first statement of a day
QUESTION_TIME = timedelta(hours=7)
ONE_DAY = timedelta(days=1)
REPLY_ROOM = 1024  # tokens of a reply; models of other makers think at length
FAILURES = (ValueError, RuntimeError)  # of a server, a picture, or the memory of a GPU


@dataclass
class WatchedModel:
    """A ChatModel that prints the steps of each response while it is made, if `shows_steps`."""

    model: ChatModel
    shows_steps: bool = False

    def start(self) -> Any:
        return self.model.start()

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        is_shown = self.shows_steps and asked[0][1].purpose == "respond"
        if is_shown:
            _, request = asked[0]
            found = request.slots.get("found")
            if found is not None:
                print(found_text(found), flush=True)
        replies = self.model.reply(asked)
        for reply in replies:
            if is_shown and isinstance(reply, ChatReply):
                print(step_text(parse_step(reply.text, reply.is_cut), reply), flush=True)
        return replies


@dataclass
class Chat:
    """A chat in real time: each line is a message, which is answered and remembered.

    `pictures` are attached to the next message.
    """

    assistant: PersonaVLM
    model: WatchedModel
    pictures: list[str] = field(default_factory=list)

    def send(self, text: str) -> str:
        """The answer to a message, which is stored with it; "" for none."""
        return self.assistant.chat(text, self.pictures)

    def end_of_session(self) -> datetime:
        return datetime.now() + SESSION_GAP

    def run(self) -> None:
        """Read lines until `:quit`, the end of the input or Ctrl-C; then finish the memory."""
        turns_before = len(self.assistant.memory.turns)
        while True:
            line = _read_line()
            if line is None or line == ":quit":
                break
            if line.startswith(":"):
                self._obey(line)
            elif line:
                self._answer(line)
        reason = self._finish_memory()
        store = self.assistant.store
        if reason:
            print(
                f"The messages are saved in {store.folder}, but {len(store.pending())} updates of "
                f"the memory are pending ({reason}). The next chat with this memory continues them."
            )
        elif len(self.assistant.memory.turns) > turns_before:
            print(f"The memory is saved in {store.folder}.")

    def _answer(self, text: str) -> None:
        try:
            answer = self.send(text)
        except FAILURES as error:
            print(f"(not answered and not stored, send it again: {_one_line(error)})", flush=True)
        except KeyboardInterrupt:
            print("(interrupted: the message is not stored)", flush=True)
        else:
            self.pictures = []
            print(f"agent: {answer or '(no answer)'}", flush=True)

    def _obey(self, line: str) -> None:
        """Execute a command; a command is never stored."""
        name, _, argument = line.partition(" ")
        if name == ":memory":
            print(memory_text(self.assistant.memory))
        elif name == ":steps":
            self.model.shows_steps = not self.model.shows_steps
            print("(steps are shown)" if self.model.shows_steps else "(steps are hidden)")
        elif name == ":picture":
            self._attach(argument)
        elif name == ":help":
            print(COMMANDS)
        else:
            print(f"(no such command: {name}; :help prints the commands)")

    def _attach(self, file: str) -> None:
        path = Path(file.strip(" '\"")).expanduser()
        try:
            read_image(path)
        except ValueError as error:
            print(f"(not attached: {_one_line(error)})")
        else:
            self.pictures.append(str(path))
            print(f"(attached to the next message: {path.name})")

    def _finish_memory(self) -> str:
        """End the session, so that the memory is updated with it; return why that failed, or ""."""
        try:
            self.assistant.flush(self.end_of_session())
        except FAILURES as error:
            return _one_line(error)
        except KeyboardInterrupt:
            return "interrupted"
        return ""


@dataclass
class SimulatedChat(Chat):
    """A chat with a calendar: statements fill a day, a question is asked on the next morning.

    A line that ends in a question mark is answered; any other line is stored as a turn. A question
    ends the session before it, because the nano model was trained on questions about earlier
    sessions only.
    """

    day: datetime = FIRST_DAY
    statements_today: int = 0
    words: set[str] = field(default_factory=lambda: set(lexicon.vocabulary()))

    def send(self, text: str) -> str:
        unknown = set(text.replace("?", " ").split()) - self.words
        if unknown:
            print(f"(words it does not know: {', '.join(sorted(unknown))})")
        if text.endswith("?"):
            return self._ask(text)
        self._state(text)
        return "noted"

    def _state(self, text: str) -> None:
        """Store a statement with the simulated world's own reply."""
        moment = self.day + STATEMENT_TIME + timedelta(minutes=5 * self.statements_today)
        self.statements_today += 1
        text += " <img>" * len(self.pictures)
        turn = Turn(moment, text, "noted", images=tuple(self.pictures))
        self.assistant.store.add_turn(turn, pending=True)
        self.assistant.flush(moment)

    def _ask(self, question: str) -> str:
        if self.statements_today:
            self.day += ONE_DAY
            self.statements_today = 0
        moment = self.day + QUESTION_TIME
        self.assistant.flush(moment)
        return self.assistant.ask(question, self.pictures, moment).answer or ""

    def end_of_session(self) -> datetime:
        return self.day + ONE_DAY


def chat_with_run(run: str, folder: Path | None, pictures: list[str]) -> int:
    """Chat with the model of a finished run on standard input; return the exit code.

    The memory is in `folder`, by default in `runs/<run>/chat`.
    """
    local = LocalModel(require(run, "03_grpo") / "model", name="rl")
    model = WatchedModel(local)
    with (
        MemoryStore(folder or run_folder(run) / "chat") as store,
        PersonaVLM(store, model, PromptSet("nano"), PAPER_RETRIEVER, name="rl") as assistant,
    ):
        chat = SimulatedChat(assistant, model, pictures, _first_day(assistant.memory.turns))
        print(HINT.format(count=len(chat.words)))
        print(COMMANDS)
        chat.run()
    return 0


def chat_with_model(name: str, source: str | Path, folder: Path | None, pictures: list[str]) -> int:
    """Chat with any model and the full prompts on standard input; return the exit code.

    `name` is the model as the user names it, `source` where it is (`components.open_model`). The
    memory is in `folder`, by default in `runs/chat/memory/<name>/user`.
    """
    model = WatchedModel(open_model(source))
    folder = folder or memory_folder("chat", _plain(name), "user")
    with (
        MemoryStore(folder) as store,
        PersonaVLM(store, model, PromptSet("full"), name=_plain(name)) as assistant,
    ):
        assistant.settings = replace(assistant.settings, max_tokens=REPLY_ROOM)
        print(f"The memory is in {folder}.\n{COMMANDS}", flush=True)
        Chat(assistant, model, pictures).run()
    return 0


def _plain(model: str) -> str:
    """A model's name, without the address of its server, as one component of a path."""
    name = model.rpartition("#")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _first_day(earlier_turns: list[Turn]) -> datetime:
    """The day after the last turn in memory, but not before FIRST_DAY."""
    if not earlier_turns:
        return FIRST_DAY
    last_day = datetime.combine(earlier_turns[-1].time, time())
    return max(FIRST_DAY, last_day + ONE_DAY)


def _read_line() -> str | None:
    """The next line; None at the end of the input, or after Ctrl-C."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        if prompt:
            print()  # what follows is not written behind the prompt
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def step_text(step: Step, reply: ChatReply) -> str:
    """One step of a response: the thoughts, the search, and what is wrong with its form."""
    lines = []
    if step.think:
        lines.append(f"  thinks: {step.think}")
    search = step.retrieve
    if search:
        start, end = search.start or "the beginning", search.end or "now"
        lines.append(f"  searches: {search.keywords!r} from {start} to {end}")
    if step.errors:
        lines.append(f"  form: {'; '.join(step.errors)}; stop reason {reply.stop}")
    return "\n".join(lines)


def found_text(found: Retrieved) -> str:
    """What a search found, one memory per line."""
    lines = [f"  found: procedural: {text}" for _, text in found.procedural]
    for memory in found.semantic:
        lines.append(f"  found: semantic, {memory.known_from:%Y-%m-%d}: {memory.content}")
    for episode in found.episodic:
        lines.append(f"  found: episode, {episode.happened_from:%Y-%m-%d}: {episode.summary}")
    return "\n".join(lines) or "  found: nothing"


def memory_text(view: MemoryView) -> str:
    """The content of a memory as text, one entry per line."""
    lines = []
    if view.core:
        core = {**view.core.human, **view.core.persona}
        lines += [f"core: {key}: {text}" for key, text in core.items()]
    if view.procedural:
        lines += [f"procedural: {text}" for text in view.procedural.entries.values()]
    for memory in view.semantic:
        lines.append(f"semantic, {memory.known_from:%Y-%m-%d}: {memory.content}")
    for episode in view.episodes:
        lines.append(f"episode, {episode.happened_from:%Y-%m-%d}: {episode.summary}")
    profile = view.personality.profile if view.personality else BigFive.neutral()
    lines += summarize_profile(profile).splitlines()
    return "\n".join(lines)
