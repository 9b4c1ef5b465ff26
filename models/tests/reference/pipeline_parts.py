"""What the tiny models of pipeline.py and pipeline_flux.py share."""
import pathlib

import numpy as np
from PIL import Image
from transformers import CLIPTokenizer

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
TOKENIZER = FIXTURES / "tokenizer"


def text(act):
    return dict(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act=act, projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def tokenizer(pad):
    return CLIPTokenizer(str(TOKENIZER / "vocab.json"), str(TOKENIZER / "merges.txt"), pad_token=pad, model_max_length=77)


def picture(height, width):
    """A smooth picture and a mask with a round hole, the same formula in the test."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([(x * 255) // width, (y * 255) // height, (x * 5 + y * 3) % 256], -1).astype(np.uint8)
    mask = (((x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 3) ** 2) * 255).astype(np.uint8)
    return Image.fromarray(rgb), Image.fromarray(mask)
