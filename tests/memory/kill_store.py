"""Kills a process that writes a memory, again and again, and looks whether anything is lost, doubled or still there.

    python tests/memory/kill_store.py --kills 200

A child chats (with a worker that remembers behind it), appends in batches, edits, forgets, and now and then migrates a
memory of schema 1. It says what it begins, and what it has done once that is committed; SIGKILL comes at any moment.
Then the memory is opened: every turn that was acknowledged is there once, what was forgotten is in no byte, a batch is
whole or absent, each turn was remembered once, and a search finds what an index made anew finds.
"""

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from conftest import NOON, WordEncoder, write_first_schema
from PIL import Image, PngImagePlugin

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.memory.forget import forget
from personavlm_lib.memory.records import CoreMemory, Turn
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import TIMELINES, MemoryStore
from personavlm_lib.models.chat import ChatReply

TOKEN = re.compile(r"q\d+x[\dy]+z")


class Model:
    """Answers at once and always the same to the same."""

    def start(self) -> None:
        return None

    def reply(self, asked: list) -> list[ChatReply]:
        return [ChatReply(self._reply(ask)) for _, ask in asked]

    def _reply(self, ask) -> str:
        turns = ask.subject if isinstance(ask.subject, list) else [ask.subject]
        words = " ".join(TOKEN.findall(" ".join(turn.user for turn in turns)))
        indices = ", ".join(map(str, range(len(turns))))
        traits = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
        return {
            "respond": f"<think>hm</think>\n<answer>heard {words}</answer>",
            "personality": "\n".join(f'"{trait}": 4' for trait in traits),
            "semantic": f'"reason": new\n"decision": true\n"content": fact {words}\n"keywords": fact',
            "core": f'"name": Kai\n"last": {words[-60:]}',
            "procedural": f'"habit": says {words[-60:]}',
            "episodic": f'"topic_summary": of {words}\n"keywords": talk\n"source_dialog_indices": {indices}',
        }[ask.purpose]


def assistant(store: MemoryStore) -> PersonaVLM:
    return PersonaVLM(store, Model(), PromptSet("nano"), name="m")


def child(folder: Path, number: int, say) -> None:
    rng = random.Random(number)
    say("begin open")
    store = MemoryStore(folder, WordEncoder())
    say("done open")
    with assistant(store) as kai:
        moment = max((turn.time for turn in store.as_of().turns), default=NOON)
        for n in itertools.count():
            moment += timedelta(minutes=rng.choice([1, 1, 1, 1, 90]))
            token, dice = f"q{number}x{n}z", rng.random()
            if dice < 0.5:
                say(f"begin chat {token}")
                picture = draw(folder.parent, token) if rng.random() < 0.3 else None
                kai.chat(
                    f"tell {token}{' <img>' if picture else ''}",
                    [picture] if picture else [],
                    moment,
                )
                say(f"done chat {token}")
            elif dice < 0.75:
                tokens = [f"q{number}x{n}y{i}z" for i in range(6)]
                say(f"begin batch {' '.join(tokens)}")
                kai._now = moment
                with store.transaction():
                    for one in tokens:
                        store.add_turn(Turn(moment, f"batch {one}", f"heard {one}"), pending=True)
                say(f"done batch {' '.join(tokens)}")
            elif dice < 0.85:
                say("begin edit")
                store.set_core(CoreMemory({"name": "Kai", "count": str(n)}, {}, moment))
                say("done edit")
            elif turns := store.as_of().turns:
                turn = rng.choice(turns)
                say(
                    f"begin forget {TOKEN.search(turn.user)[0] if TOKEN.search(turn.user) else turn.user}"
                )
                forget(store, f"turn:{turn.index}")
                say(
                    f"done forget {TOKEN.search(turn.user)[0] if TOKEN.search(turn.user) else turn.user}"
                )


def draw(folder: Path, token: str) -> str:
    """A picture that holds the token in its bytes."""
    path, text = folder / "picture.png", PngImagePlugin.PngInfo()
    text.add_text("token", f"<{token}>")
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return str(path)


def kill(folder: Path, number: int, after: float) -> list[str]:
    """What a child said until it was killed, `after` seconds from its start."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            child(folder, number, lambda line: os.write(writing, f"{line}\n".encode()))
        except BaseException as error:
            os.write(writing, f"failed {error!r}\n".encode())
        os._exit(1)
    os.close(writing)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read().splitlines()


def name_of(turn: Turn) -> str:
    return (TOKEN.search(turn.user) or [turn.user])[0]


def check(folder: Path, there: set[str], said: list[str]) -> set[str]:
    """Compares the memory with what was there and what was said since: the names of the turns that are there now."""
    assert not [line for line in said if line.startswith("failed")], said[-3:]
    lines = [line.split() for line in said]
    done = [tuple(line[1:]) for line in lines if line[0] == "done"]
    begun = [line[1:] for line in lines if line[0] == "begin" and tuple(line[1:]) not in done]
    must = there | {
        token for what, *tokens in done if what in ("chat", "batch") for token in tokens
    }
    gone = {" ".join(rest) for what, *rest in done if what == "forget"}
    perhaps_gone = {" ".join(rest) for what, *rest in begun if what == "forget"}
    with MemoryStore(folder, WordEncoder()) as store:
        assert store.sql("PRAGMA integrity_check") == [("ok",)]
        found = Counter(map(name_of, store.as_of().turns))
        assert set(found.values()) <= {1}, found.most_common(3)
        assert must - gone - perhaps_gone <= set(found), must - gone - perhaps_gone - set(found)
        assert not gone & set(found)
        extra = set(found) - must
        for what, *tokens in begun:
            assert what != "batch" or extra & set(tokens) in (set(), set(tokens))
            extra -= set(tokens)
        assert not extra, extra
        with assistant(store) as kai:
            kai.flush()
        raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        for token in {token for token in gone | perhaps_gone if TOKEN.fullmatch(token)} - set(
            found
        ):
            assert token.encode() not in raw, token
        view = store.as_of()
        indices = {turn.index for turn in view.turns}
        for records in (view.semantic, view.personality_history):
            counts = Counter(record.sources[0] for record in records)
            assert set(counts) == indices and set(counts.values()) <= {1}, indices ^ set(counts)
        topics = Counter(turn for episode in view.episodes for turn in episode.turns)
        assert set(topics) <= indices and set(topics.values()) <= {1}
        search = [
            Retriever().retrieve(store.as_of(), f"fact {token} turn").ids
            for token in sorted(found)[:20]
        ]
        for kind in TIMELINES:
            store.sql(f"UPDATE {kind} SET vector = NULL")
            # raises where the index and its rows differ
            store.sql(f"INSERT INTO {kind}_text ({kind}_text) VALUES ('integrity-check')")
            assert store.sql(f"SELECT rowid FROM {kind}_text") == store.sql(
                f"SELECT id FROM {kind}"
            )
        with MemoryStore(folder, WordEncoder()) as anew:
            again = [
                Retriever().retrieve(anew.as_of(), f"fact {token} turn").ids
                for token in sorted(found)[:20]
            ]
        assert search == again
        images = {Path(path).name for turn in view.turns for path in turn.images}
        assert images <= {path.name for path in store.images.iterdir()}
        return set(found)


def main(kills: int, seed: int) -> Counter:
    """What the children were at when they were killed -> how often. AssertionError where the memory is not right."""
    rng, moments = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as home:
        there: set[str] = set()
        for number in range(kills):
            folder, old = Path(home) / "kai", number % 5 == 0
            if old:
                shutil.rmtree(folder, ignore_errors=True)
                write_first_schema(folder, 200)
                there = {"turn 1 in Rome", *(f"turn {n}" for n in range(200) if n != 1)}
            said = kill(folder, seed * 1000 + number, rng.uniform(0.0, 0.03 if old else 0.4))
            there = check(folder, there, said)
            last = said[-1].split()[:2] if said else ["begin", "open"]
            moments[
                "migrate"
                if old and last == ["begin", "open"]
                else last[1]
                if last[0] == "begin"
                else "between"
            ] += 1
            moments["acknowledged"] += sum(line.startswith("done") for line in said)
    return moments


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    print(
        dict(main(arguments.kills, arguments.seed)),
        f"{time.perf_counter() - start:.0f} s",
        file=sys.stdout,
    )
