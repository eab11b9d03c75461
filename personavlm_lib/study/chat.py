"""A conversation in the terminal with the agent of a finished run: Algorithm 1 line by line, on a memory of its own."""

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from personavlm_lib.agent.prompts import PromptSet
from personavlm_lib.agent.respond import AgentSettings, respond
from personavlm_lib.agent.update import update_session, update_turn
from personavlm_lib.memory.personality import BigFive, summarise
from personavlm_lib.memory.records import SESSION_GAP, Turn
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models import run as drive
from personavlm_lib.models.local import LocalModel
from personavlm_lib.study.profiles import require, run_folder
from personavlm_lib.world import lexicon

HINT = """This model knows the {count} words of its simulated world.
Tell it things such as 'my drink is tea', 'alice job is pilot', 'every monday i do yoga'.
Ask it such as 'what is my drink ?'. :memory shows what it knows, :quit ends."""


def converse(run: str, folder: Path | None) -> int:
    """Answers the lines of standard input until it ends; memory is in `folder`, `runs/<run>/chat` if none is given."""
    model, prompts, retriever = LocalModel(require(run, "03_grpo") / "model", name="rl"), PromptSet("nano"), Retriever()
    words, session = set(lexicon.words()), []
    with MemoryStore(folder or run_folder(run) / "chat") as store:
        print(HINT.format(count=len(words)))
        while (line := _ask()) not in (None, ":quit"):
            if line == ":memory":
                print(known(store.as_of()))
            elif line:
                if strange := sorted(set(line.replace("?", " ").split()) - words):
                    print(f"(words it does not know: {', '.join(strange)})")
                query = Turn(datetime.now().replace(microsecond=0), line)
                if session and query.time - session[-1].time > SESSION_GAP:
                    drive([update_session(store, session, prompts, "rl")], model)
                    session = []
                (response,) = drive([respond(query, store.as_of(), retriever, AgentSettings(prompts))], model)
                print(f"agent: {response.answer or '(no answer)'}", flush=True)
                session.append(store.add_turn(replace(query, assistant=response.answer or "")))
                drive([update_turn(store, session[-1], prompts, written_by="rl")], model)
        if session:  # who leaves ends the session
            drive([update_session(store, session, prompts, "rl")], model)
            print(f"The memory is kept in {store.folder}.")
    return 0


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def known(view: MemoryView) -> str:
    """What a memory holds, as text."""
    lines = [f"core: {k}: {v}" for k, v in ({**view.core.human, **view.core.persona} if view.core else {}).items()]
    lines += [f"procedural: {text}" for text in (view.procedural.entries.values() if view.procedural else ())]
    lines += [f"semantic, {memory.known_from:%Y-%m-%d}: {memory.content}" for memory in view.semantic]
    lines += [f"episode, {episode.happened_from:%Y-%m-%d}: {episode.summary}" for episode in view.episodes]
    profile = view.personality.profile if view.personality else BigFive.neutral()
    return "\n".join([*lines, *summarise(profile).splitlines()])
