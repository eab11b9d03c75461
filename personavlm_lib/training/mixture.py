"""What the nano backbone learns from: conversations made on the fly, from lives that no other stage uses.

Each generator below makes one kind, and why it is there:
- `conversation`: raw turns of a simulated life in the response prompt, then several questions. The reasoning restates
  the turn word for word, so looking up is induction; several questions a context and contexts that grow make it come.
- `table`: bare facts and questions about them, for the first tenth almost alone: there looking up comes soonest.
- `copying`: random words of the whole vocabulary, to be repeated, so that it covers dates and grammar too.
- `knowing`: what everybody knows: which trait a word shows and how strongly, what a value or a habit takes.
- `seeing`: one scene and what is in it: colours, numbers, what stands beside what, words, captions.
Loss on the assistant's tokens only. Deviation from common practice: no text corpus exists at this size, so every token
comes from the world.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.data import IterableDataset, get_worker_info

from personavlm_lib.agent.prompts import PromptSet
from personavlm_lib.agent.replies import write_answer
from personavlm_lib.memory.personality import BigFive, levels
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.models.nano import TAGS, ImageOnlyProcessor
from personavlm_lib.world import lexicon, tasks
from personavlm_lib.world.plan import EPOCH, Beat, pictured, sample_plan
from personavlm_lib.world.questions import Question
from personavlm_lib.world.scenes import THINGS, caption, render
from personavlm_lib.world.tellers import tell, user_words

SEEDS = 10_000_000  # lives of the backbone are numbered from here on: no other stage goes so far
Message = tuple[str, str]


@dataclass
class Row:
    """One training conversation: chat messages as (role, text with <img> marks) and its PIL images."""

    messages: list[Message]
    images: list


def conversation(rng: random.Random, longest: int, questions: int, repeat: bool, pictures: bool) -> Row:
    """A stretch of at most `longest` turns of a life, then `questions` questions about it."""
    # Both kinds of life that the study tells occur here, so no condition's context is longer than any seen in training.
    days, size = rng.choice(((28, 1.0), (70, 1.2)))
    plan = sample_plan(SEEDS + rng.randrange(1_000_000), days, size)
    turns = tell(plan, Path("unused"), draw=False)
    first = rng.randrange(max(1, len(turns) - longest))
    kept = [
        i for i in range(first, min(first + rng.randint(2, longest), len(turns))) if pictures or not turns[i].images
    ]
    part = replace(plan, beats=tuple(plan.beats[i] for i in kept))
    moment = plan.beats[-1].time + timedelta(hours=12)
    asked = [q for maker in tasks.MAKERS[:-1] for q in maker(part, rng, moment) if len(q.hops) < 2 or q.hops[0].note]
    if not asked:  # small talk only
        return conversation(rng, longest + 4, questions, repeat, pictures)
    asked = rng.choices(asked, k=questions) if repeat else rng.sample(asked, min(questions, len(asked)))
    scores = {trait: rng.choice(("low", "mid", "high")) for trait in levels(BigFive.neutral())}
    history = [turns[i] for i in kept]
    messages = []
    for n, question in enumerate(asked):
        if (kind := rng.random()) < 0.12:  # the prompt's line on personality is read as the turns are, and applied
            question = _about_personality(rng, question, scores, apply=kind < 0.08)
        elif rng.random() < 0.6:
            question = replace(question, options=())
        query = Turn(question.time, question.query)
        text = _PROMPTS("respond", query=query, context=history, concepts=[], core={}, levels=scores, personality="",
                        closing=True) if n == 0 else f"ask {query.user}\nanswer now"  # fmt: skip
        messages += [("user", text), ("assistant", write_answer(question.thought, question.answer))]
    return Row(messages, [render(plan.beats[i].scene) for i in kept if turns[i].images])


def _about_personality(rng: random.Random, question: Question, scores: dict[str, str], apply: bool) -> Question:
    """In place of `question`: a trait's level, or whether a style suits it, as the alignment items ask."""
    trait = rng.choice(list(scores))
    if not apply or scores[trait] == "mid":
        thought = f"my {trait} {scores[trait]}"
        return replace(question, text=f"what is my {trait} ?", options=(), answer=scores[trait], thought=thought)
    word, suits = rng.choice(list(lexicon.STYLES[trait].values())), lexicon.STYLES[trait][scores[trait]]
    thought = f"my {trait} {scores[trait]} takes {suits} asked {word}"
    return replace(question, text=f"does a {word} reply suit me ?", options=("yes", "no"), thought=thought,
                   answer="yes" if word == suits else "no")  # fmt: skip


def table(rng: random.Random, longest: int, questions: int) -> Row:
    """Bare facts, `who key is value`, and `questions` of them asked: look-up and nothing else."""
    # Few keys for many people: what a model gets wrong here is always the right key of another person.
    people, keys = rng.sample(lexicon.NAMES, rng.randint(2, 8)), list(_FACTS)
    keys = rng.sample(keys, rng.choice((1, 2, 2, 3, 5)))
    facts = {(who, key): rng.choice(_FACTS[key]) for who in people for key in keys}
    shown = rng.sample(list(facts), rng.randint(2, min(longest, len(facts))))
    lines = {pair: f"{' '.join(pair)} is {facts[pair]}" for pair in shown}
    messages = []
    for n, pair in enumerate(rng.choices(shown, k=questions)):
        ask = f"ask {' '.join(pair)}"
        messages.append(("user", "\n".join([*lines.values(), ask]) if n == 0 else ask))
        messages.append(("assistant", write_answer(lines[pair], facts[pair])))
    return Row(messages, [])


def knowing(rng: random.Random, questions: int) -> Row:
    """Common knowledge, without any memory: what is said of a word, and the trait that shows in a user's words."""
    messages = []
    for _ in range(questions):
        if rng.random() < 0.3:
            known = rng.choice(list(lexicon.KNOWLEDGE.values()))
            value = rng.choice(list(known))
            messages.append((f"what does {value} take ?", write_answer(f"{value} takes {known[value]}", known[value])))
        elif rng.random() < 0.3:
            trait, pole = rng.choice(list(lexicon.STYLES)), rng.choice(("low", "high"))
            word = lexicon.STYLES[trait][pole]
            messages.append((f"what is {word} ?", write_answer(f"{word} is {trait} {pole}", f"{trait} {pole}")))
        else:
            beat = rng.choice(sample_plan(SEEDS + rng.randrange(1_000_000)).beats)
            trait = rng.choice(list(lexicon.MARKERS))
            score = beat.scores[TRAITS.index(trait)]
            shown = lexicon.MARKERS[trait].get(score, "nothing")
            said = user_words(beat).replace("<img>", "")
            messages.append((f"rate {trait} {said}", write_answer(f"{shown} is {trait} {score}", str(score))))
    return Row([turn for ask, reply in messages for turn in (("user", ask), ("assistant", reply))], [])


def copying(rng: random.Random, vocabulary: list[str]) -> Row:
    """Random words of the whole vocabulary, dates and grammar included, to be said again, twice.

    With some of the tags among them: what nothing ever wrote keeps a random embedding, which an adapter cannot aim at.
    """
    chosen = rng.sample(vocabulary, rng.randint(4, 24)) + rng.sample(TAGS, rng.randint(0, 3))
    words = " ".join(rng.sample(chosen, len(chosen)))
    return Row([("user", f"repeat {words}"), ("assistant", words), ("user", "repeat"), ("assistant", words)], [])


def seeing(rng: random.Random, questions: int) -> Row:
    """One scene: what can be asked of it, up to `questions` of that, and a caption."""
    who, thing = rng.choice(("my", *lexicon.NAMES)), rng.choice(list(THINGS))
    beat = Beat(EPOCH, **pictured(rng, who, thing)[0])
    life, later = replace(_SOMEBODY, beats=(beat,)), EPOCH + timedelta(days=1)
    asked = [(q.text, q.thought, q.answer) for q in tasks.visual_detail_recall(life, rng, later)]
    asked += [(f"what color is {t.kind} ?", f"{t.kind} is {t.color}", t.color) for t in beat.scene.things[:2]]
    asked = list(dict.fromkeys(asked))
    asked = rng.sample(asked, min(questions, len(asked)))
    messages = []
    for n, (text, thought, answer) in enumerate(asked):
        shown = f"{user_words(beat)}\n" if n == 0 else ""
        messages += [("user", f"{shown}ask {text}\nanswer now"), ("assistant", write_answer(thought, answer))]
    messages += [("user", "caption"), ("assistant", caption(beat.scene))]
    image = render(beat.scene)
    if len(beat.scene.things) == 1 and rng.random() < 0.5:  # what a crop of a visual concept looks like
        left, top, right, bottom = (v * image.width for v in beat.scene.things[0].box)
        image = image.crop((max(0, left - 3), max(0, top - 3), right + 3, bottom + 3))
    return Row(messages, [image])


_PROMPTS = PromptSet("nano")
_SOMEBODY = sample_plan(SEEDS)
_FACTS = lexicon.CORE | lexicon.PREFERENCES | {"relation": lexicon.RELATIONS, "value": lexicon.VALUES}


def examples(seed: int) -> dict[str, Row]:
    """One row of each kind, to look at."""
    rng = random.Random(seed)
    return {
        "conversation": conversation(rng, 6, 2, False, True),
        "table": table(rng, 5, 2),
        "knowing": knowing(rng, 4),
        "copying": copying(rng, lexicon.words()),
        "seeing": seeing(rng, 3),
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
    """Pads on the right; images of all rows in order. (rows, longest) ids, labels, mask and token types."""
    width = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([row["ids"] + [pad] * (width - len(row["ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in rows])
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    batch["mm_token_type_ids"] = (ids == image_token).long()
    if pictured := [row for row in rows if "pixel_values" in row]:
        batch |= {k: torch.cat([row[k] for row in pictured]) for k in ("pixel_values", "image_grid_thw")}
    return batch


class Mixture(IterableDataset):
    """Batches for ever, in a schedule by the share of the run that is done: contexts grow, repeated keys end."""

    def __init__(self, processor: ImageOnlyProcessor, batch: int, steps: int, seed: int, first: int = 0):
        self.processor, self.batch, self.steps, self.seed, self.first = processor, batch, steps, seed, first
        keep = (piece for piece in processor.tokenizer.get_vocab() if piece.startswith(" ") and len(piece) > 2)
        self.vocabulary = sorted(piece.strip() for piece in keep)

    def rows(self, rng: random.Random, done: float) -> list[Row]:
        kind = rng.random()
        if done < 0.1:  # cheap and dense: first learn to look up anything at all
            if kind < 0.75:
                return [table(rng, 5 if done < 0.06 else 12, 8) for _ in range(2 * self.batch)]
            return [seeing(rng, 4) if kind < 0.9 else knowing(rng, 8) for _ in range(2 * self.batch)]
        if kind < 0.05:
            return [copying(rng, self.vocabulary) for _ in range(2 * self.batch)]
        if kind < 0.4:  # short rows: a third of the steps, an eighth of the tokens
            return [table(rng, 12, 8) for _ in range(2 * self.batch)]
        if kind < 0.46:
            return [knowing(rng, 8) for _ in range(2 * self.batch)]
        if kind < 0.68:
            return [seeing(rng, 4) for _ in range(2 * self.batch)]
        longest = 6 if done < 0.2 else 12 if done < 0.35 else 24 if done < 0.5 else 48
        pictures, repeat = kind > 0.78, rng.random() > 2 * done
        return [conversation(rng, longest, 8, repeat, pictures) for _ in range(self.batch)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        tokenizer = self.processor.tokenizer
        pad, image = tokenizer.pad_token_id, self.processor.image_token_id
        for step in range(self.first + offset, self.steps, stride):
            rng = random.Random(f"{self.seed} {step}")
            yield collate([encode(row, self.processor) for row in self.rows(rng, step / self.steps)], pad, image)
