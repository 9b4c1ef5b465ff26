"""Which convolutions and attentions diffusers runs for SD 1.5, SDXL and their VAEs, on tensors without data (device
"meta").

For each model sorted lists, each shape once: convolutions as [input height, input width, channels, out, kernel, stride,
padded at the end only], attentions as [heads, channels of a head, queries, keys]. 1x1 convolutions that Aquatint has as linear layers are left out: shortcuts, and projections around transformers.
"""
import json
import pathlib
import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention

HERE = pathlib.Path(__file__).resolve().parent
PUBLISHED = HERE.parent.parent / "published"
AS_LINEAR = ("conv_shortcut", "proj_in", "proj_out")


def shapes(model, run):
    seen, attentions = set(), set()

    def hook(name):
        def note(module, inputs):
            x = inputs[0]
            end_only = module.stride[0] == 2 and module.padding[0] == 0
            # diffusers pads the encoder's features before it calls the convolution.
            height, width = (n - 1 if end_only else n for n in x.shape[2:])
            seen.add((height, width, module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], end_only))

        return note

    def attention(module, inputs, keywords):
        x = inputs[0] if inputs else keywords["hidden_states"]
        tokens = lambda x: x.shape[1] if x.ndim == 3 else x.shape[2] * x.shape[3]
        context = keywords.get("encoder_hidden_states")
        d = module.to_q.out_features // module.heads
        attentions.add((module.heads, d, tokens(x), tokens(x if context is None else context)))

    for name, module in model.named_modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(attention, with_kwargs=True)
        if isinstance(module, torch.nn.Conv2d) and not name.endswith(AS_LINEAR):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        run(model)
    return {"convolutions": sorted(seen), "attentions": sorted(attentions)}


def meta(*shape):
    return torch.empty(*shape, device="meta")


def unet(folder, side, added):
    config = json.loads((PUBLISHED / folder / "unet.json").read_text())
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    context = meta(2, 77, config["cross_attention_dim"])
    more = {"text_embeds": meta(2, 1280), "time_ids": meta(2, 6)} if added else None
    return shapes(model, lambda m: m(meta(2, 4, side, side), meta(2), context, added_cond_kwargs=more))


def vae(folder, side):
    with torch.device("meta"):
        model = AutoencoderKL.from_config(json.loads((PUBLISHED / folder / "vae.json").read_text()))

    def run(m):
        m.quant_conv(m.encoder(meta(1, 3, side * 8, side * 8)))
        m.decoder(m.post_quant_conv(meta(1, 4, side, side)))

    return shapes(model, run)


lists = {
    "sd15 unet": unet("sd15", 64, False),
    "sdxl unet": unet("sdxl", 128, True),
    "sd15 vae": vae("sd15", 64),
    "sdxl vae": vae("sdxl", 128),
}
text = json.dumps(lists, indent=1)
# One shape a line.
text = re.sub(r"\[\s+((?:[\w.]+,\s+)*[\w.]+)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
(HERE.parent / "fixtures" / "kernel_shapes.json").write_text(text + "\n")
