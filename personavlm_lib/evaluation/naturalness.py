"""How natural simulated messages are, beside those of real dialogues in the same run.

LoCoMo is a chat of two people, so all of its messages are compared with users' messages. With
assistants' messages, MemoryBank's replies are compared, and LoCoMo's messages of the speaker who
did not begin: of the two, that one more often takes up what the other told.

The first tokens of a message surprise a model most, so messages are compared that match in length:
each source gives the same number of messages of 0 to 4 words, of 5 to 9 words, and so on, drawn at
random.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from personavlm_lib.benchmark.conversations import read_conversations
from personavlm_lib.benchmark.lives import read_lives
from personavlm_lib.memory.records import Turn
from personavlm_lib.models.gguf import SMOLLM2
from personavlm_lib.models.likelihood import log_likelihoods
from personavlm_lib.models.local import GenerationSettings, LocalModel

MAX_TOKENS = 120  # of a message; the rest is not read
BIN_WORDS = 5
LAST_BIN = 11  # holds all messages of at least 55 words

Message = tuple[str, str, str]  # source, role, text


def turn_messages(source: str, turns: Iterable[Turn]) -> Iterator[Message]:
    """The messages of users and assistants, without the marks of pictures."""
    for turn in turns:
        yield source, "user", re.sub(" ?<img>", "", turn.user).strip()
        yield source, "assistant", turn.assistant


def locomo_messages(turns: Iterable[Turn]) -> Iterator[Message]:
    """The messages of one conversation of LoCoMo, without names and captions.

    Those of both speakers are users' messages; those of the second are assistants' messages too.
    """
    first = None
    for turn in turns:
        speaker, _, text = turn.user.partition(": ")
        text, _, _ = text.partition(" [image: ")
        yield "LoCoMo", "user", text
        first = first or speaker
        if speaker != first:
            yield "LoCoMo", "assistant", text


def read_messages(lives: Path, data: Path) -> Iterator[Message]:
    """The messages of a file of lives, and of LoCoMo and MemoryBank in the folder `data`."""
    for life in read_lives(lives):
        yield from turn_messages("simulated", life.turns)
    for conversation in read_conversations(data / "locomo_dev5.json"):
        yield from locomo_messages(conversation.turns)
    for conversation in read_conversations(data / "memorybank_en.json"):
        yield from turn_messages("MemoryBank", conversation.turns)


def message_frame(messages: Iterable[Message]) -> pd.DataFrame:
    """Messages in random order, with the columns source, role, text, words, length and template.

    `words` are in lower case, `length` is their number. `template` is the whole text; to count
    templates, replace it by what all messages of a template have in common.
    """
    frame = pd.DataFrame(messages, columns=["source", "role", "text"])
    frame["words"] = frame["text"].str.casefold().str.findall(r"[\w']+")
    frame["length"] = frame["words"].str.len()
    frame["template"] = frame["text"].str.casefold()
    return frame[frame["length"] > 0].sample(frac=1, random_state=0)


def match_lengths(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """Take `count` messages of each source, or all that match in length if they are fewer."""
    bins = (frame["length"] // BIN_WORDS).clip(upper=LAST_BIN)
    common = pd.crosstab(bins, frame["source"]).min(axis="columns")
    slots = pd.Series(common.index.repeat(common))
    wanted = slots.sample(min(count, len(slots)), random_state=0).value_counts()
    position = frame.groupby(["source", bins]).cumcount()
    return frame[position < bins.map(wanted).fillna(0)]


def nats_per_token(model: LocalModel, messages: Iterable[str], role: str) -> float:
    """How surprised a model is by messages, each alone after the header of its role."""
    prefix = f"<|im_start|>{role}\n"  # of a turn in the chat format of SmolLM2
    likelihoods = log_likelihoods(model, list(messages), prefix, MAX_TOKENS)
    totals = pd.DataFrame(likelihoods, columns=["nats", "tokens"], dtype=float).sum()
    return -totals["nats"] / (totals["tokens"] or float("nan"))


def distinct(messages: Iterable[list[str]], n: int, words: int) -> float:
    """The share of n-grams that are distinct, in the first `words` words of messages."""
    ngrams: list[tuple[str, ...]] = []
    for message in messages:
        read = message[:words]
        words -= len(read)
        ngrams += zip(*(read[start:] for start in range(n)), strict=False)
    return len(set(ngrams)) / max(1, len(ngrams))


def naturalness_table(model: LocalModel, frame: pd.DataFrame, count: int = 300) -> pd.DataFrame:
    """One row per role and source of a `message_frame`.

    Columns: role, source; nats (per token) of the messages that match in length, n and n_words
    (their number, at most `count`, and mean words); distinct_2 and distinct_3 in distinct_words
    words, the same for all sources; words (mean of all messages); most_frequent (share of the most
    frequent template).
    """
    rows = []
    for role, spoken in frame.groupby("role"):
        matched = match_lengths(spoken, count)
        distinct_words = spoken.groupby("source")["length"].sum().min()
        for source, all_messages in spoken.groupby("source"):
            compared = matched[matched["source"] == source]
            row = {
                "role": role,
                "source": source,
                "nats": nats_per_token(model, compared["text"], str(role)),
                "n": len(compared),
                "n_words": compared["length"].mean(),
                "distinct_2": distinct(all_messages["words"], 2, distinct_words),
                "distinct_3": distinct(all_messages["words"], 3, distinct_words),
                "distinct_words": distinct_words,
                "words": all_messages["length"].mean(),
                "most_frequent": all_messages["template"].value_counts(normalize=True).max(),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def report_naturalness(lives: Path, data: Path, count: int = 300, out: Path | None = None) -> None:
    """Print `naturalness_table` of `read_messages`, and write it to `out` as JSON if given."""
    model = LocalModel(SMOLLM2, settings=GenerationSettings(batch_width=8))
    table = naturalness_table(model, message_frame(read_messages(lives, data)), count)
    print(table.round(3).to_string(index=False))
    if out:
        record = table.assign(lives=lives.name, model=SMOLLM2)
        record.to_json(out, orient="records", indent=1)
