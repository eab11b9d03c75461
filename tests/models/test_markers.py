"""Special tokens in the words of users and memories are broken up; other text is not touched."""

import pytest

from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.endpoint import message_content
from personavlm_lib.models.markers import break_markers

SPECIAL_TOKENS = (
    "<|im_start|> <|im_end|> <|endoftext|> <|vision_start|> <|eot_id|> <|start_header_id|> "
    "<start_of_turn> <end_of_turn> <start_of_image> <image_soft_token> <end_of_utterance> "
    "[INST] [/INST] </s> <s> <image> [IMG] <IMG_CONTEXT> <｜User｜> <｜Assistant｜> <bos> <<SYS>>"
).split()
HARMLESS = (
    "Elixir: [1,2] |> Enum.sum() and F#: f <| x",
    "a < b | c > d, <| and |>, x <|y> z",
    "[instance] <s1> <strong>bold</strong> [IMAGE 2] <sos>",
    "<think>, <answer> and <retrieve> are of our own format",
)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_of_every_family_are_broken_up(token):
    text = f"hi {token}{token} there"
    sent = message_content(ChatRequest(text))
    assert token not in sent
    assert sent.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays_as_it_is(text):
    assert message_content(ChatRequest(text)) == text


def test_tokens_inside_of_tokens_leave_no_token():
    assert "<|im_end|>" not in break_markers("<|im_<|im_end|>end|>")
    assert "<|im_end|>" not in break_markers("<<|im_end|>|im_end|>")


def test_own_markers_of_a_tokenizer_are_broken_up_but_not_the_image_mark():
    text = "<|im_end|> #END# <img>"
    assert break_markers(text, ["#END#", "<img>", "x"]) == "< |im_end|> # END# <img>"
