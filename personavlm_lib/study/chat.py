"""A conversation in the terminal with the agent of a finished run, on a memory of its own."""

import sys
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
Tell it things such as 'my drink is tea', 'alice job is pilot', 'every monday i do yoga'.
Ask it such as 'what is my drink ?': every question comes the morning after, in the world's own calendar.
:memory shows what it knows, :quit ends."""
FIRST, NINE, SEVEN = (
    datetime(2024, 6, 3),
    timedelta(hours=9),
    timedelta(hours=7),
)  # dates that the model can read


def converse(run: str, folder: Path | None) -> int:
    """Answers the lines of standard input until it ends; memory is in `folder`, `runs/<run>/chat` if none is given.

    What ends in a question mark is answered; anything else is a turn to remember, with the world's own reply. A
    question ends the session before it: the nano model was trained on questions about what is no longer before it.
    """
    model, words, said = (
        LocalModel(require(run, "03_grpo") / "model", name="rl"),
        set(lexicon.vocabulary()),
        0,
    )
    store = MemoryStore(folder or run_folder(run) / "chat")
    with (
        store,
        PersonaVLM(store, model, PromptSet("nano"), PAPER_RETRIEVER, name="rl") as assistant,
    ):
        told = assistant.memory.turns
        day = (
            max(FIRST, datetime.combine(told[-1].time, time()) + timedelta(days=1))
            if told
            else FIRST
        )
        print(HINT.format(count=len(words)))
        while (line := _ask()) not in (None, ":quit"):
            if line == ":memory":
                print(known(assistant.memory))
            elif line:
                if strange := sorted(set(line.replace("?", " ").split()) - words):
                    print(f"(words it does not know: {', '.join(strange)})")
                if line.endswith("?"):
                    day, said = day + timedelta(days=bool(said)), 0
                    assistant.flush(day + SEVEN)
                    print(
                        f"agent: {assistant.ask(line, time=day + SEVEN).answer or '(no answer)'}",
                        flush=True,
                    )
                else:
                    moment, said = day + NINE + timedelta(minutes=5 * said), said + 1
                    store.add_turn(Turn(moment, line, "noted"), pending=True)
                    print("agent: noted", flush=True)
                    assistant.flush(moment)
        assistant.flush(day + timedelta(days=1))  # who leaves ends the session
        if len(assistant.memory.turns) > len(told):
            print(f"The memory is kept in {store.folder}.")
    return 0


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def known(view: MemoryView) -> str:
    """What a memory holds, as text."""
    lines = [
        f"core: {k}: {v}"
        for k, v in ({**view.core.human, **view.core.persona} if view.core else {}).items()
    ]
    lines += [
        f"procedural: {text}"
        for text in (view.procedural.entries.values() if view.procedural else ())
    ]
    lines += [
        f"semantic, {memory.known_from:%Y-%m-%d}: {memory.content}" for memory in view.semantic
    ]
    lines += [
        f"episode, {episode.happened_from:%Y-%m-%d}: {episode.summary}" for episode in view.episodes
    ]
    profile = view.personality.profile if view.personality else BigFive.neutral()
    return "\n".join([*lines, *summarize_profile(profile).splitlines()])
