"""Records transformers' BLIP captioning on a tiny model:  .ref/bin/python models/tests/reference/caption.py"""
import json
import pathlib
import tempfile

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
# With this one two captions end early.
SEED = 108
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a cat dog man woman red blue sitting on in the of with ' s 's . , ! ? n't 've do not ##s ##ing ##er".split()
WORDS += [first + second for first in "bdfgklmprt" for second in ("ar", "en", "u")]
VOCABULARY = SPECIAL + WORDS
# As published: the tokens that start a caption and a question have no entry in the tokenizer's vocabulary.
BOS = len(VOCABULARY)
TEXT = dict(
    vocab_size=BOS + 2, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=24, bos_token_id=BOS, sep_token_id=VOCABULARY.index("[SEP]"), projection_dim=32,
)  # fmt: skip
VISION = dict(hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16)
TIED = ["text_decoder.bert.embeddings.word_embeddings.weight", "text_decoder.cls.predictions.bias"]


def pictures():
    """Shrunk, enlarged, as large as the model's, and shrunk one way while enlarged the other."""
    r = np.random.default_rng(0)
    for i, (width, height) in enumerate([(130, 61), (17, 23), (48, 48), (96, 31)]):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / (3 + i) + c) * np.cos(y / (5 - i) - c) for c in range(3)]
        noise = r.normal(0, 30, (height, width, 3))
        yield np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def decoding(tokenizer):
    """A text with everything that decoding treats in its own way, with and without its cleaning."""
    words = "[CLS] man ' s cat 's . , ! ? n't 've do not bar ##ing ##s [UNK] [MASK] [SEP] dog".split()
    ids = [BOS, *tokenizer.convert_tokens_to_ids(words), BOS + 1, *tokenizer.convert_tokens_to_ids(["a", "[PAD]", "##er"])]
    text = lambda clean: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=clean)
    return {"ids": ids, "plain": text(False), "cleaned": text(True)}


@torch.no_grad()
def main():
    config = BlipConfig(text_config=TEXT, vision_config=VISION)
    model = synthetic.fill(BlipForConditionalGeneration(config), SEED)
    for key in TIED:
        parameter = model.get_parameter(key)
        parameter.copy_(torch.from_numpy(synthetic.tensor(key, tuple(parameter.shape), SEED)))

    tensors, texts = {}, {"seed": json.dumps(SEED)}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "words.txt").write_text("\n".join(VOCABULARY))
        tokenizer = BertTokenizerFast(vocab_file=str(folder / "words.txt"))
        processor = BlipProcessor(BlipImageProcessor(size={"height": 48, "width": 48}), tokenizer)
        processor.save_pretrained(folder)
        model.save_pretrained(folder)
        for name in ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]:
            texts[name] = (folder / name).read_text()
        with safe_open(folder / "model.safetensors", "pt") as file:
            texts["shapes"] = json.dumps({k: file.get_slice(k).get_shape() for k in sorted(file.keys())})

    captions = []
    for i, picture in enumerate(pictures()):
        inputs = processor(Image.fromarray(picture), return_tensors="pt")
        logits = model(inputs.pixel_values, torch.tensor([[BOS]])).logits[0, -1]
        ids = model.generate(**inputs)[0]
        captions.append(processor.decode(ids, skip_special_tokens=True))
        print(tuple(picture.shape), ids.tolist(), captions[-1])
        tensors |= {f"{i}.picture": torch.from_numpy(picture), f"{i}.pixel_values": inputs.pixel_values}
        tensors |= {f"{i}.logits": logits, f"{i}.ids": ids}
    texts["captions"] = json.dumps(captions)
    texts["decoding"] = json.dumps(decoding(tokenizer))
    save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURES / "caption.safetensors", metadata=texts)


main()
