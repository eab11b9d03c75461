"""Tables of dialogues and questions."""

from personavlm_lib.benchmark import tables


def test_tables_count_dialogues_and_questions(lives):
    table = tables.dialogue_table({"train": lives[:1], "test": lives})
    assert list(table.group) == ["train", "test", "test"] and table.turns[0] == len(lives[0].turns)
    assert table.pictured[0] == sum(bool(turn.images) for turn in lives[0].turns)
    questions = tables.question_table(lives)
    assert len(questions) == sum(len(life.questions) for life in lives)
    choice = questions[questions.kind == "choice"]
    assert 3 < choice.question_words.mean() < 12 and 1 <= choice.answer_words.mean() < 2
    assert 0 < choice.needs_picture.mean() < 0.5
    binary = questions[questions.kind == "binary"]
    assert not binary.needs_picture.any()
