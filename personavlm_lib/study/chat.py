"""Chat in the terminal with the agent of a finished run, which keeps a memory of its own."""

import sys
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.memory.personality import BigFive, summarize_profile
from personavlm_lib.memory.records import Turn
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models.local import LocalModel
from personavlm_lib.simulation import lexicon
from personavlm_lib.study.profiles import require, run_folder

HINT = """This model knows the {count} words of its simulated world.
State facts such as 'my drink is tea', 'alice job is pilot', 'every monday i do yoga'.
Ask questions such as 'what is my drink ?': each is asked on the next morning of its calendar.
:memory prints its memory, :quit ends the chat."""
FIRST_DAY = datetime(2024, 6, 3)  # a date that the model can read
STATEMENT_TIME = timedelta(hours=9)  # time of the first statement of a day
QUESTION_TIME = timedelta(hours=7)
ONE_DAY = timedelta(days=1)


@dataclass
class Conversation:
    """The calendar of a chat: statements fill a day, a question is asked on the next morning.

    A question ends the session before it, because the nano model was trained on questions about
    earlier sessions only.
    """

    assistant: PersonaVLM
    store: MemoryStore
    day: datetime
    statements_today: int = 0

    def state(self, text: str) -> None:
        """Store a statement with the simulated world's own reply."""
        moment = self.day + STATEMENT_TIME + timedelta(minutes=5 * self.statements_today)
        self.statements_today += 1
        self.store.add_turn(Turn(moment, text, "noted"), pending=True)
        print("agent: noted", flush=True)
        self.assistant.flush(moment)

    def ask(self, question: str) -> None:
        """Print the answer to a question."""
        if self.statements_today:
            self.day += ONE_DAY
            self.statements_today = 0
        moment = self.day + QUESTION_TIME
        self.assistant.flush(moment)
        answer = self.assistant.ask(question, time=moment).answer
        print(f"agent: {answer or '(no answer)'}", flush=True)

    def end(self) -> None:
        """End the last session, so that the memory is updated with it."""
        self.assistant.flush(self.day + ONE_DAY)


def converse(run: str, folder: Path | None) -> int:
    """Answer the lines of standard input until it ends; return the exit code.

    A line that ends in a question mark is answered; any other line is stored as a turn. The
    memory is in `folder`, by default in `runs/<run>/chat`.
    """
    model = LocalModel(require(run, "03_grpo") / "model", name="rl")
    words = set(lexicon.vocabulary())
    with (
        MemoryStore(folder or run_folder(run) / "chat") as store,
        PersonaVLM(store, model, PromptSet("nano"), PAPER_RETRIEVER, name="rl") as assistant,
    ):
        earlier_turns = assistant.memory.turns
        conversation = Conversation(assistant, store, _first_day(earlier_turns))
        print(HINT.format(count=len(words)))
        while True:
            line = _read_line()
            if line is None or line == ":quit":
                break
            if line == ":memory":
                print(memory_text(assistant.memory))
            elif line.startswith(":"):
                print("(no such command: :memory or :quit)")
            elif line:
                _print_unknown_words(line, words)
                if line.endswith("?"):
                    conversation.ask(line)
                else:
                    conversation.state(line)
        conversation.end()
        if len(assistant.memory.turns) > len(earlier_turns):
            print(f"The memory is saved in {store.folder}.")
    return 0


def _first_day(earlier_turns: list[Turn]) -> datetime:
    """The day after the last turn in memory, but not before FIRST_DAY."""
    if not earlier_turns:
        return FIRST_DAY
    last_day = datetime.combine(earlier_turns[-1].time, time())
    return max(FIRST_DAY, last_day + ONE_DAY)


def _read_line() -> str | None:
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        return input(prompt).strip()
    except EOFError:
        return None


def _print_unknown_words(line: str, words: set[str]) -> None:
    unknown = set(line.replace("?", " ").split()) - words
    if unknown:
        print(f"(words it does not know: {', '.join(sorted(unknown))})")


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
