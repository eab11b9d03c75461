"""The profile `one-gpu` on tiny random models of the real classes, to test it without a GPU.

The numbers mean nothing. The tests check that each stage loads the models that the profile names
and writes the files that the next stage needs.
"""

import json
import os
import subprocess
import sys
from unittest import mock

import pandas as pd
import pytest
import torch
import transformers
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from personavlm_lib.agent.prompt_sets import FOLDER, PromptSet
from personavlm_lib.agent.protocol import parse_step
from personavlm_lib.evaluation.records import read_records
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.nano import SPECIAL, ImageOnlyProcessor, build_model
from personavlm_lib.models.weights import follow_source, load_processor
from personavlm_lib.study.profiles import PROFILES, ROOT, load_profile, memory_folder, stage_folder
from personavlm_lib.study.runner import run_stage

pytestmark = pytest.mark.slow

SIZES = {
    "01_synthesize": dict(
        train_users=1, test_users=1, train_questions=6, test_questions=3, scale=0.25, sft_samples=12
    ),
    "02_sft": dict(
        steps=2, batch=2, warmup=0, lora_rank=2, log_every=1, learning_rate=1e-3, accumulate=2
    ),
    "03_grpo": dict(
        steps=1, group=2, groups=1, accumulate=1, questions=4, warmup=0, lora_rank=2, max_tokens=6
    ),
    "04_agent_demo": dict(questions=1),
    "05_evaluate": dict(
        conditions=["chance", "backbone_rag5", "sft_gold", "rl_gold", "rl_own", "oracle"],
        max_tokens=6,
        skill_questions=1,
    ),
    "06_ablations": dict(conditions=["rl_gold_wo_episodic"], max_tokens=6),
    "07_personality": dict(users=1),
}


def language_model(folder, processor):
    """Qwen2.5-VL with a byte-level tokenizer and the real template; its turns are a few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=list(SPECIAL)
    )
    tokenizer.train([str(path) for path in (FOLDER / "full").glob("*.j2")], trainer)
    ends = ("<|im_end|>", "<|endoftext|>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=[token for token in SPECIAL if token not in ends],
    )
    torch.manual_seed(0)
    model = build_model(tokenizer, 32, 1)
    # Untied embeddings, as in the real model: a tied random model repeats itself forever.
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    output_weights = 0.1 * torch.randn(len(tokenizer), 32)
    output_weights[tokenizer.eos_token_id] *= 8  # so that a turn ends after a few tokens
    model.lm_head.weight = torch.nn.Parameter(output_weights)
    model.save_pretrained(folder)
    template = processor.chat_template
    images = Qwen2VLImageProcessorPil(max_pixels=1_003_520)
    ImageOnlyProcessor(images, tokenizer, chat_template=template).save_pretrained(folder)


def clip(folder):
    letters = list(pre_tokenizers.ByteLevel.alphabet())
    pieces = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(letter + "</w>" for letter in letters),
    ]
    tokenizer = transformers.CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]
    )
    tiny = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ends = dict(eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    text = tiny | dict(vocab_size=len(pieces), max_position_embeddings=16) | ends
    vision = tiny | dict(image_size=28, patch_size=14)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)


def sentence_encoder(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tiny = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **tiny))
    bert.save_pretrained(folder / "bert")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(
        folder / "bert"
    )
    modules = [Transformer(str(folder / "bert"), max_seq_length=64), Pooling(16)]
    SentenceTransformer(modules=modules).save(str(folder / "sentences"))
    return folder / "sentences"


@pytest.fixture(scope="module")
def chain(tmp_path_factory, processor, grounding_dino):
    """Run a profile like one-gpu at minimal size; return the folders of its models."""
    folder = tmp_path_factory.mktemp("one_gpu")
    language_model(folder / "qwen", processor)
    clip(folder / "clip")
    content = yaml.safe_load((PROFILES / "one-gpu.yaml").read_text(encoding="utf-8")) | {
        "offline": True
    }
    encoders = dict(detector=str(grounding_dino), image_encoder=str(folder / "clip"))
    encoders["text_encoder"] = str(sentence_encoder(folder))
    content["common"] |= encoders
    content["stages"]["00_backbone"] |= {"model": str(folder / "qwen")}
    del content["stages"]["explore_memories"]  # uses no model
    for stage, sizes in SIZES.items():
        content["stages"][stage] |= sizes
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with mock.patch.dict(
        os.environ, {"PERSONAVLM_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    ):
        profile = load_profile(str(folder / "tiny.yaml"))
        for stage in profile.stages:
            run_stage(stage, profile, "tiny")
        yield encoders | {"model": str(folder / "qwen")}


def test_models_are_referenced_and_never_copied(chain):
    stages = ["00_backbone", "02_sft", "03_grpo"]
    for depth, stage in enumerate(stages):
        folder = stage_folder("tiny", stage) / "model"
        assert [path.name for path in folder.iterdir()] == ["source.json"]
        base, adapters = follow_source(folder)
        assert os.path.samefile(base, chain["model"]) and len(adapters) == depth
    last, first = (LocalModel(stage_folder("tiny", stage) / "model").model for stage in stages[::2])
    assert not all(
        torch.equal(a, b) for a, b in zip(last.parameters(), first.parameters(), strict=True)
    )


def test_samples_and_records_use_the_full_prompts(chain):
    samples = pd.read_parquet(stage_folder("tiny", "01_synthesize") / "sft.parquet")
    assert (
        "Big Five personality of the user:"
        in samples[samples.purpose == "respond"].messages.iloc[0][0]["content"]
    )
    for messages in samples[samples.purpose == "respond"].messages:
        assert not any(parse_step(message["content"]).errors for message in messages[1::2])
    records = read_records(stage_folder("tiny", "05_evaluate") / "records.parquet")
    assert set(records.prompt_set_hash) == {PromptSet("full").hash()}
    assert records[records.condition == "oracle"].correct.mean() > 0.5
    assert records[records.condition == "rl_gold"].tokens_in.min() > 200


def test_memories_use_the_encoders_of_the_profile(chain):
    (user,) = memory_folder("tiny", "gold").iterdir()
    with MemoryStore(user) as store:
        assert store.encoder.name == chain["text_encoder"]
        retrieved = PAPER_RETRIEVER.rank_turns(store.as_of(), store.as_of().turns[-1].user, 3)
        assert len(retrieved) == 3 and set(store.sql("SELECT length(vector) FROM turns")) == {
            (4 * 16,)
        }
    summary = json.loads(
        (stage_folder("tiny", "09_report") / "summary.json").read_text(encoding="utf-8")
    )
    assert summary["profile"] == "tiny"


def test_image_size_is_bounded_as_in_the_paper(chain):
    assert load_processor(chain["model"]).image_processor.size["longest_edge"] == 230_400


def test_training_benchmark_uses_the_batches_of_the_profile(chain, tmp_path):
    results = tmp_path / "training.json"
    options = "--run tiny --size tiny --steps 2 --samples 4 6 --max-tokens 6 --json"
    script = str(ROOT / "speed" / "training.py")
    command = [sys.executable, script, *options.split(), str(results)]
    subprocess.run(command, check=True, cwd=tmp_path)
    sft, grpo = json.loads(results.read_text(encoding="utf-8"))["rows"]
    stages = load_profile("one-gpu").stages
    for row, size in ((sft, stages["02_sft"]["batch"]), (grpo, 6 * stages["03_grpo"]["groups"])):
        assert row["step_of"] == size and row["per_sample_s"] > 0 and row["tokens_per_sample"] > 100
        assert abs(row["step_s"] - size * row["per_sample_s"]) < 1e-6
    assert (
        sft["batch"] == sft["accumulate"] == 4 and grpo["accumulate"] == 6
    )  # one sample per part, as in the profile
