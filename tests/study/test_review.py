"""Review: keys are saved at once, a review can be resumed, and decisions change questions."""

import pytest

from personavlm_lib.study.review import (
    agreement,
    apply_decisions,
    item_html,
    read_decisions,
    record_decision,
    review,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "review.jsonl"


def test_keys_record_decisions_and_a_review_resumes(path, lives):
    cases = [q.case for life in lives for q in life.questions]
    display, key, fields = review(path, lives, "ada").children
    assert lives[0].questions[0].text in display.value and fields.layout.display == "none"
    key.value = "a"
    assert key.value == "" and lives[0].questions[1].text in display.value
    key.value = "x"
    key.value = "d"
    assert read_decisions(path).values.tolist() == [
        ["ada", cases[0], "accept", {}],
        ["ada", cases[1], "drop", {}],
    ]
    display, key, fields = review(path, lives, "ada").children
    key.value = "e"
    text, answer, save = fields.children
    assert fields.layout.display == "" and answer.value == lives[0].questions[2].answer
    text.value, answer.value = "what then ?", answer.options[0]
    save.click()
    assert read_decisions(path).iloc[2].tolist() == [
        "ada",
        cases[2],
        "edit",
        {"text": "what then ?", "answer": answer.options[0]},
    ]
    for _ in cases:
        key.value = "a"
    assert len(read_decisions(path)) == len(cases) and "All items are reviewed" in display.value
    key.value = "e"  # does nothing: no item is left
    assert review(path, lives, "bob").children[0].value == item_html(
        lives[0], lives[0].questions[0]
    )


def test_last_decision_counts_and_a_drop_overrides_edits(path, lives):
    one, two, three = lives[0].questions[:3]
    record_decision(path, "ada", one.case, "drop")
    record_decision(path, "ada", one.case, "edit", text="new ?")
    record_decision(path, "bob", one.case, "accept")
    record_decision(path, "ada", two.case, "edit", text="a ?")
    record_decision(path, "bob", two.case, "edit", text="b ?")
    record_decision(path, "bob", three.case, "drop")
    result = apply_decisions(lives, read_decisions(path))
    assert [q.text for q in result[0].questions] == [
        "new ?",
        *(q.text for q in lives[0].questions[3:]),
    ]
    assert result[1] == lives[1]
    assert apply_decisions(lives, read_decisions(path.with_name("none"))) == lives
    with pytest.raises(ValueError, match="'ada' decided 'maybe'"):
        record_decision(path, "ada", one.case, "maybe")
    with pytest.raises(ValueError, match="pass a name"):
        record_decision(path, " ", one.case, "drop")


def test_agreement_reports_percent_and_kappa(path):
    for i in range(10):  # 8 of 10 agree; expected by chance: .5 * .7 + .5 * .3
        record_decision(path, "ada", f"c{i}", "accept" if i < 5 else "drop")
        record_decision(path, "bob", f"c{i}", "accept" if i < 7 else "drop")
    record_decision(path, "bob", "c10", "drop")
    (row,) = agreement(read_decisions(path)).to_dict("records")
    assert (row["reviewer"], row["other"], row["n"], row["percent"]) == ("ada", "bob", 10, 80)
    assert row["kappa"] == pytest.approx((0.8 - 0.5) / 0.5)
    assert agreement(read_decisions(path.with_name("none"))).empty


def test_item_shows_the_correct_answer_and_images_of_evidence(lives):
    with_images = [
        (life, question)
        for life in lives
        for question in life.questions
        if any(life.turns[i].images for i in question.evidence)
    ]
    life, question = with_images[0]
    text = item_html(life, question)
    assert f"<b>{question.answer}</b>" in text
    assert text.count("<b>") == 1
    assert "data:image/png;base64," in text
    for i in question.evidence:
        assert life.turns[i].user.replace("<", "&lt;").replace(">", "&gt;") in text
