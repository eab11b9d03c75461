"""Kill a process that writes a memory, again and again, and check that nothing is lost.

    python tests/memory/kill_store.py --kills 200

A child process chats (with a worker that updates the memory in the background), appends in batches,
edits, forgets, and sometimes migrates a memory of schema 1. It reports what it begins, and what it
has done once that is committed; SIGKILL comes at any moment. Then the memory is opened and checked:
every acknowledged turn is there exactly once, no byte contains a forgotten turn, a batch is there
as a whole or not at all, each turn was processed once, and a search gives the same results as with
a new index. With `--failing`, half of all requests to the model fail, for a while or for good: then
each update was made once, or is kept as failed.
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
from collections.abc import Callable
from dataclasses import dataclass
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
TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
REPLIES = {
    "respond": "<think>hm</think>\n<answer>heard {words}</answer>",
    "personality": "\n".join(f'"{trait}": 4' for trait in TRAITS),
    "semantic": ('"reason": new\n"decision": true\n"content": fact {words}\n"keywords": fact'),
    "core": '"name": Kai\n"last": {last_words}',
    "procedural": '"habit": says {last_words}',
    "episodic": (
        '"topic_summary": of {words}\n"keywords": talk\n"source_dialog_indices": {indices}'
    ),
}


FAILURES = random.Random()


class Model:
    """Replies at once, and always the same to the same request, unless it fails."""

    failing = False

    def start(self) -> None:
        return None

    def reply(self, requests: list) -> list[ChatReply | Exception]:
        return [self._failure() or ChatReply(self._reply(request)) for _, request in requests]

    def _failure(self) -> Exception | None:
        if not self.failing or FAILURES.random() < 0.5:
            return None
        return FAILURES.choice([RuntimeError("failed"), ConnectionError("unreachable")])

    def _reply(self, request) -> str:
        turns = request.subject
        if not isinstance(turns, list):
            turns = [turns]
        texts = " ".join(turn.user for turn in turns)
        tokens = TOKEN.findall(texts)
        words = " ".join(tokens)
        numbers = [str(number) for number in range(len(turns))]
        indices = ", ".join(numbers)
        template = REPLIES[request.purpose]
        return template.format(words=words, last_words=words[-60:], indices=indices)


def assistant(store: MemoryStore) -> PersonaVLM:
    return PersonaVLM(store, Model(), PromptSet("nano"), name="m")


def name_of(turn: Turn) -> str:
    """The token in the turn's text, or the text of a turn without a token."""
    match = TOKEN.search(turn.user)
    return match[0] if match else turn.user


def draw(folder: Path, token: str) -> str:
    """The path of a picture that contains the token in its bytes."""
    path = folder / "picture.png"
    text = PngImagePlugin.PngInfo()
    text.add_text("token", f"<{token}>")
    image = Image.new("RGB", (8, 8))
    image.save(path, pnginfo=text)
    return str(path)


@dataclass
class Child:
    """The process that is killed: random actions, each reported before and after."""

    folder: Path
    number: int
    report: Callable[[str], object]

    def run(self) -> None:
        rng = random.Random(self.number)
        self.report("begin open")
        store = MemoryStore(self.folder, WordEncoder())
        self.report("done open")
        with assistant(store) as kai:
            moment = max((turn.time for turn in store.as_of().turns), default=NOON)
            for n in itertools.count():
                moment += timedelta(minutes=rng.choice([1, 1, 1, 1, 90]))
                action = rng.random()
                if action < 0.5:
                    self.chat(kai, n, moment, with_picture=rng.random() < 0.3)
                elif action < 0.75:
                    self.append_batch(kai, store, n, moment)
                elif action < 0.85:
                    self.edit(store, n, moment)
                else:
                    self.forget_one(store, rng)

    def chat(self, kai, n, moment, with_picture) -> None:
        token = f"q{self.number}x{n}z"
        self.report(f"begin chat {token}")
        text = f"tell {token}"
        images = []
        if with_picture:
            text += " <img>"
            images = [draw(self.folder.parent, token)]
        try:
            kai.chat(text, images, moment)
        except (RuntimeError, ConnectionError):
            if not Model.failing:
                raise
            return  # no answer, so nothing was stored
        self.report(f"done chat {token}")

    def append_batch(self, kai, store, n, moment) -> None:
        tokens = [f"q{self.number}x{n}y{i}z" for i in range(6)]
        names = " ".join(tokens)
        self.report(f"begin batch {names}")
        kai._now = moment
        with store.transaction():
            for token in tokens:
                turn = Turn(moment, f"batch {token}", f"heard {token}")
                store.add_turn(turn, pending=True)
        self.report(f"done batch {names}")

    def edit(self, store, n, moment) -> None:
        self.report("begin edit")
        store.set_core(CoreMemory({"name": "Kai", "count": str(n)}, {}, moment))
        self.report("done edit")

    def forget_one(self, store, rng) -> None:
        turns = store.as_of().turns
        if not turns:
            return
        turn = rng.choice(turns)
        self.report(f"begin forget {name_of(turn)}")
        forget(store, f"turn:{turn.index}")
        self.report(f"done forget {name_of(turn)}")


def kill_child(folder: Path, number: int, after: float) -> list[str]:
    """Start a child, kill it after so many seconds and return its reports."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            Child(folder, number, lambda line: os.write(writing, f"{line}\n".encode())).run()
        except BaseException as error:
            os.write(writing, f"failed {error!r}\n".encode())
        os._exit(1)
    os.close(writing)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        return pipe.read().splitlines()


class Expected:
    """What the memory must contain after the reports of a child, given the `before` names."""

    def __init__(self, before: set[str], reports: list[str]) -> None:
        assert not [line for line in reports if line.startswith("failed")], reports[-3:]
        self.required = set(before)
        self.forgotten: set[str] = set()
        self.perhaps_forgotten: set[str] = set()
        self.perhaps_chats: list[set[str]] = []
        self.perhaps_batches: list[set[str]] = []
        done = {line.removeprefix("done ") for line in reports if line.startswith("done ")}
        for action in done:
            kind, _, names = action.partition(" ")
            if kind in ("chat", "batch"):
                self.required.update(names.split())
            elif kind == "forget":
                self.forgotten.add(names)
        for line in reports:
            action = line.removeprefix("begin ")
            if line.startswith("begin ") and action not in done:
                self._add_interrupted(action)

    def _add_interrupted(self, action: str) -> None:
        kind, _, names = action.partition(" ")
        if kind == "forget":
            self.perhaps_forgotten.add(names)
        elif kind == "chat":
            self.perhaps_chats.append(set(names.split()))
        elif kind == "batch":
            self.perhaps_batches.append(set(names.split()))

    def check(self, names: set[str]) -> None:
        """AssertionError if a turn is missing, was not removed, or was never written."""
        missing = self.required - self.forgotten - self.perhaps_forgotten - names
        assert not missing, missing
        assert not self.forgotten & names
        extra = names - self.required
        for batch in self.perhaps_batches:
            assert extra & batch in (set(), batch)
        for tokens in self.perhaps_batches + self.perhaps_chats:
            extra -= tokens
        assert not extra, extra


def check(folder: Path, before: set[str], reports: list[str]) -> set[str]:
    """Compare the memory with the names `before` and the reports since; return its names now."""
    expected = Expected(before, reports)
    with MemoryStore(folder, WordEncoder()) as store:
        assert store.sql("PRAGMA integrity_check") == [("ok",)]
        names = Counter(name_of(turn) for turn in store.as_of().turns)
        assert set(names.values()) <= {1}, names.most_common(3)
        expected.check(set(names))
        with assistant(store) as kai:
            update_all(kai)
        gone = (expected.forgotten | expected.perhaps_forgotten) - set(names)
        check_erased(folder, gone)
        check_processed_once(store)
        check_indexes(store, folder, sorted(names)[:20])
        images = {Path(path).name for turn in store.as_of().turns for path in turn.images}
        assert images <= {path.name for path in store.images.iterdir()}
        return set(names)


def update_all(kai: PersonaVLM) -> None:
    """Flush until all updates of turns are made or have failed for good."""
    for _ in range(10_000):
        try:
            kai.flush()
        except (RuntimeError, ConnectionError):
            if not Model.failing:
                raise
        if all(job.work == "session" for job in kai.store.pending()):
            return
    raise AssertionError("updates are pending for ever")


def check_erased(folder: Path, names: set[str]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    for name in names:
        if TOKEN.fullmatch(name):
            assert name.encode() not in content, name


def check_processed_once(store: MemoryStore) -> None:
    view = store.as_of()
    indices = {turn.index for turn in view.turns}
    failed = Counter(turn for r in view.rejected if r.purpose == "turn" for turn in r.sources)
    assert Model.failing or not failed
    for records in (view.semantic, view.personality_history):
        counts = Counter(record.sources[0] for record in records)
        assert set(counts) | set(failed) == indices, indices ^ set(counts)
        assert not set(counts) & set(failed)
        assert set(failed.values()) <= {1}
        assert set(counts.values()) <= {1}
    skipped = [turn for r in view.rejected if r.purpose == "session" for turn in r.sources]
    waiting = {job.turn for job in store.pending() if job.work == "session"}
    assert len(skipped) == len(set(skipped))
    assert not waiting & set(skipped)
    topics = Counter(turn for episode in view.episodes for turn in episode.turns)
    assert set(topics) <= indices
    assert set(topics.values()) <= {1}


def check_indexes(store: MemoryStore, folder: Path, names: list[str]) -> None:
    """The stored indexes must match their rows and find what new indexes find."""
    before = search_all(store, names)
    for kind in TIMELINES:
        store.sql(f"UPDATE {kind} SET vector = NULL")
        # raises an error if the index and its rows differ
        store.sql(f"INSERT INTO {kind}_text ({kind}_text) VALUES ('integrity-check')")
        indexed = store.sql(f"SELECT rowid FROM {kind}_text")
        assert indexed == store.sql(f"SELECT id FROM {kind}")
    with MemoryStore(folder, WordEncoder()) as reopened:
        assert search_all(reopened, names) == before


def search_all(store: MemoryStore, names: list[str]) -> list[list[str]]:
    view = store.as_of()
    return [Retriever().retrieve(view, f"fact {name} turn").ids for name in names]


def main(kills: int, seed: int) -> Counter:
    """Count what the children were doing when killed, and what they acknowledged.

    AssertionError if a memory is not as it must be.
    """
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    names: set[str] = set()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "kai"
        for number in range(kills):
            migrates = number % 5 == 0
            if migrates:
                shutil.rmtree(folder, ignore_errors=True)
                write_first_schema(folder, 200)
                names = {f"turn {n}" for n in range(200) if n != 1}
                names.add("turn 1 in Rome")
            delay = rng.uniform(0.0, 0.03 if migrates else 0.4)
            reports = kill_child(folder, seed * 1000 + number, delay)
            names = check(folder, names, reports)
            counts[last_action(reports, migrates)] += 1
            counts["acknowledged"] += sum(line.startswith("done") for line in reports)
    return counts


def last_action(reports: list[str], migrates: bool) -> str:
    last = reports[-1] if reports else "begin open"
    if migrates and last == "begin open":
        return "migrate"
    if last.startswith("begin "):
        return last.split()[1]
    return "between"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failing", action="store_true", help="half of all requests fail")
    arguments = parser.parse_args()
    Model.failing = arguments.failing
    start = time.perf_counter()
    counts = main(arguments.kills, arguments.seed)
    print(dict(counts), f"{time.perf_counter() - start:.0f} s", file=sys.stdout)
