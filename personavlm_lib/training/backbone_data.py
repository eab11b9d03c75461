"""What the nano backbone learns from: conversations made on the fly, from lives that no other stage uses.

Each generator below makes one kind, and why it is there:
- `conversation`: raw turns of a simulated life in the response prompt, then several questions. The reasoning restates
  the turn word for word, so looking up is induction; several questions a context and contexts that grow make it come.
- `table`: bare facts and questions about them, each followed from value to value, and why it changed; most of the first
  twentieth, as looking up comes soonest there.
- `copying`: random words of the whole vocabulary, to be repeated, so that it covers dates and grammar too.
- `listing`: numbered turns told again in the output grammar: numbers, and keys such as `"yoga":`, which the user said.
- `dating`: what `last sunday` or `two weeks ago` means, by the calendar in the prompt.
- `knowing`: what everybody knows: which trait a word shows and how strongly, what a value or a habit takes.
- `captioning`, `seeing`: scenes and all that is in them, in the words in which the reasoning names it; then a colour, a
  number, what stands beside what, a word.
Loss on the assistant's tokens only. Deviation from common practice: no text corpus exists at this size, so every token
comes from the world.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
from torch.utils.data import IterableDataset, get_worker_info

from personavlm_lib.agent.prompt_sets import PromptSet, periods
from personavlm_lib.agent.protocol import EpisodeReply
from personavlm_lib.agent.protocol_writer import write_answer, write_episodes, write_pairs
from personavlm_lib.benchmark import tasks
from personavlm_lib.benchmark.oracle import final_thought, value_chain
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.personality import BigFive, trait_levels
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.models.nano import TAGS, ImageOnlyProcessor
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue, user_message
from personavlm_lib.simulation.plan import EPOCH, LifeEvent, pictured, sample_plan
from personavlm_lib.simulation.scenes import LOOSE, listed, render
from personavlm_lib.simulation.wording import core_profile, search_keywords, statement

SEEDS = 10_000_000  # lives of the backbone are numbered from here on: no other stage goes so far
Message = tuple[str, str]


@dataclass
class Row:
    """One training conversation: chat messages as (role, text with <img> marks) and its PIL images."""

    messages: list[Message]
    images: list


def conversation(
    rng: random.Random, longest: int, questions: int, repeat: bool, pictures: bool
) -> Row:
    """A stretch of at most `longest` turns of a life, then `questions` questions about it."""
    # Both kinds of life that the study tells occur here, so no condition's context is longer than any seen in training.
    days, size = rng.choice(((28, 1.0), (70, 1.2)))
    plan = sample_plan(SEEDS + rng.randrange(1_000_000), days, size)
    turns = render_dialogue(plan, Path("unused"), draw=False)
    first = rng.randrange(max(1, len(turns) - longest))
    stretch = range(first, min(first + rng.randint(2, longest), len(turns)))
    kept = [i for i in stretch if pictures or not turns[i].images]
    # Half the profiles are filled, with what was told before these turns or up to their end.
    filed = plan.events[: rng.choice((0, 0, first, kept[-1] + 1))] if kept else ()
    core = core_profile(filed)
    part = tuple(
        event
        for i, event in enumerate(plan.events)
        if i in kept or event.kind == "core" and event in filed
    )
    part, moment = replace(plan, events=part), plan.events[-1].time + timedelta(hours=12)
    asked = [
        q
        for maker in tasks.MAKERS[:-1]
        for q in maker(part, rng, moment)
        if len(q.hops) < 2 or q.hops[0].note
    ]
    asked += [q for q in asked if len(q.history) > 2]  # the longest to follow are the rarest
    if not asked:  # small talk only
        return conversation(rng, longest + 4, questions, repeat, pictures)
    asked = (
        rng.choices(asked, k=questions) if repeat else rng.sample(asked, min(questions, len(asked)))
    )
    scores = {
        trait: rng.choice(("low", "mid", "high")) for trait in trait_levels(BigFive.neutral())
    }
    history, messages = [turns[i] for i in kept], []
    seen = " ".join(
        [*(f"my {key} is {value}" for key, value in core.items()), *(turn.user for turn in history)]
    )
    for n, question in enumerate(asked):
        if (
            kind := rng.random()
        ) < 0.12:  # the prompt's line on personality is read as the turns are, and applied
            question = _about_personality(
                rng, replace(question, history=()), scores, apply=kind < 0.08
            )
        elif rng.random() < 0.6:
            question = replace(question, options=())
        query = Turn(question.time, question.query)
        text = _PROMPTS("respond", query=query, context=history, concepts=[], core=core, levels=scores, personality="",
                        closing=True) if n == 0 else f"ask {query.user}\nanswer now"  # fmt: skip
        messages += [
            ("user", text),
            ("assistant", write_answer(final_thought(question, seen), question.answer)),
        ]
    return Row(messages, [render(plan.events[i].scene) for i in kept if turns[i].images])


def _about_personality(
    rng: random.Random, question: Question, scores: dict[str, str], apply: bool
) -> Question:
    """In place of `question`: a trait's level, or whether a style suits it, as the alignment items ask."""
    trait = rng.choice(list(scores))
    if not apply or scores[trait] == "mid":
        thought = f"my {trait} {scores[trait]}"
        return replace(
            question,
            text=f"what is my {trait} ?",
            options=(),
            answer=scores[trait],
            thought=thought,
        )
    word, suits = (
        rng.choice(list(lexicon.REPLY_STYLES[trait].values())),
        lexicon.REPLY_STYLES[trait][scores[trait]],
    )
    thought = f"my {trait} {scores[trait]} takes {suits} asked {word}"
    return replace(question, text=f"does a {word} reply suit me ?", options=("yes", "no"), thought=thought,
                   answer="yes" if word == suits else "no")  # fmt: skip


def table(rng: random.Random, longest: int, questions: int) -> Row:
    """Bare facts, `who key is value`, and `questions` of them asked: look-up and nothing else.

    Some have changed, and the newest counts; half the tables show dates, as found memories do.
    """
    # Few keys for many people: what a model gets wrong here is always the right key of another person.
    people, keys = rng.sample(("my", *lexicon.NAMES), rng.randint(2, 8)), list(_FACTS)
    keys = rng.sample(keys, rng.choice((1, 2, 2, 3, 5)))
    pairs = [(who, key) for who in people for key in keys]
    shown = rng.sample(pairs, rng.randint(2, min(longest, len(pairs))))
    dates = sorted(f"{EPOCH + timedelta(days=rng.randrange(90)):%Y-%m-%d} " for _ in shown * 3)
    dated, lines, newest = rng.random() < 0.5, [], {}
    for who, key in shown:
        values = rng.sample(_FACTS[key], rng.choice((1, 1, 2, 3)))
        facts = [LifeEvent(EPOCH, "relation", who, key, new, was, was and rng.choice(lexicon.CAUSES))
                 for was, new in pairwise(["", *values])]  # fmt: skip
        told = [statement(fact) for fact in facts][
            len(facts) > 1 and rng.random() < 0.25 :
        ]  # the first may be missing
        newest[who, key] = value_chain(told), values[-1], facts[-1].cause
        places = sorted(rng.randint(0, len(lines)) for _ in told)
        for offset, (place, text) in enumerate(zip(places, told, strict=True)):
            lines.insert(place + offset, text)
    lines = [f"{date * dated}{text}" for date, text in zip(dates, lines, strict=False)]
    messages = []
    for n, pair in enumerate(rng.choices(shown, k=questions)):
        thought, value, cause = newest[pair]
        why = bool(cause) and rng.random() < 0.4
        ask = rng.choice(
            ("ask why did {} change ?",)
            if why
            else ("ask {}", "ask what is {} ?", "ask what is {} now ?")
        )
        ask = ask.format(" ".join(pair))
        messages.append(("user", "\n".join([*lines, ask]) if n == 0 else ask))
        messages.append(("assistant", write_answer(thought, cause if why else value)))
    return Row(messages, [])


def dating(rng: random.Random, questions: int) -> Row:
    """The calendar of a day, and what its names of times mean: the first and the last minute."""
    now = EPOCH + timedelta(days=rng.randint(15, 120), minutes=rng.randrange(1440))
    named, messages = periods(now), []
    days = " ".join(f"{name} {start:%Y-%m-%d}" for name, (start, _) in named.items())
    for n, name in enumerate(rng.choices(list(named), k=questions)):
        start, end = named[name]
        found = f"<think>{name} {start:%Y-%m-%d}</think>\n"
        messages.append(
            (
                "user",
                f"today {now:%A %Y-%m-%d} {days}\nask {name}".lower() if n == 0 else f"ask {name}",
            )
        )
        messages.append(
            ("assistant", found + write_pairs({"start_time": start, "end_time": end}, quote=False))
        )
    return Row(messages, [])


def listing(rng: random.Random, longest: int) -> Row:
    """Numbered turns of a life, to be told again: each with its number, and by key what memory files under one."""
    events = sample_plan(SEEDS + rng.randrange(1_000_000)).events
    filed = [event for event in events if event.kind in ("habit", "goal", "core", "name")]
    chosen = rng.sample(filed, min(len(filed), rng.randint(1, longest // 2)))
    chosen += rng.sample(events, rng.randint(1, longest // 2))
    chosen = rng.sample(chosen, len(chosen))
    said = (user_message(event).replace("<img>", "") for event in chosen)
    told = [
        f"{i} user {text} assistant {rng.choice(lexicon.REPLIES)}" for i, text in enumerate(said)
    ]
    numbered = write_episodes(
        [EpisodeReply(statement(b), search_keywords(b), (i,)) for i, b in enumerate(chosen)],
        quote=False,
    )
    kept = {}
    for event in (event for event in chosen if event in filed):
        kept |= (
            {event.value: statement(event)}
            if event.kind in ("habit", "goal")
            else {event.key: event.value}
        )
    asks = [("repeat all", numbered), ("repeat profile", write_pairs(kept, quote=False))]
    messages = []
    for n, (ask, reply) in enumerate(rng.sample(asks, 2)):
        messages += [("user", "\n".join([*told, ask]) if n == 0 else ask), ("assistant", reply)]
    return Row(messages, [])


def knowing(rng: random.Random, questions: int) -> Row:
    """Common knowledge, without any memory: what is said of a word, and the trait that shows in a user's words."""
    messages = []
    for _ in range(questions):
        if rng.random() < 0.3:
            known = rng.choice(list(lexicon.KNOWLEDGE.values()))
            value = rng.choice(list(known))
            messages.append(
                (
                    f"what does {value} take ?",
                    write_answer(f"{value} takes {known[value]}", known[value]),
                )
            )
        elif rng.random() < 0.3:
            trait, pole = rng.choice(list(lexicon.REPLY_STYLES)), rng.choice(("low", "high"))
            word = lexicon.REPLY_STYLES[trait][pole]
            messages.append(
                (f"what is {word} ?", write_answer(f"{word} is {trait} {pole}", f"{trait} {pole}"))
            )
        else:
            event = rng.choice(sample_plan(SEEDS + rng.randrange(1_000_000)).events)
            trait = rng.choice(list(lexicon.MARKERS))
            score = event.scores[TRAITS.index(trait)]
            shown = lexicon.MARKERS[trait].get(score, "nothing")
            said = user_message(event).replace("<img>", "")
            messages.append(
                (f"rate {trait} {said}", write_answer(f"{shown} is {trait} {score}", str(score)))
            )
    return Row(
        [turn for ask, reply in messages for turn in (("user", ask), ("assistant", reply))], []
    )


def copying(rng: random.Random, vocabulary: list[str]) -> Row:
    """Random words of the whole vocabulary, dates and grammar included, to be said again, twice.

    With some of the tags among them: what nothing ever wrote keeps a random embedding, which an adapter cannot aim at.
    """
    chosen = rng.sample(vocabulary, rng.randint(4, 32)) + rng.sample(TAGS, rng.randint(0, 3))
    words = " ".join(rng.sample(chosen, len(chosen)))
    return Row(
        [
            ("user", f"repeat {words}"),
            ("assistant", words),
            ("user", "repeat"),
            ("assistant", words),
        ],
        [],
    )


def _shown(rng: random.Random) -> LifeEvent:
    """Something that somebody shows; a quarter of it are signs, whose words are the hardest to see."""
    thing = "sign" if rng.random() < 0.25 else rng.choice(LOOSE)
    return LifeEvent(EPOCH, **pictured(rng, rng.choice(("my", *lexicon.NAMES)), thing)[0])


def captioning(rng: random.Random) -> Row:
    """One picture and all that is in it: the most pictures in the least time."""
    event = _shown(rng)
    picture, things = render(event.scene), event.scene.things
    if len(things) == 1 and rng.random() < 0.3:  # what a crop of a visual concept looks like
        left, top, right, bottom = (v * picture.width for v in things[0].box)
        picture = picture.crop((max(0, left - 3), max(0, top - 3), right + 3, bottom + 3))
    return Row(
        [("user", f"{user_message(event)}\ncaption"), ("assistant", listed(event.scene))], [picture]
    )


def seeing(rng: random.Random, scenes: int, questions: int) -> Row:
    """One to `scenes` pictures and up to `questions` of what can be asked of each."""
    events = {
        (event.who, event.key): event
        for event in (_shown(rng) for _ in range(rng.randint(1, scenes)))
    }
    told, asked, messages = "".join(f"{user_message(event)}\n" for event in events.values()), [], []
    for event in events.values():
        life = replace(_SOMEBODY, events=(event,))
        some = [
            (q.text, q.thought, q.answer)
            for q in tasks.visual_detail_recall(life, rng, EPOCH + timedelta(days=1))
        ]
        asked += rng.sample(some, min(questions, len(some)))
    for text, thought, answer in rng.sample(asked, len(asked)):
        messages += [
            ("user", f"{told}ask {text}\nanswer now"),
            ("assistant", write_answer(thought, answer)),
        ]
        told = ""
    return Row(messages, [render(event.scene) for event in events.values()])


_PROMPTS = PromptSet("nano")
_SOMEBODY = sample_plan(SEEDS)
_FACTS = (
    lexicon.CORE | lexicon.PREFERENCES | {"relation": lexicon.RELATIONS, "value": lexicon.VALUES}
)


def examples(seed: int) -> dict[str, Row]:
    """One row of each kind, to look at."""
    rng = random.Random(seed)
    return {
        "conversation": conversation(rng, 6, 2, False, True),
        "table": table(rng, 5, 2),
        "knowing": knowing(rng, 4),
        "copying": copying(rng, lexicon.vocabulary()),
        "captioning": captioning(rng),
        "seeing": seeing(rng, 2, 3),
        "dating": dating(rng, 2),
        "listing": listing(rng, 4),
    }


def encode(row: Row, processor: ImageOnlyProcessor) -> dict:
    """Token ids, labels (-100 outside the assistant's messages) and image tensors of one row."""
    tokenizer = processor.tokenizer
    pixels = processor.image_processor(images=row.images, return_tensors="pt") if row.images else {}
    tokens = iter((pixels["image_grid_thw"].prod(-1) // 4).tolist() if row.images else [])
    ids, labels = [], []
    for role, text in [("system", "You are a helpful assistant."), *row.messages]:
        while "<img>" in text:
            pads = "<|image_pad|>" * next(tokens)
            text = text.replace("<img>", f"<|vision_start|>{pads}<|vision_end|>", 1)
        head = tokenizer(f"<|im_start|>{role}\n")["input_ids"]
        body = tokenizer(f"{text}<|im_end|>\n")["input_ids"]
        ids += head + body
        labels += [-100] * len(head) + (body if role == "assistant" else [-100] * len(body))
    return {"ids": ids, "labels": labels, **pixels}


def collate(rows: list[dict], pad: int, image_token: int) -> dict[str, torch.Tensor]:
    """Pads on the right; images of all rows in order. (rows, longest) ids, labels and token types.

    No mask: nothing looks to the right, and attention that need not ask is nearly twice as fast.
    """
    width = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([row["ids"] + [pad] * (width - len(row["ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    batch = {"input_ids": ids, "labels": labels}
    batch["mm_token_type_ids"] = (ids == image_token).long()
    if pictured := [row for row in rows if "pixel_values" in row]:
        batch |= {
            k: torch.cat([row[k] for row in pictured]) for k in ("pixel_values", "image_grid_thw")
        }
    return batch


class BackboneData(IterableDataset):
    """Batches for ever, in a schedule by the share of the run that is done: contexts grow, repeated keys end."""

    def __init__(self, processor: ImageOnlyProcessor, batch: int, steps: int, seed: int):
        self.processor, self.batch, self.steps, self.seed = processor, batch, steps, seed
        keep = (
            piece
            for piece in processor.tokenizer.get_vocab()
            if piece.startswith(" ") and len(piece) > 2
        )
        self.vocabulary = sorted(piece.strip() for piece in keep)

    def rows(self, rng: random.Random, done: float) -> list[Row]:
        """One batch: of drills all kinds at once, or they undo each other; scenes and lives, which are longer, apart.

        Seeing takes longest to learn, and so the most steps; lives take the most tokens.
        """
        early, longest = (
            done < 0.05,
            6 if done < 0.15 else 12 if done < 0.3 else 24 if done < 0.5 else 48,
        )
        drills = {
            lambda: copying(rng, self.vocabulary): 20,
            lambda: table(rng, 6 if early else 12, 8): 100 if early else 30,
            lambda: knowing(rng, 8): 15,
            lambda: dating(rng, 8): 15,
            lambda: listing(rng, 4 if done < 0.2 else 8): 20,
        }
        kinds = ("drills", "captions", "scenes", "lives")
        kind = rng.choices(kinds, (60, 40, 0, 0) if early else (33, 28, 19, 20))[0]
        if kind == "drills":
            return [make() for make in rng.choices([*drills], drills.values(), k=self.batch)]
        if kind == "captions":
            return [captioning(rng) for _ in range(8 * self.batch)]
        if kind == "scenes":
            return [seeing(rng, 4, 4) for _ in range(self.batch)]
        pictures, repeat = rng.random() < 0.6, rng.random() > 2 * done
        return [conversation(rng, longest, 8, repeat, pictures) for _ in range(self.batch // 2)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        tokenizer = self.processor.tokenizer
        pad, image = tokenizer.pad_token_id, self.processor.image_token_id
        for step in range(offset, self.steps, stride):
            rng = random.Random(f"{self.seed} {step}")
            yield collate(
                [encode(row, self.processor) for row in self.rows(rng, step / self.steps)],
                pad,
                image,
            )
