"""Ask a server a few cheap questions before a stage sends thousands of requests.

Some servers accept pictures and drop them, or cut long prompts without a word. Both show in the
number of input tokens that a server reports.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from personavlm_lib.models.chat import ChatReply, ChatRequest, ContextOverflow, RequestFailure
from personavlm_lib.models.endpoint import EndpointModel

COLOR = "red"
COLOR_QUESTION = "Which color fills the picture? Answer with one word."
ROOM = 512  # tokens for an answer, so that a model can think first


class Finding(NamedTuple):
    """One check; `ok` is None for a doubt that does not stop a stage."""

    ok: bool | None
    name: str
    text: str


def check_server(model: EndpointModel, longest_prompt: str = "") -> list[Finding]:
    """Check that the model is listed, answers, sees a picture, and has room for a prompt.

    `longest_prompt` is the longest text that the stage will send. Raises RequestFailure if the
    server does not answer at all.
    """
    names = model.listed_models()
    listed = Finding(True, "listed", f"{model.model} at {model.url}")
    if names is None or model.model not in names:
        known = ", ".join((names or [])[:5]) or "none"
        listed = Finding(None, "listed", f"{model.model} is not among the server's models: {known}")
    plain = _ask(model, ChatRequest("Say hello.", max_tokens=ROOM))
    answers = Finding(True, "answers", repr(plain.text[:40]))
    if not plain.text.strip():
        answers = Finding(None, "answers", f"an empty text, stop reason {plain.stop}")
    findings = [listed, answers, _sight(model)]
    if longest_prompt:
        findings.append(_window(model, longest_prompt))
    return findings


def require_server(model: EndpointModel, longest_prompt: str = "") -> None:
    """Print the doubts of `check_server`. Raises RuntimeError for anything that does not work."""
    for finding in check_server(model, longest_prompt):
        if finding.ok is None:
            print(f"{model.name}: {finding.name}: {finding.text}", flush=True)
        if finding.ok is False:
            raise RuntimeError(f"{model.name} on {model.url}: {finding.name}: {finding.text}")


def _sight(model: EndpointModel) -> Finding:
    """Whether a picture adds input tokens, and its color is named."""
    blind = _ask(model, ChatRequest(COLOR_QUESTION, max_tokens=ROOM))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        Image.new("RGB", (224, 224), COLOR).save(path)
        request = ChatRequest(f"<img>{COLOR_QUESTION}", (str(path),), max_tokens=ROOM)
        try:
            seeing = _ask(model, request)
        except RequestFailure as failure:
            return Finding(False, "pictures", f"refused: {failure}")
    added = seeing.tokens_in - blind.tokens_in
    names_color = COLOR in seeing.text.lower()
    text = f"{added} tokens for a picture; it answered {seeing.text[-40:]!r}"
    if added <= 0 and not names_color and seeing.tokens_in > 0:
        return Finding(False, "pictures", f"not seen: {text}")
    return Finding(True if names_color and added > 0 else None, "pictures", text)


def _window(model: EndpointModel, prompt: str) -> Finding:
    """Whether the prompt fits, and is not cut silently: it must count more tokens than its half.

    A prompt that does not fit is a doubt, because a stage leaves out its oldest parts.
    """
    try:
        whole = _ask(model, ChatRequest(prompt, max_tokens=ROOM))
    except ContextOverflow as overflow:
        return Finding(None, "context window", str(overflow))
    half = _ask(model, ChatRequest(prompt[: len(prompt) // 2], max_tokens=1))
    text = f"{whole.tokens_in} tokens"
    if 0 < whole.tokens_in < 1.5 * half.tokens_in:
        return Finding(False, "context window", f"cut silently: {text} for the whole and its half")
    return Finding(True if whole.tokens_in else None, "context window", text)


def _ask(model: EndpointModel, request: ChatRequest) -> ChatReply:
    [reply] = model.reply([(model.start(), replace(request, purpose="preflight"))])
    if isinstance(reply, Exception):
        raise reply
    return reply
