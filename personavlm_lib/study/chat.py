"""Chat in the terminal with an agent that remembers: that of a finished run, or any model."""

import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from textwrap import indent
from typing import Any

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.personality import BigFive, summarize_profile
from personavlm_lib.memory.records import SESSION_GAP, Turn
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.simulation import lexicon
from personavlm_lib.study.components import open_model
from personavlm_lib.study.profiles import memory_folder, run_folder

HINT = """This model knows the {count} words of its simulated world.
State facts such as 'my drink is tea', 'alice job is pilot', 'every monday i do yoga'.
Ask questions such as 'what is my drink ?': each is asked on the next morning of its calendar."""
COMMANDS = """:memory        print the memory
:steps         show or hide thoughts, searches and what they find
:picture FILE  attach a picture to the next message
:help          print these commands
:quit          end the chat"""
NO_ANSWER = "(no answer in the form that the prompts ask for; :steps shows what the model writes)"
FIRST_DAY = datetime(2024, 6, 3)  # a date that the model can read
STATEMENT_TIME = timedelta(hours=9)  # time of the first statement of a day
QUESTION_TIME = timedelta(hours=7)
ONE_DAY = timedelta(days=1)
REPLY_ROOM = 1024  # tokens of a reply; models of other makers think at length
FAILURES = (ValueError, RuntimeError)  # of a server, a picture, or the memory of a GPU


@dataclass
class WatchedModel:
    """A ChatModel; with `shows_steps` it prints each step of a response while it is made.

    A step is what the model writes (thoughts, search, answer) and what it is then sent (results).
    """

    model: ChatModel
    shows_steps: bool = False

    def start(self) -> Any:
        return self.model.start()

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        replies = self.model.reply(asked)
        for (_, request), reply in zip(asked, replies, strict=True):
            if self.shows_steps and request.purpose == "respond":
                results = "" if request.new_conversation else request.text
                written = f"[{reply.stop}] {reply.text}" if isinstance(reply, ChatReply) else ""
                print(indent(f"{results}\n{written}".strip(), "  | "), flush=True)
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

    def run(self) -> None:
        """Read lines until `:quit`, the end of the input or Ctrl-C; then finish the memory."""
        turns_before = len(self.assistant.memory.turns)
        while True:
            line = _read_line()
            if line is None or line == ":quit":
                break
            try:
                if line.startswith(":"):
                    self._obey(line)
                elif line:
                    answer = self.send(line)
                    self.pictures = []
                    print(f"agent: {answer or NO_ANSWER}", flush=True)
            except (*FAILURES, KeyboardInterrupt) as error:
                print(f"(failed and not stored, try again: {_reason(error)})", flush=True)
        self._finish_memory(turns_before)

    def _obey(self, line: str) -> None:
        """Execute a command. ValueError if a picture cannot be read. No command is stored."""
        name, _, argument = line.partition(" ")
        if name == ":memory":
            print(memory_text(self.assistant.memory))
        elif name == ":steps":
            self.model.shows_steps = not self.model.shows_steps
            print("(steps are shown)" if self.model.shows_steps else "(steps are hidden)")
        elif name == ":picture":
            path = Path(argument.strip(" '\"")).expanduser()
            read_image(path)
            self.pictures.append(str(path))
            print(f"(attached to the next message: {path.name})")
        elif name == ":help":
            print(COMMANDS)
        else:
            print(f"(no such command: {name}; :help prints the commands)")

    def _finish_memory(self, turns_before: int) -> None:
        """End the session, so that the memory is updated with it; say what is left to do."""
        store = self.assistant.store
        turns = self.assistant.memory.turns
        try:
            self.assistant.flush(turns[-1].time + SESSION_GAP if turns else None)
        except (*FAILURES, KeyboardInterrupt) as error:
            count = len(store.pending())
            print(f"({count} updates wait for the next chat with this memory: {_reason(error)})")
        if len(turns) > turns_before:
            print(f"The memory is saved in {store.folder}.")


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
        return self._ask(text) if text.endswith("?") else self._state(text)

    def _state(self, text: str) -> str:
        """Store a statement with the simulated world's own reply, which is returned."""
        moment = self.day + STATEMENT_TIME + timedelta(minutes=5 * self.statements_today)
        self.statements_today += 1
        text += " <img>" * len(self.pictures)
        turn = Turn(moment, text, "noted", images=tuple(self.pictures))
        self.assistant.store.add_turn(turn, pending=True)
        with suppress(*FAILURES, KeyboardInterrupt):  # the turn is stored; its update is retried
            self.assistant.flush(moment)
        return turn.assistant

    def _ask(self, question: str) -> str:
        if self.statements_today:
            self.day += ONE_DAY
            self.statements_today = 0
        moment = self.day + QUESTION_TIME
        self.assistant.flush(moment)
        return self.assistant.ask(question, self.pictures, moment).answer or ""


def chat_with_run(run: str, source: str | Path, folder: Path | None, pictures: list[str]) -> int:
    """Chat with the model of a finished run on standard input; return the exit code.

    The model is in `source`, the memory in `folder`, by default in `runs/<run>/chat`.
    """
    model = WatchedModel(LocalModel(source, name="rl"))
    with (
        MemoryStore(folder or run_folder(run) / "chat") as store,
        PersonaVLM(store, model, PromptSet("nano"), PAPER_RETRIEVER, name="rl") as assistant,
    ):
        chat = SimulatedChat(assistant, model, pictures, _first_day(assistant.memory.turns))
        print(f"{HINT.format(count=len(chat.words))}\n{COMMANDS}")
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


def _reason(error: BaseException) -> str:
    """An error in one line; Ctrl-C has no text of its own."""
    return " ".join(str(error).split()) or "interrupted"


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
