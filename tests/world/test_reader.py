"""With the gold evidence before its eyes, a reader of fixed rules answers nearly everything: the key is derivable."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.memory.vision import ClassicalDetector
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import sample_plan
from personavlm_lib.simulation.scenes import COLORS, COUNTS, LOOSE, SIGN_WORDS, Scene, Thing, render

KNOWN = lexicon.KNOWLEDGE
MARKS = {w: (trait, s) for trait, marks in lexicon.MARKERS.items() for s, w in marks.items()}
STYLE_OF = {
    word: (trait, pole)
    for trait, poles in lexicon.REPLY_STYLES.items()
    for pole, word in poles.items()
}
RULES = (  # question, what to find in the evidence (the newest counts), what follows from it
    (r"why did (\w+ \w+) change", r"{0} from \w+ is \w+ because (\w+)", None),
    (r"what is the (\w+) of who (i \w+ \w+) with", r"{friend} {0} is (\w+)", None),
    (r"what is (\w+ \w+)", r"{0}(?: from \w+)? is (\w+)", None),
    (r"what did (i \w+)", r"{0} (\w+) with", None),
    (r"who did (i \w+ \w+) with", r"{0} with (\w+)", None),
    (r"why do (i need \w+)", r"{0} for (\w+)", None),
    (r"what should i pack today", r"every \w+ i do (\w+)", KNOWN["habit"]),
    (r"what do i do (every \w+)", r"{0} i do (\w+)", None),
    (r"which vehicle suits me", r"my value is (\w+)", KNOWN["value"]),
    (r"how should i write to (\w+)", r"{0} relation(?: from \w+)? is (\w+)", KNOWN["relation"]),
    (r"how should (\w+) be explained", r"my {0}(?: from \w+)? is (\w+)", KNOWN["level"]),
    (r"where should i go first", r"my sport(?: from \w+)? is (\w+)", KNOWN["sport"]),
)


def read(question, turns):
    """The answer, from the question's words and the evidence turns alone."""
    told = [turns[index] for index in question.evidence]
    text, said = question.text, "\n".join(turn.user for turn in told)
    if style := re.match(r"does a (\w+) reply suit me", text):
        trait, pole = STYLE_OF[style[1]]
        scores = [
            MARKS[word][1] for word in said.split() if word in MARKS and MARKS[word][0] == trait
        ]
        return "yes" if ("high" if sum(scores) / len(scores) > 3 else "low") == pole else "no"
    if text.startswith("who do i meet most"):
        return Counter(re.findall(r" with (\w+)", said)).most_common(1)[0][0]
    if goal := re.match(r"what became of my goal (\w+)", text):
        return (re.findall(rf"my goal {goal[1]} is (\w+)", said) or ["unknown"])[-1]
    if told and told[-1].images and (found := look(text, Image.open(told[-1].images[0]))):
        return found
    for asked, stated, known in RULES:
        if match := re.match(asked, text):
            friend = re.search(rf"{match[2]} with (\w+)", said)[1] if match.re.groups == 2 else ""
            value = re.findall(stated.format(*match.groups(), friend=friend), said)[-1]
            return known[value] if known else value
    raise AssertionError(f"no rule for {text!r}")


def look(text, image):
    """What the picture shows of what is asked, by the boxes of the detector and by drawing what could stand there."""
    boxes = [d.box for d in ClassicalDetector().detect(image)]
    seen = sorted((tell_apart(image, box) for box in boxes), key=lambda thing: thing[2])
    if not seen:
        return "nothing"
    if asked := re.match(r"what color is \w+ (\w+)", text):
        return ([color for kind, color, _, _ in seen if kind == asked[1]] or [seen[0][1]])[0]
    if text.startswith("how many"):
        return COUNTS[len(seen) - 1]
    if text.startswith("what is on"):
        return seen[0][3] or "nothing"
    if asked := re.match(r"what is (left|right) of \w+ (\w+)", text):
        return seen[0 if asked[1] == "left" else 1][0]
    return None


def tell_apart(image, box):
    """(kind, colour, left edge, word) of what stands in the box."""
    pixels, size = np.asarray(image).astype(int), image.width
    left, top, right, bottom = (round(v) for v in box)
    patch, behind = pixels[top:bottom, left:right], pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
    mask = np.abs(patch - behind).sum(-1) > 60
    spread = np.abs(patch[:, :, None] - np.array(list(COLORS.values()))).sum(-1)[mask]
    color = list(COLORS)[Counter(spread.argmin(-1)[spread.min(-1) < 90]).most_common(1)[0][0]]
    fits = {}
    for kind, word in [(kind, "") for kind in LOOSE] + [("sign", word) for word in SIGN_WORDS]:
        for turned in (False, True):
            thing = Thing(
                kind,
                color,
                tuple(v / size for v in (left, top, right, bottom)),
                COLORS[color],
                turned,
                word,
            )
            drawn = np.asarray(render(Scene((thing,), tuple(int(v) for v in behind)), size)).astype(
                int
            )
            fits[kind, word] = min(
                fits.get((kind, word), np.inf), np.abs(drawn[top:bottom, left:right] - patch).mean()
            )
    kind, word = min(fits, key=fits.get)
    return kind, color, left, word


@pytest.mark.parametrize(("days", "size"), [(28, 1.0), (70, 1.2)])
def test_a_reader_of_fixed_rules_answers_from_the_evidence(days, size, tmp_path):
    wrong, n = [], 0
    for seed in range(30):
        plan = sample_plan(seed, days, size)
        turns = render_dialogue(plan, tmp_path)
        for question in make_questions(plan, 26, 4):
            n += 1
            if read(question, turns) != question.answer:
                wrong.append((seed, question.text, question.answer, read(question, turns)))
    assert n > 900 and len(wrong) / n <= 0.01, wrong


def test_the_reader_reads_the_evidence_and_nothing_else(tmp_path):
    """Shown another life's turns in place of the evidence it is lost."""
    plan, other = sample_plan(1), render_dialogue(sample_plan(2), tmp_path)
    asked = [q for q in make_questions(plan, 26, 0) if q.task == "Behavioral Pattern Recognition"]
    assert asked
    for question in asked:
        with pytest.raises(IndexError):
            read(question, {index: other[0] for index in question.evidence})
