"""Encode the backbone's training conversations and mix them into batches.

The loss covers the assistant's tokens only. The conversations come from `backbone_drills`, and are
generated while the training runs.
"""

import random
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import IterableDataset, get_worker_info

from personavlm_lib.models.nano import ImageOnlyProcessor
from personavlm_lib.training import backbone_drills
from personavlm_lib.training.backbone_drills import Row

IGNORED = -100  # label of a token that is not in the loss
SYSTEM = ("system", "You are a helpful assistant.")


def encode(row: Row, processor: ImageOnlyProcessor) -> dict:
    """Return token ids, labels (-100 outside the assistant's messages) and image tensors."""
    pixels = {}
    image_lengths: Iterator[int] = iter(())
    if row.images:
        pixels = processor.image_processor(images=row.images, return_tensors="pt")
        patches = pixels["image_grid_thw"].prod(-1)
        lengths = patches // 4  # the model merges 2 x 2 patches into a token
        image_lengths = iter(lengths.tolist())
    ids: list[int] = []
    labels: list[int] = []
    for role, text in [SYSTEM, *row.messages]:
        while "<img>" in text:
            pads = "<|image_pad|>" * next(image_lengths)
            text = text.replace("<img>", f"<|vision_start|>{pads}<|vision_end|>", 1)
        head = _token_ids(processor, f"<|im_start|>{role}\n")
        body = _token_ids(processor, f"{text}<|im_end|>\n")
        ids += head + body
        labels += [IGNORED] * len(head)
        if role == "assistant":
            labels += body
        else:
            labels += [IGNORED] * len(body)
    return {"ids": ids, "labels": labels, **pixels}


def _token_ids(processor: ImageOnlyProcessor, text: str) -> list[int]:
    return processor.tokenizer(text)["input_ids"]


def collate(rows: list[dict], pad: int, image_token: int) -> dict[str, torch.Tensor]:
    """Pad encoded rows on the right: (rows, longest) ids, labels, token types; all images in order.

    There is no attention mask: attention is causal, so no token sees the padding, and it runs
    nearly twice as fast without a mask.
    """
    width = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([_padded(row["ids"], width, pad) for row in rows])
    labels = torch.tensor([_padded(row["labels"], width, IGNORED) for row in rows])
    is_image = ids == image_token
    batch = {"input_ids": ids, "labels": labels, "mm_token_type_ids": is_image.long()}
    with_images = [row for row in rows if "pixel_values" in row]
    if with_images:
        for name in ("pixel_values", "image_grid_thw"):
            tensors = [row[name] for row in with_images]
            batch[name] = torch.cat(tensors)
    return batch


def _padded(tokens: list[int], width: int, fill: int) -> list[int]:
    return tokens + [fill] * (width - len(tokens))


class BackboneData(IterableDataset):
    """The batches of a training of `steps` steps, as a curriculum.

    The mixture depends on the share of the training that is done: contexts grow, and after a while
    no conversation repeats a question.
    """

    def __init__(self, processor: ImageOnlyProcessor, batch: int, steps: int, seed: int):
        self.processor = processor
        self.batch = batch
        self.steps = steps
        self.seed = seed
        words = []
        for token in processor.tokenizer.get_vocab():
            if token.startswith(" ") and len(token) > 2:
                words.append(token.strip())
        self.vocabulary = sorted(words)

    def rows(self, rng: random.Random, done: float) -> list[Row]:
        """Generate one batch, where `done` is the share of the training that is done.

        A batch mixes all text drills, because training on one alone makes the model forget the
        others. Scenes and lives are longer and fill batches of their own. Scenes take longest to
        learn and get the most steps; lives take the most tokens.
        """
        early = done < 0.05
        weights = (60, 40, 0, 0) if early else (33, 28, 19, 20)
        kind = rng.choices(("drills", "captions", "scenes", "lives"), weights)[0]
        if kind == "drills":
            return self._text_drills(rng, done, early)
        if kind == "captions":
            return [backbone_drills.caption_drill(rng) for _ in range(8 * self.batch)]
        if kind == "scenes":
            return [backbone_drills.scene_drill(rng, 4, 4) for _ in range(self.batch)]
        pictures = rng.random() < 0.6
        repeat = rng.random() > 2 * done
        longest = _longest_context(done)
        count = self.batch // 2
        return [
            backbone_drills.conversation(rng, longest, 8, repeat, pictures) for _ in range(count)
        ]

    def _text_drills(self, rng: random.Random, done: float, early: bool) -> list[Row]:
        table_weight = 100 if early else 30
        table_length = 6 if early else 12
        list_length = 4 if done < 0.2 else 8
        drills: list[Callable[[], Row]] = [
            lambda: backbone_drills.copy_drill(rng, self.vocabulary),
            lambda: backbone_drills.table_drill(rng, table_length, 8),
            lambda: backbone_drills.knowledge_drill(rng, 8),
            lambda: backbone_drills.date_drill(rng, 8),
            lambda: backbone_drills.list_drill(rng, list_length),
        ]
        weights = (20, table_weight, 15, 15, 20)
        chosen = rng.choices(drills, weights, k=self.batch)
        return [drill() for drill in chosen]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        first_step = worker.id if worker else 0
        stride = worker.num_workers if worker else 1
        pad = self.processor.tokenizer.pad_token_id
        for step in range(first_step, self.steps, stride):
            rng = random.Random(f"{self.seed} {step}")
            rows = self.rows(rng, step / self.steps)
            encoded = [encode(row, self.processor) for row in rows]
            yield collate(encoded, pad, self.processor.image_token_id)


def _longest_context(done: float) -> int:
    """The most turns of a conversation when a share `done` of the training is done."""
    if done < 0.15:
        return 6
    if done < 0.3:
        return 12
    if done < 0.5:
        return 24
    return 48
