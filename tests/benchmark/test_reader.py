"""A rule-based reader answers nearly every question from its gold evidence: keys are derivable."""

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
# Pattern of the question, pattern of the evidence (the last match counts), table to apply to it.
RULES = (
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
    evidence = [turns[index] for index in question.evidence]
    text = question.text
    said = "\n".join(turn.user for turn in evidence)
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
    if evidence and evidence[-1].images:
        found = look(text, Image.open(evidence[-1].images[0]))
        if found:
            return found
    for question_pattern, evidence_pattern, table in RULES:
        if match := re.match(question_pattern, text):
            friend = ""
            if match.re.groups == 2:
                friend = re.search(rf"{match[2]} with (\w+)", said)[1]
            pattern = evidence_pattern.format(*match.groups(), friend=friend)
            value = re.findall(pattern, said)[-1]
            return table[value] if table else value
    raise AssertionError(f"no rule for {text!r}")


def look(text, image):
    """The answer that the picture shows, or None: detect boxes, then identify what is in each."""
    boxes = [d.box for d in ClassicalDetector().detect(image)]
    seen = sorted((identify(image, box) for box in boxes), key=lambda thing: thing[2])
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


def identify(image, box):
    """(kind, color, left edge, word) of the thing in the box: the one whose drawing fits best."""
    pixels = np.asarray(image).astype(int)
    size = image.width
    left, top, right, bottom = (round(v) for v in box)
    relative_box = tuple(v / size for v in (left, top, right, bottom))
    patch = pixels[top:bottom, left:right]
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    background = corners.mean(0)
    color = main_color(patch, background)
    errors = {}
    for kind, word in [(kind, "") for kind in LOOSE] + [("sign", word) for word in SIGN_WORDS]:
        for turned in (False, True):
            thing = Thing(kind, color, relative_box, COLORS[color], turned, word)
            scene = Scene((thing,), tuple(int(v) for v in background))
            drawn = np.asarray(render(scene, size)).astype(int)
            error = np.abs(drawn[top:bottom, left:right] - patch).mean()
            errors[kind, word] = min(errors.get((kind, word), np.inf), error)
    kind, word = min(errors, key=errors.get)
    return kind, color, left, word


def main_color(patch, background):
    """The most frequent of COLORS among the pixels that differ from the background."""
    foreground = np.abs(patch - background).sum(-1) > 60
    palette = np.array(list(COLORS.values()))
    distances = np.abs(patch[:, :, None] - palette).sum(-1)[foreground]
    nearest = distances.argmin(-1)[distances.min(-1) < 90]
    most_common, _ = Counter(nearest).most_common(1)[0]
    return list(COLORS)[most_common]


@pytest.mark.parametrize(("days", "size"), [(28, 1.0), (70, 1.2)])
def test_rule_based_reader_answers_from_the_evidence(days, size, tmp_path):
    wrong, n = [], 0
    for seed in range(30):
        plan = sample_plan(seed, days, size)
        turns = render_dialogue(plan, tmp_path)
        for question in make_questions(plan, 26, 4):
            n += 1
            if read(question, turns) != question.answer:
                wrong.append((seed, question.text, question.answer, read(question, turns)))
    assert n > 900 and len(wrong) / n <= 0.01, wrong


def test_reader_fails_on_the_turns_of_another_life(tmp_path):
    plan = sample_plan(1)
    other = render_dialogue(sample_plan(2), tmp_path)
    questions = make_questions(plan, 26, 0)
    questions = [q for q in questions if q.task == "Behavioral Pattern Recognition"]
    assert questions
    for question in questions:
        with pytest.raises(IndexError):
            read(question, {index: other[0] for index in question.evidence})
