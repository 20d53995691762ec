import json
import math
import re
from pathlib import Path

import pytest
import torch
from intarsia_platform import demo
from intarsia_platform.demo.base_model import (
    SPECIAL_TOKENS,
    BaseSettings,
    encode_texts,
    evaluate_loss,
    pack_blocks,
    train_tokenizer,
)
from intarsia_platform.demo.corpus import Record, split_by_source, standard_library_records
from intarsia_platform.demo.train_base import main, train_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = Path(demo.__file__).parent / "base"
TINY = BaseSettings(
    vocabulary=300,
    hidden_size=32,
    layers=1,
    heads=2,
    intermediate_size=64,
    positions=64,
    block_length=32,
    batch_size=2,
    steps=3,
    warmup_steps=1,
    evaluate_every=2,
    test_share=0.3,
)
RECORDS = [
    Record(text=f"Passage {index} of a small text. " * 8, client="stdlib", source=f"{index}.py")
    for index in range(30)
]
UNICODE = "Ünïcödé — 编织 🧵\n    def f(x):\t return x  # naïve\r\n\u2028 <s> is no token here \x00"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def log() -> list[dict[str, float]]:
    lines = (BASE / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_base_has_the_promised_size(model):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 2_000_000 <= parameters <= 2_900_000
    assert (BASE / "model.safetensors").stat().st_size <= 12_000_000
    assert {tensor.dtype for tensor in load_file(BASE / "model.safetensors").values()} == {
        torch.float32
    }
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 512


def test_tokenizer_and_model_agree_on_special_tokens(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size
    for name in ("bos", "eos", "pad"):
        token = getattr(tokenizer, f"{name}_token_id")
        assert token == getattr(model.config, f"{name}_token_id")
        assert token == getattr(model.generation_config, f"{name}_token_id")
    identifiers = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert len(set(identifiers)) == len(SPECIAL_TOKENS)


def test_tokenizer_encodes_pure_text_and_gives_it_back(tokenizer):
    text = UNICODE.replace("<s>", "")
    identifiers = tokenizer.encode(text, add_special_tokens=False)
    assert not set(identifiers) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(identifiers) == text
    assert tokenizer.encode(text) == identifiers
    for character in map(chr, range(256)):
        assert tokenizer.decode(tokenizer.encode(character)) == character


def test_base_predicts_held_out_text_as_well_as_its_log_says(tokenizer, model, log):
    _, held_out = split_by_source(
        standard_library_records(), seed=0, test_share=BaseSettings().test_share
    )
    documents = encode_texts(tokenizer, [record.text for record in held_out[::6]])
    loss = evaluate_loss(model, pack_blocks(documents, 256)[:24])
    logged = min(line["validation_loss"] for line in log)
    assert math.exp(loss) < len(tokenizer) / 20
    # A sample of the files, perhaps of another Python: a quarter of a nat either way is chance.
    assert loss < logged + 0.25


def test_base_continues_a_prompt(tokenizer, model):
    prompt = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode("Return a new")]])
    answer = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
    )
    text = tokenizer.decode(answer[0], skip_special_tokens=True)
    assert text.startswith("Return a new")
    assert len(re.findall(r"[a-z]{3,}", text)) > 5


def test_log_shows_learning_and_steps_in_order(log):
    keys = {"step", "tokens", "train_loss", "validation_loss", "seconds"}
    assert all(set(line) == keys for line in log)
    assert [line["step"] for line in log] == sorted({line["step"] for line in log})
    assert log[-1]["validation_loss"] < log[0]["validation_loss"]


def test_assets_name_no_machine_and_no_registry():
    names = sorted(file.name for file in BASE.iterdir())
    assert names == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.jsonl",
    ]
    for name in names:
        content = (BASE / name).read_bytes()
        assert not re.search(rb"/(root|home|work|tmp|Users)/|_name_or_path|https?://", content), (
            name
        )


def test_model_card_states_what_matters(log):
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert f"{min(line['validation_loss'] for line in log):.3f} nats" in card
    for word in ("PSF-2.0", "Python Software Foundation", "train_base --out DIR", "seed", "limits"):
        assert word in card


def test_training_gives_the_same_bytes_twice(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = train_base(tmp_path / "first", settings=TINY, records=RECORDS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = train_base(tmp_path / "second", settings=TINY, records=RECORDS)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    losses = [[(line.train_loss, line.validation_loss) for line in log] for log in (first, second)]
    assert losses[0] == losses[1]
    assert [line.step for line in first] == [2, 3]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first", "second"]


def test_another_seed_gives_another_model(tmp_path):
    settings = BaseSettings(**{**vars(TINY), "seed": 1})
    train_base(tmp_path / "first", settings=TINY, records=RECORDS)
    train_base(tmp_path / "second", settings=settings, records=RECORDS)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] != weights[1]


def test_tokenizer_of_a_small_vocabulary_still_encodes_anything():
    tokenizer = train_tokenizer(["a b c"] * 3, vocabulary=260, model_max_length=64)
    text = UNICODE.replace("<s>", "")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pack_blocks_keeps_every_token_in_order_and_shuffles_on_request():
    documents = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert pack_blocks(documents, 4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    generator = torch.Generator().manual_seed(0)
    drawn = {tuple(pack_blocks(documents, 9, generator)[0].tolist()) for _ in range(20)}
    assert len(drawn) > 1
    assert {tuple(sorted(block)) for block in drawn} == {tuple(range(1, 10))}


@pytest.mark.parametrize(
    "changed",
    [{"vocabulary": 100}, {"heads": 5}, {"block_length": 600}, {"dropout": 1.0}, {"steps": 0}],
)
def test_settings_out_of_range_are_refused_by_name(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        BaseSettings(**changed)


@pytest.mark.parametrize(
    ("test_share", "records", "message"),
    [
        (0.3, RECORDS[:12], "batch_size=40"),
        (0.0, RECORDS, "held-out files"),
        (0.0, [], "held-out files"),
    ],
)
def test_too_little_text_is_refused_before_anything_is_written(
    tmp_path, test_share, records, message
):
    settings = BaseSettings(**{**vars(TINY), "test_share": test_share, "batch_size": 40})
    with pytest.raises(ValueError, match=message):
        train_base(tmp_path / "out", settings=settings, records=records)
    assert not list(tmp_path.iterdir())


def test_evaluation_needs_a_block():
    with pytest.raises(ValueError, match="hold out more text"):
        evaluate_loss(torch.nn.Identity(), torch.empty(0, 8))


def test_a_file_in_the_way_is_refused_before_the_training(tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        train_base(tmp_path / "out", settings=TINY, records=RECORDS)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_command_line_refuses_bad_input_with_one_line(tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(["--out", str(tmp_path / "out"), "--steps", "0", "--threads", "3"]) == 2
    assert torch.get_num_threads() == threads
    error = capsys.readouterr().err
    assert error.startswith("error: steps=0")
    assert error.count("\n") == 1
