"""Writes tests/fixtures/clip_*.safetensors: tokens, hidden states and pooled embeddings of transformers' CLIP text
encoders, and what diffusers' encode_prompt makes of prompts.

    .ref/bin/python models/tests/reference/clip.py
"""
import json
import pathlib
import tempfile

import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPTokenizerFast

import synthetic
from clip_texts import FAST_ONLY, ORDINARY

HERE = pathlib.Path(__file__).parent
FILES = HERE / "../fixtures/tokenizer"
FIXTURES = HERE / "../fixtures"


def token(content, **flags):
    return dict(content=content, lstrip=False, normalized=True, rstrip=False, single_word=False) | flags


BOS, EOS, MARK = token("<|startoftext|>"), token("<|endoftext|>"), token("!", normalized=False)
END = EOS | {"normalized": False}
ROLES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def special(tokens):
    return {"added_tokens_decoder": {str(i): t | {"special": True} for i, t in tokens.items()}}


# What the two JSON files of a tokenizer folder say, and so which token pads.
TOKENIZERS = {
    "plain": {"tokenizer_config.json": special({49406: BOS, 49407: END}) | ROLES},
    # SDXL's second: the token that pads is special, so it is found in the text too
    "exclamation": {"tokenizer_config.json": special({0: MARK, 49406: BOS, 49407: EOS}) | ROLES | {"pad_token": "!"}},
    # SD 2.1: an older folder, whose map overrules its config
    "older": {
        "tokenizer_config.json": {"pad_token": "<|endoftext|>"},
        "special_tokens_map.json": {"pad_token": "!"},
    },
    # with added_tokens_decoder it is the other way round
    "newer": {
        "tokenizer_config.json": special({49406: BOS, 49407: END}) | ROLES,
        "special_tokens_map.json": {"pad_token": "!"},
    },
}


def tokenizer(name="plain", cls=CLIPTokenizerFast):
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES.iterdir():
            (pathlib.Path(folder) / file.name).write_bytes(file.read_bytes())
        for file, text in TOKENIZERS[name].items():
            (pathlib.Path(folder) / file).write_text(json.dumps(text))
        return cls.from_pretrained(folder, model_max_length=77)


def model(cls=CLIPTextModel, **config):
    base = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=24)
    config = CLIPTextConfig(**{**base, "pad_token_id": 1, "bos_token_id": 49406, **config}, architectures=[cls.__name__])
    return synthetic.fill(cls(config))


def sd():
    return model(hidden_act="quick_gelu", eos_token_id=2)


def bigg():
    return model(CLIPTextModelWithProjection, hidden_act="gelu", hidden_size=48, eos_token_id=2)


def save(name, tensors, **texts):
    path = FIXTURES / f"clip_{name}.safetensors"
    tensors = {k: t.detach().contiguous() for k, t in tensors.items()}
    save_file(tensors, path, {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in texts.items()})
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def tokens():
    """Ids of many texts, without padding, end to end; `lengths` says where each text's begin."""
    texts, tensors, pads = ORDINARY + FAST_ONLY, {}, {}
    older = tokenizer(cls=CLIPTokenizer)
    for name in TOKENIZERS:
        fast = tokenizer(name)
        pads[name] = fast.pad_token_id
        ids = [fast(text).input_ids for text in texts]
        if name == "plain":
            assert [older(text).input_ids for text in ORDINARY] == ids[: len(ORDINARY)]
        if name != "newer":
            tensors[f"{name}.ids"] = torch.tensor(sum(ids, []))
            tensors[f"{name}.lengths"] = torch.tensor([len(i) for i in ids])
    save("tokens", tensors, texts=texts, tokenizers=TOKENIZERS, pads=pads)


@torch.no_grad()
def models():
    """Every hidden state and the pooled embedding of encoders that differ in activation, end token and projection."""
    prompts = ["a photo of a red cat", "An oil painting, impasto: the harbour at dusk, 4k!"]
    ids = tokenizer()(prompts, padding="max_length", return_tensors="pt").input_ids
    for name, m in {
        "quick_gelu": sd(),
        "gelu": model(CLIPTextModelWithProjection, hidden_act="gelu", eos_token_id=49407, layer_norm_eps=1e-3),
        "gelu_new": model(CLIPTextModelWithProjection, hidden_act="gelu_new", eos_token_id=2, num_attention_heads=2),
    }.items():
        out = m(ids, output_hidden_states=True)
        pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
        hidden = {f"hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}
        tensors = {"ids": ids, "last_hidden_state": out.last_hidden_state, "pooled": pooled, **hidden}
        save(name, tensors, config=m.config.to_json_string(use_diff=False))


def sd_pipeline():
    parts = dict(vae=None, unet=None, scheduler=None, safety_checker=None, feature_extractor=None)
    return StableDiffusionPipeline(text_encoder=sd(), tokenizer=tokenizer(), requires_safety_checker=False, **parts)


def sdxl_pipeline():
    texts = dict(text_encoder=sd(), tokenizer=tokenizer(), text_encoder_2=bigg(), tokenizer_2=tokenizer("exclamation"))
    return StableDiffusionXLPipeline(vae=None, unet=None, scheduler=None, add_watermarker=False, **texts)


@torch.no_grad()
def encode_prompt():
    """diffusers' prompt_embeds with skipped layers and an empty negative prompt."""
    prompt, tensors = "a lighthouse in a storm, oil on canvas!", {}
    pipe, xl = sd_pipeline(), sdxl_pipeline()
    for skip in (0, 1, 2):
        # None is what diffusers calls 0, by a shorter way
        embeds, negative = pipe.encode_prompt(prompt, "cpu", 1, True, "", clip_skip=skip or None)
        tensors[f"sd.{skip}"] = embeds
        tensors["sd.negative"] = negative
        embeds, negative, pooled, negative_pooled = xl.encode_prompt(prompt, device="cpu", negative_prompt="", clip_skip=skip or None)
        tensors[f"sdxl.{skip}"], tensors["sdxl.pooled"] = embeds, pooled
        tensors["sdxl.negative"], tensors["sdxl.negative_pooled"] = negative, negative_pooled
    configs = {"text_encoder": pipe.text_encoder.config.to_dict(), "text_encoder_2": xl.text_encoder_2.config.to_dict()}
    save("encode_prompt", tensors, prompt=prompt, configs=configs, tokenizers=TOKENIZERS)


LONG = "a very long prompt about the sea, " * 19
# A prompt, and what the syntax means: chunks of texts with their weights.
EMPHASIS = {
    "weight": ("a (red:1.5) cat on a [blue] sofa", [[("a ", 1), ("red", 1.5), (" cat on a ", 1), ("blue", 1 / 1.1), (" sofa", 1)]]),
    "nested": ("((a)) house (with (many:0.5) windows:1.2)",
        [[("a", 1.1 * 1.1), (" house ", 1), ("with ", 1.2), ("many", 0.5 * 1.2), (" windows", 1.2)]]),
    "long": (LONG, [[(LONG, 1)]]),
    "break": ("a cat BREAK a (dog:0.6)! BREAK a bird", [[("a cat", 1)], [("a ", 1), ("dog", 0.6), ("!", 1)], [("a bird", 1)]]),
    "long_weighted": (f"({LONG}:1.3) and a boat", [[(LONG, 1.3), (" and a boat", 1)]]),
}


def chunks(tokenizer, parts):
    """Chunks of 75 tokens between begin and end, and the weights of all 77."""
    for texts in parts:
        tokens = [(i, w) for text, w in texts for i in tokenizer(text, add_special_tokens=False).input_ids]
        for at in range(0, max(1, len(tokens)), 75):
            part = tokens[at : at + 75]
            ids = [tokenizer.bos_token_id, *(i for i, _ in part), tokenizer.eos_token_id]
            weights = [1.0, *(w for _, w in part), 1.0]
            fill = 77 - len(ids)
            yield torch.tensor([ids + fill * [tokenizer.pad_token_id]]), torch.tensor(weights + fill * [1.0])


@torch.no_grad()
def emphasised(tokenizer, encoder, parts, penultimate):
    embeds, pooled = [], None
    for ids, weights in chunks(tokenizer, parts):
        out = encoder(ids, output_hidden_states=True)
        z = out.hidden_states[-2] if penultimate else out.last_hidden_state
        weighted = z * weights[None, :, None]
        embeds.append(weighted * (z.double().mean() / weighted.double().mean()).float())
        pooled = out.get("text_embeds") if pooled is None else pooled
    return torch.cat(embeds, 1), pooled


def emphasis():
    """The web UI's formula for weights and long prompts, written out."""
    first, second = (tokenizer(), sd()), (tokenizer("exclamation"), bigg())
    tensors = {}
    for name, (_, parts) in EMPHASIS.items():
        tensors[f"{name}.sd"], _ = emphasised(*first, parts, False)
        if name in ("weight", "nested", "long"):
            a, _ = emphasised(*first, parts, True)
            b, tensors[f"{name}.pooled"] = emphasised(*second, parts, True)
            tensors[f"{name}.sdxl"] = torch.cat([a, b], 2)
    save("emphasis", tensors, prompts={name: prompt for name, (prompt, _) in EMPHASIS.items()},
        configs={"text_encoder": first[1].config.to_dict(), "text_encoder_2": second[1].config.to_dict()}, tokenizers=TOKENIZERS)


@torch.no_grad()
def textual_inversion():
    """Token embeddings added to the pipeline as diffusers adds them; the config's end token is the true one."""
    pipe = sd_pipeline()
    pipe.text_encoder = model(hidden_act="quick_gelu", eos_token_id=49407)
    config = pipe.text_encoder.config.to_dict()
    vectors = {n: torch.from_numpy(synthetic.tensor(f"{n}.embedding.weight", (n, 32))) for n in (1, 3)}
    pipe.load_textual_inversion([{"<cat-toy>": vectors[1]}, {"<style>": vectors[3]}])
    prompt = "a <cat-toy> backpack in <style> and the <cat-toy>, <style>"
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer), padding="max_length", return_tensors="pt").input_ids
    out = pipe.text_encoder(ids)
    tensors = {"ids": ids, "last_hidden_state": out.last_hidden_state, "pooled": out.pooler_output}
    save("textual_inversion", tensors | {f"vectors.{n}": v for n, v in vectors.items()}, prompt=prompt,
        configs={"text_encoder": config}, tokenizers=TOKENIZERS)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    FIXTURES.mkdir(exist_ok=True)
    for part in (tokens, models, encode_prompt, emphasis, textual_inversion):
        part()
