"""A review is saved with every key, goes on where it stopped, and its verdicts change the questions."""

import pytest

from personavlm_lib.study.review import (
    agreement,
    page,
    read_decisions,
    record_decision,
    review,
    reviewed,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "review.jsonl"


def test_one_key_judges_and_the_review_goes_on_where_it_stopped(path, lives):
    cases = [q.case for life in lives for q in life.questions]
    shown, key, fields = review(path, lives, "ada").children
    assert lives[0].questions[0].text in shown.value and fields.layout.display == "none"
    key.value = "a"
    assert key.value == "" and lives[0].questions[1].text in shown.value
    key.value = "x"
    key.value = "d"
    assert read_decisions(path).values.tolist() == [
        ["ada", cases[0], "accept", {}],
        ["ada", cases[1], "drop", {}],
    ]
    shown, key, fields = review(path, lives, "ada").children
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
    assert len(read_decisions(path)) == len(cases) and "All is reviewed" in shown.value
    key.value = "e"  # nothing is left to be edited
    assert review(path, lives, "bob").children[0].value == page(lives[0], lives[0].questions[0])


def test_the_last_verdict_counts_and_a_drop_wins(path, lives):
    one, two, three = lives[0].questions[:3]
    record_decision(path, "ada", one.case, "drop")
    record_decision(path, "ada", one.case, "edit", text="new ?")
    record_decision(path, "bob", one.case, "accept")
    record_decision(path, "ada", two.case, "edit", text="a ?")
    record_decision(path, "bob", two.case, "edit", text="b ?")
    record_decision(path, "bob", three.case, "drop")
    kept = reviewed(lives, read_decisions(path))
    assert [q.text for q in kept[0].questions] == [
        "new ?",
        *(q.text for q in lives[0].questions[3:]),
    ]
    assert kept[1] == lives[1] and reviewed(lives, read_decisions(path.with_name("none"))) == lives
    with pytest.raises(ValueError, match="'ada' says 'maybe'"):
        record_decision(path, "ada", one.case, "maybe")
    with pytest.raises(ValueError, match="named reviewer"):
        record_decision(path, " ", one.case, "drop")


def test_agreement_is_percent_and_kappa(path):
    for i in range(10):  # 8 of 10 alike; by chance .5 * .7 + .5 * .3 of them
        record_decision(path, "ada", f"c{i}", "accept" if i < 5 else "drop")
        record_decision(path, "bob", f"c{i}", "accept" if i < 7 else "drop")
    record_decision(path, "bob", "c10", "drop")
    (row,) = agreement(read_decisions(path)).to_dict("records")
    assert (row["reviewer"], row["other"], row["n"], row["percent"]) == ("ada", "bob", 10, 80)
    assert row["kappa"] == pytest.approx((0.8 - 0.5) / 0.5)
    assert agreement(read_decisions(path.with_name("none"))).empty


def test_an_item_shows_its_key_and_the_pictures_of_its_evidence(lives):
    seen = [
        (v, q) for v in lives for q in v.questions if any(v.turns[i].images for i in q.evidence)
    ]
    life, question = seen[0]
    text = page(life, question)
    assert (
        f"<b>{question.answer}</b>" in text
        and text.count("<b>") == 1
        and "data:image/png;base64," in text
    )
    assert all(
        life.turns[i].user.replace("<", "&lt;").replace(">", "&gt;") in text
        for i in question.evidence
    )
