"""`personavlm chat` with the agent of a run, and with any model behind a scripted server."""

import builtins
import io
import os
import subprocess
import sys
from datetime import datetime

import pytest
from PIL import Image

from personavlm_lib.__main__ import main
from personavlm_lib.memory.records import SemanticMemory, Turn
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.preflight import COLOR_QUESTION
from personavlm_lib.study.chat import WatchedModel
from personavlm_lib.study.profiles import BACKBONE, ROOT


@pytest.fixture
def chat(tmp_path):
    """Send lines to the agent of a run whose model is the bundled backbone; return the process."""
    stage = tmp_path / "runs" / "r" / "03_grpo"
    stage.mkdir(parents=True)
    (stage / "run.json").write_text("{}", encoding="utf-8")
    (stage / "model").symlink_to(BACKBONE)
    environment = os.environ | {"PERSONAVLM_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}

    def send(*lines, run="r"):
        command = [sys.executable, "-m", "personavlm_lib", "chat", "--run", run]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            input="\n".join(lines),
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )

    return send


def test_chat_answers_and_its_memory_persists(chat, tmp_path):
    first = chat("my drink is sprite", "what is my zeppelin ?")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert "what is my drink ?" in lines[2]
    assert sum(line.startswith("agent: ") for line in lines) == 2
    assert "(words it does not know: zeppelin)" in lines
    assert lines[-1] == f"The memory is saved in {tmp_path / 'runs' / 'r' / 'chat'}."
    second = chat(":memory", ":memry", ":quit", "not read").stdout
    assert "no such command" in second
    assert "openness" in second.lower()
    assert "agent: " not in second
    assert "saved in" not in second
    failed = chat("hello", run="other")
    missing = tmp_path / "runs" / "other" / "03_grpo"
    assert failed.returncode == 1
    assert f"{missing} is missing: run 'make reproduce' first" in failed.stderr


class Teller:
    """The script of a server: it looks up "cat" before it answers a message with "look"."""

    def __init__(self):
        self.failing = False

    def __call__(self, body):
        prompt = str(body["messages"][-1]["content"])
        if COLOR_QUESTION in prompt:
            return "red"
        if self.failing:
            return 400
        if '"decision"' in prompt:
            return (
                '"reason": "a fact"\n"decision": "True"\n"content": "Has a cat."\n"keywords": "cat"'
            )
        if "look there" in prompt and len(body["messages"]) == 1:
            return '<think>I search.</think><retrieve>"keywords": "cat"</retrieve>'
        return "<think>It is easy.</think><answer>Hello, Kai.</answer>"


@pytest.fixture
def teller():
    return Teller()


@pytest.fixture
def talk(teller, served, monkeypatch, capsys, tmp_path):
    """Chat with the scripted server; a line may be a function, or an exception that is raised.

    Returns the output and the bodies of the requests about messages.
    """
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path / "runs"))

    def send(*lines, options=()):
        remaining = iter(lines)

        def read_line(_):
            for line in remaining:
                if isinstance(line, str):
                    return line
                if isinstance(line, type):
                    raise line
                line()
            raise EOFError

        monkeypatch.setattr(builtins, "input", read_line)
        with served(teller) as (source, bodies):
            code = main(["chat", "--model", source, *options])
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out, [body for body in bodies if "## The message" in str(body)]

    return send


def stored_turns(folder):
    with MemoryStore(folder) as store:
        return [(turn.user, turn.assistant) for turn in store.as_of().turns]


def test_any_model_answers_each_line_and_remembers_it(talk, tmp_path):
    folder = tmp_path / "runs" / "chat" / "memory" / "teller" / "user"
    output, requests = talk("my cat is three", ":memory", ":quit", "not read")
    assert output.splitlines()[-1] == f"The memory is saved in {folder}."
    assert output.count("agent: Hello, Kai.\n") == 1
    assert len(requests) == 1 and "my cat is three" in str(requests[0])
    assert stored_turns(folder) == [("my cat is three", "Hello, Kai.")]
    output, _ = talk(":memory")
    assert "Has a cat." in output
    assert "saved in" not in output


def test_commands_are_obeyed_and_never_stored(talk, tmp_path):
    folder = tmp_path / "memory"
    past = datetime(2025, 1, 2)
    with MemoryStore(folder) as store:
        store.add_turn(Turn(past, "Miso is a cat.", "I see."))
        fact = SemanticMemory("Miso is a cat.", "cat", past, past, known_from=past, sources=(0,))
        store.add_semantic(fact)
    lines = (":memry", ":help", ":picture nowhere.png", ":steps", "look there", ":steps", "hi")
    output, requests = talk("my cat is three", *lines, options=["--memory", str(folder)])
    assert "(no such command: :memry;" in output
    assert output.count(":picture FILE") == 2  # at the start, and for :help
    assert "(failed and not stored, try again: " in output and "nowhere.png" in output
    shown = output.partition("(steps are shown)")[2].partition("(steps are hidden)")[0]
    assert "  | [stop] <think>I search.</think><retrieve>" in shown
    assert "Miso is a cat." in shown
    assert "agent: Hello, Kai." in shown
    assert output.count("  | [stop]") == 2
    users = [user for user, _ in stored_turns(folder)]
    assert users == ["Miso is a cat.", "my cat is three", "look there", "hi"]
    assert ":memry" not in str(requests)


def test_a_picture_goes_with_one_message(talk, tmp_path):
    first, second = tmp_path / "first one.png", tmp_path / "second.png"
    for path in (first, second):
        Image.new("RGB", (40, 40), "blue").save(path)
    options = ["--picture", str(first), "--memory", str(tmp_path / "memory")]
    _, requests = talk("see this", "and", f":picture '{second}'", "that", options=options)
    pictures = [str(request["messages"][0]["content"]).count("image_url") for request in requests]
    assert pictures[0] == 2  # "type" and key of one part
    users = [user for user, _ in stored_turns(tmp_path / "memory")]
    assert users == ["see this", "and", "that"]


def test_a_failed_message_is_not_stored_and_can_be_sent_again(talk, teller, tmp_path):
    picture = tmp_path / "cat.png"
    Image.new("RGB", (40, 40), "blue").save(picture)

    def fail():
        teller.failing = True

    def work():
        teller.failing = False

    options = ["--picture", str(picture), "--memory", str(tmp_path / "memory")]
    output, _ = talk(fail, "hello", work, "hello", fail, options=options)
    [line] = [line for line in output.splitlines() if line.startswith("(failed")]
    assert "try again: server http://127.0.0.1" in line
    assert stored_turns(tmp_path / "memory") == [("hello", "Hello, Kai.")]
    assert "updates wait for the next chat with this memory: server http://127.0.0.1" in output
    work()
    talk(options=["--memory", str(tmp_path / "memory")])
    with MemoryStore(tmp_path / "memory") as store:
        assert store.pending() == []


def test_an_interrupted_reply_is_not_stored(talk, monkeypatch, tmp_path):
    def reply(model, asked):
        if "slow" in asked[0][1].text:
            raise KeyboardInterrupt  # as Ctrl-C while the server works
        return model.model.reply(asked)

    options = ["--memory", str(tmp_path / "memory")]
    monkeypatch.setattr(WatchedModel, "reply", reply)
    output, _ = talk("slow", "quick", options=options)
    assert "(failed and not stored, try again: interrupted)" in output
    assert stored_turns(tmp_path / "memory") == [("quick", "Hello, Kai.")]


def test_ctrl_c_ends_the_chat_with_its_memory(talk, tmp_path):
    options = ["--memory", str(tmp_path / "memory")]
    output, _ = talk("my cat is three", KeyboardInterrupt, "not read", options=options)
    assert output.splitlines()[-1] == f"The memory is saved in {tmp_path / 'memory'}."
    with MemoryStore(tmp_path / "memory") as store:
        assert store.pending() == []
        assert [memory.content for memory in store.as_of().semantic] == ["Has a cat."]


def test_a_local_model_of_a_folder_chats(checkpoint, monkeypatch, capsys, tmp_path):
    """Its weights are random, so only the way through the command is tested."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is my drink ?\n:memory\n"))
    code = main(["chat", "--model", str(checkpoint), "--memory", str(tmp_path / "memory")])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert output.out.count("agent: ") == 1 and "(failed" not in output.out
    [(user, _)] = stored_turns(tmp_path / "memory")
    assert user == "what is my drink ?"


def test_chat_refuses_a_run_beside_a_model_and_a_file_that_is_no_picture(capsys, tmp_path):
    assert main(["chat", "--run", "nano", "--model", "http://host/v1#m"]) == 2
    assert "name a run or a model, not both" in capsys.readouterr().err
    file = tmp_path / "notes.png"
    file.write_text("no picture", encoding="utf-8")
    assert main(["chat", "--model", "http://host/v1#m", "--picture", str(file)]) == 1
    assert "notes.png" in capsys.readouterr().err
