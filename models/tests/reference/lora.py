"""Records LoRA files of every format and what diffusers or PEFT make of them (the written-out formulas where neither
loads a format), on tiny models:  .ref/bin/python models/tests/reference/lora.py"""
import json
import pathlib
import tempfile

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.loha.layer import make_weight, make_weight_cp
from peft.tuners.lokr.layer import make_kron
from peft.tuners.lokr.layer import make_weight_cp as make_lokr_weight_cp
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
TINY = dict(sample_size=8, layers_per_block=1, block_out_channels=[16, 32], norm_num_groups=8, cross_attention_dim=16)
SD15 = TINY | dict(down_block_types=[CROSS_DOWN, "DownBlock2D"], up_block_types=["UpBlock2D", CROSS_UP], attention_head_dim=4)
SDXL = TINY | dict(
    down_block_types=["DownBlock2D", CROSS_DOWN],
    up_block_types=[CROSS_UP, "UpBlock2D"],
    transformer_layers_per_block=[1, 2],
    attention_head_dim=[2, 4],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 24,
    cross_attention_dim=40,
)
SSD1B = SDXL | dict(
    block_out_channels=[16, 32, 32],
    down_block_types=["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, "UpBlock2D"],
    layers_per_block=2,
    attention_head_dim=[1, 2, 4],
    transformer_layers_per_block=[1, [2, 2], [1, 2]],
    reverse_transformer_layers_per_block=[[1, 2, 3], [2, 1, 1], 1],
)
FULL_SD15 = dict(cross_attention_dim=768)
FULL_SDXL = SDXL | dict(
    sample_size=128,
    layers_per_block=2,
    block_out_channels=[320, 640, 1280],
    norm_num_groups=32,
    down_block_types=["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, "UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    cross_attention_dim=2048,
)
ATTENTION = ("attn1.to_q", "attn1.to_out.0", "attn2.to_k")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
TEXT = ("q_proj", "out_proj", "fc1")
ALPHAS = dict(unet=torch.tensor(1.0), text_encoder=torch.tensor(3.0), text_encoder_2=torch.tensor(0.5))


def text_encoder(kind, hidden_size):
    return kind(
        CLIPTextConfig(
            vocab_size=100,
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=24,
        )
    )


def components(model):
    parts = dict(unet=UNet2DConditionModel(**(SD15 if model == "sd15" else SDXL)), text_encoder=text_encoder(CLIPTextModel, 16))
    if model == "sdxl":
        parts["text_encoder_2"] = text_encoder(CLIPTextModelWithProjection, 24)
    return {name: synthetic.fill(module) for name, module in parts.items()}


def pipeline(model):
    rest = dict(vae=None, tokenizer=None, scheduler=None)
    if model == "sd15":
        return StableDiffusionPipeline(**components(model), **rest, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return StableDiffusionXLPipeline(**components(model), **rest, tokenizer_2=None)


def layers(module):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: m.weight.detach().clone() for name, m in module.named_modules() if isinstance(m, kinds)}


def base(model):
    return {(target, name): w for target, module in components(model).items() for name, w in layers(module).items()}


def chosen(model, ends):
    return {key: w for key, w in base(model).items() if key[1].endswith(ends)}


def ldm_name(name, blocks, ups):
    """A UNet layer's name in the original code; `blocks` and `ups`: (resnets, attends) of each block down and up."""
    outer = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    if name in outer:
        return outer[name]
    part, rest = name.split(".", 1)
    if part == "mid_block":
        kind, i, rest = rest.split(".", 2)
        return f"middle_block.{2 * int(i) + (kind == 'attentions')}.{inner.get(rest, rest)}"
    block, kind, i, rest = rest.split(".", 3)
    block, i = int(block), int(i)
    before = sum(n + (part == "down_blocks") for n, _ in (blocks if part == "down_blocks" else ups)[:block])
    if kind == "downsamplers":
        return f"input_blocks.{before + 1 + blocks[block][0]}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{before + ups[block][0] - 1}.{1 + ups[block][1]}.conv"
    path = f"input_blocks.{before + 1 + i}" if part == "down_blocks" else f"output_blocks.{before + i}"
    return f"{path}.{int(kind == 'attentions')}.{inner.get(rest, rest)}"


def ldm_names(config):
    """Layer -> its original name and shape; diffusers' own conversion of checkpoints must lead back to each layer."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    blocks = [(len(b.resnets), hasattr(b, "attentions")) for b in unet.down_blocks]
    ups = [(len(b.resnets), hasattr(b, "attentions")) for b in unet.up_blocks]
    names = {name: (ldm_name(name, blocks, ups), list(w.shape)) for name, w in layers(unet).items()}
    checkpoint = {f"model.diffusion_model.{ldm}.weight": name for name, (ldm, _) in names.items()}
    # The conversion also asks for the norms and biases, which no LoRA changes.
    for key in ["out.0.weight", "out.0.bias", "out.2.bias", "input_blocks.0.0.bias"]:
        checkpoint[f"model.diffusion_model.{key}"] = None
    for embedding in ("time_embed", "label_emb.0"):
        checkpoint |= {f"model.diffusion_model.{embedding}.{i}.bias": None for i in (0, 2)}
    for i, (n, _) in enumerate(blocks):
        last = sum(m + 1 for m, _ in blocks[:i]) + 1 + n
        checkpoint |= {f"model.diffusion_model.input_blocks.{last}.0.op.bias": None} if i < len(blocks) - 1 else {}
    for i, (n, attends) in enumerate(ups[:-1]):
        last = sum(m for m, _ in ups[:i]) + n - 1
        checkpoint[f"model.diffusion_model.output_blocks.{last}.{1 + attends}.conv.bias"] = None
    converted = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    for name, value in converted.items():
        assert value is None or f"{value}.weight" == name, (name, value)
    assert {v for v in converted.values() if v} == set(names), set(names) - set(converted.values())
    return names


def kohya_name(target, name, original=None):
    prefixes = dict(unet="lora_unet_", text_encoder="lora_te1_" if original else "lora_te_", text_encoder_2="lora_te2_")
    if original and target == "unet":
        name = original[name][0]
    return prefixes[target] + name.replace(".", "_")


def random(*shape):
    """Values that f16 holds exactly, so that files can be half as large."""
    return (torch.randn(shape) * 0.25).half().float()


def low_rank(shape, rank):
    out, channels, *kernel = shape
    return random(rank, channels, *kernel), random(out, rank, *[1] * len(kernel))


@torch.no_grad()
def fused_by_diffusers(model, *loras):
    """`loras`: (state dict, scale), merged in order."""
    pipe = pipeline(model)
    for i, (state, _) in enumerate(loras):
        state, metadata = state if isinstance(state, tuple) else (state, None)
        state = {k: v.float() for k, v in state.items()}
        pipe.load_lora_weights(dict(state), adapter_name=f"lora_{i}", **(dict(metadata=metadata) if metadata else {}))
    names = [f"lora_{i}" for i in range(len(loras))]
    pipe.set_adapters(names, [scale for _, scale in loras])
    pipe.fuse_lora(components=[c for c in components(model)], adapter_names=names)
    pipe.unload_lora_weights()
    return {(target, name): w for target in components(model) for name, w in layers(getattr(pipe, target)).items()}


def decomposed(w, magnitude):
    """DoRA's direction and magnitude; the magnitude's shape says over which axis the norm goes."""
    axes = [i for i in range(w.dim()) if magnitude.shape[i] == 1]
    return magnitude * w / w.square().sum(axes, keepdim=True).sqrt()


# name -> (model, [(file, scale)], changed weights)
CASES = {}


def case(name, model, loras, weights):
    assert name not in CASES
    changed = {key: w for key, w in weights.items() if not torch.equal(w, base(model)[key])}
    CASES[name] = (model, loras, changed)


def save(name, tensors, half=True, metadata=None):
    tensors = {k: v.half() if half else v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURES / f"lora_{name}.safetensors", metadata)
    return f"lora_{name}"


def kohya():
    """LoRA and LoCon of sd-scripts, layers in diffusers' names."""
    state = {}
    for i, ((target, name), w) in enumerate(chosen("sd15", ATTENTION + FEED_FORWARD + CONVOLUTIONS + TEXT).items()):
        down, up = low_rank(w.shape, 2 + i % 2)
        key = kohya_name(target, name)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": ALPHAS[target]}
    case("kohya", "sd15", [(save("kohya", state), 0.7)], fused_by_diffusers("sd15", (state, 0.7)))


def kohya_alphas():
    """An alpha for each layer, by the formula: diffusers 0.35 gives all attention layers the commonest alpha."""
    state, weights = {}, base("sd15")
    for i, ((target, name), w) in enumerate(chosen("sd15", ATTENTION + TEXT + ("conv1",)).items()):
        rank = 1 + i % 2
        down, up = low_rank(w.shape, rank)
        key, alpha = kohya_name(target, name), [None, 0.5, 2.0, 4.0][i % 4]
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            state[f"{key}.alpha"] = torch.tensor(alpha)
        delta = (up.flatten(1) @ down.flatten(1)).reshape(w.shape)
        weights[target, name] = w + 0.7 * (alpha or rank) / rank * delta
    case("kohya_alphas", "sd15", [(save("kohya_alphas", state), 0.7)], weights)


def kohya_sdxl():
    """As most SDXL LoRAs are: layers in the original names, two text encoders."""
    original, state = ldm_names(SDXL), {}
    for (target, name), w in chosen("sdxl", ATTENTION + FEED_FORWARD + CONVOLUTIONS + TEXT).items():
        down, up = low_rank(w.shape, 2)
        key = kohya_name(target, name, original)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": ALPHAS[target]}
    case("kohya_sdxl", "sdxl", [(save("kohya_sdxl", state), 1.0)], fused_by_diffusers("sdxl", (state, 1.0)))
    return state


def lycoris():
    """LoCon with a core, LoHa, LoKr, full differences and DoRA, which diffusers does not load."""
    original = ldm_names(SDXL)
    state, weights = {}, base("sdxl")
    scale, layer = 0.7, iter(chosen("sdxl", ("attn1.to_v", "attn2.to_q", "ff.net.2", "fc2")).items())
    filters = iter(chosen("sdxl", ("conv1", "conv2")).items())

    def add(item, delta, magnitude=None, **parts):
        (target, name), w = item
        key = kohya_name(target, name, original)
        ends = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
        state.update({f"{key}.{ends.get(k, k)}": v for k, v in parts.items()})
        delta = delta.reshape(w.shape)
        if magnitude is None:
            weights[target, name] = w + scale * delta
        else:
            state[f"{key}.dora_scale"] = magnitude
            weights[target, name] = w + scale * (decomposed(w + delta, magnitude) - w)

    alpha, rank = torch.tensor(3.0), 2
    # LoCon with a core.
    item = next(filters)
    out, channels, *kernel = item[1].shape
    down, mid, up = random(rank, channels, 1, 1), random(rank, rank, *kernel), random(out, rank, 1, 1)
    delta = torch.einsum("oa,abhw,bi->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0]) * alpha / rank
    add(item, delta, down=down, mid=mid, up=up, alpha=alpha)
    # LoHa: a matrix, filters, filters with cores.
    for item, core in [(next(layer), False), (next(filters), False), (next(filters), True)]:
        out, channels, *kernel = item[1].shape
        columns = channels if core else item[1][0].numel()
        a = [random(rank, out) if core else random(out, rank) for _ in range(2)]
        b = [random(rank, columns) for _ in range(2)]
        parts = dict(hada_w1_a=a[0], hada_w1_b=b[0], hada_w2_a=a[1], hada_w2_b=b[1], alpha=alpha)
        if core:
            t = [random(rank, rank, *kernel) for _ in range(2)]
            delta = make_weight_cp(t[0], a[0], b[0], t[1], a[1], b[1], alpha / rank)
            parts |= dict(hada_t1=t[0], hada_t2=t[1])
        else:
            delta = make_weight(a[0], b[0], a[1], b[1], alpha / rank)
        add(item, delta, **parts)
    # LoKr: sides whole or factored. The alpha of two whole sides does not count.
    lokr = [(next(layer), "whole", "whole"), (next(layer), "whole", "factored"), (next(layer), "factored", "factored")]
    lokr += [(next(filters), "whole", "whole"), (next(filters), "whole", "factored"), (next(filters), "factored", "core")]
    for item, left, right in lokr:
        out, channels, *kernel = item[1].shape
        parts = dict(alpha=alpha)
        if left == "whole":
            w1 = parts["lokr_w1"] = random(4, 2)
        else:
            a, b = random(4, rank), random(rank, 2)
            parts |= dict(lokr_w1_a=a, lokr_w1_b=b)
            w1 = a @ b
        rows, columns = out // 4, channels // 2
        if right == "whole":
            w2 = parts["lokr_w2"] = random(rows, columns, *kernel)
        elif right == "core":
            t, a, b = random(rank, rank, *kernel), random(rank, rows), random(rank, columns)
            parts |= dict(lokr_t2=t, lokr_w2_a=a, lokr_w2_b=b)
            w2 = make_lokr_weight_cp(t, a, b)
        else:
            a, b = random(rows, rank), random(rank, columns * item[1][0, 0].numel())
            parts |= dict(lokr_w2_a=a, lokr_w2_b=b)
            w2 = a @ b
        by = 1.0 if left == right == "whole" else alpha.item() / rank
        add(item, make_kron(w1, w2, by), **parts)
    # DoRA by output and by input, over a product and over a LoKr.
    for item, axis in [(next(layer), 0), (next(layer), 1), (next(filters), 0), (next(filters), 1)]:
        down, up = low_rank(item[1].shape, rank)
        delta = (up.flatten(1) @ down.flatten(1)) * alpha / rank
        magnitude = 0.5 + random(*[n if i == axis else 1 for i, n in enumerate(item[1].shape)]).abs()
        add(item, delta, magnitude.half().float(), down=down, up=up, alpha=alpha)
    item = next(layer)
    w1, w2 = random(4, 2), random(item[1].shape[0] // 4, item[1].shape[1] // 2)
    magnitude = (0.5 + random(item[1].shape[0], 1).abs()).half().float()
    add(item, make_kron(w1, w2), magnitude, lokr_w1=w1, lokr_w2=w2, alpha=alpha)
    # The whole difference; that of a bias is not merged.
    for item in [next(layer), next(filters)]:
        diff = random(*item[1].shape)
        add(item, diff, diff=diff, diff_b=random(item[1].shape[0]))
    case("lycoris", "sdxl", [(save("lycoris", state), scale)], weights)


def peft_model(module, config):
    """`module` with an adapter whose every factor is random."""
    model = get_peft_model(module, config)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data = parameter.data * (1.25 + random(*parameter.shape))
        elif any(part in name for part in ("lora_", "lokr_", "hada_")):
            parameter.data = random(*parameter.shape)
    return model


def diffusers_format():
    """What diffusers writes today: `lora_A`, ranks and alphas in the header."""
    names, ends = list(base("sdxl")), ATTENTION + FEED_FORWARD + CONVOLUTIONS
    unet = [n for t, n in names if t == "unet" and n.endswith(ends)]
    patterns = dict(rank_pattern={unet[0]: 3, "conv_shortcut": 1}, alpha_pattern={unet[0]: 5, "ff.net.2": 1})
    configs = dict(
        unet=LoraConfig(r=2, lora_alpha=3, target_modules=unet, **patterns),
        text_encoder=LoraConfig(r=2, lora_alpha=1, target_modules=list(TEXT)),
        text_encoder_2=LoraConfig(r=4, lora_alpha=2, target_modules=list(TEXT), use_rslora=True),
    )
    states, metadata = {}, {}
    for target, module in components("sdxl").items():
        states[target] = get_peft_model_state_dict(peft_model(module, configs[target]))
        metadata[target] = configs[target].to_dict()
        keep = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
        metadata[target] = {k: v for k, v in metadata[target].items() if k in keep}
        metadata[target]["target_modules"] = sorted(metadata[target]["target_modules"])
        states[target] = {k.removeprefix("base_model.model."): v for k, v in states[target].items()}
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionXLPipeline.save_lora_weights(
            folder,
            **{f"{target}_lora_layers": state for target, state in states.items()},
            **{f"{target}_lora_adapter_metadata": m for target, m in metadata.items()},
        )
        written = pathlib.Path(folder) / "pytorch_lora_weights.safetensors"
        (FIXTURES / "lora_diffusers.safetensors").write_bytes(written.read_bytes())
        pipe = pipeline("sdxl")
        pipe.load_lora_weights(folder, weight_name=written.name)
    pipe.fuse_lora(components=list(states), lora_scale=0.7)
    pipe.unload_lora_weights()
    weights = {(target, name): w for target in states for name, w in layers(getattr(pipe, target)).items()}
    case("diffusers", "sdxl", [("lora_diffusers", 0.7)], weights)


def diffusers_dora():
    state = {}
    for target, ends in (("unet", ["to_q", "ff.net.2", "conv1"]), ("text_encoder", ["q_proj"])):
        adapter = peft_model(components("sd15")[target], LoraConfig(r=2, lora_alpha=2, target_modules=ends, use_dora=True))
        own = get_peft_model_state_dict(adapter).items()
        state |= {k.replace("base_model.model", target): v.detach() for k, v in own}
    file = save("diffusers_dora", state, half=False)
    case("diffusers_dora", "sd15", [(file, 0.7)], fused_by_diffusers("sd15", (state, 0.7)))


def diffusers_old():
    """What diffusers wrote from 0.21 on, before it took PEFT's names."""
    state = {}
    for (target, name), w in chosen("sd15", ATTENTION + FEED_FORWARD + TEXT).items():
        infix = "lora" if target == "unet" else "lora_linear_layer"
        down, up = low_rank(w.shape, 2)
        state |= {f"{target}.{name}.{infix}.down.weight": down, f"{target}.{name}.{infix}.up.weight": up}
    file = save("diffusers_old", state)
    case("diffusers_old", "sd15", [(file, 1.0)], fused_by_diffusers("sd15", (state, 1.0)))


@torch.no_grad()
def attention_processors():
    """What diffusers wrote before 0.21, of the UNet alone."""
    state = {}
    for (_, name), w in chosen("sd15", ("to_q", "to_k", "to_v", "to_out.0")).items():
        down, up = low_rank(w.shape, 2)
        key = name.removesuffix(".0").replace(".to_", ".processor.to_")
        state |= {f"{key}_lora.down.weight": down, f"{key}_lora.up.weight": up}
    unet = components("sd15")["unet"]
    unet.load_attn_procs(dict(state))
    unet.fuse_lora(lora_scale=1.5)
    unet.unload_lora()
    weights = {("unet", name): w for name, w in layers(unet).items()}
    case("attention_processors", "sd15", [(save("attention_processors", state), 1.5)], weights)


def peft_files():
    """PEFT's own files with their config beside, one folder each."""
    patterns = dict(rank_pattern={"attn1.to_q": 3}, alpha_pattern={r".*\.conv[12]": 5, "^mid_block.attentions.0.proj_in": 7})
    lora = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv1", "proj_in", "ff.net.2"], use_rslora=True, **patterns)
    lokr = LoKrConfig(r=2, alpha=3, target_modules=["to_q", "conv1", "proj_in"], use_effective_conv2d=True, decompose_both=True)
    whole = LoKrConfig(r=32, alpha=8, target_modules=["ff.net.2"])
    loha = LoHaConfig(r=2, alpha=4, target_modules=["to_k", "conv2"], use_effective_conv2d=True, alpha_pattern={"to_k": 2})
    text = LoraConfig(r=2, lora_alpha=4, target_modules=list(TEXT))
    for name, model, target, config in [
        ("peft", "sd15", "unet", lora),
        ("peft_lokr", "sd15", "unet", lokr),
        ("peft_lokr_whole", "sd15", "unet", whole),
        ("peft_loha", "sd15", "unet", loha),
        ("peft_text_2", "sdxl", "text_encoder_2", text),
    ]:
        adapter = peft_model(components(model)[target], config)
        adapter.save_pretrained(FIXTURES / f"lora_{name}")
        (FIXTURES / f"lora_{name}" / "README.md").unlink()
        weights = {(target, n): w for n, w in layers(adapter.merge_and_unload()).items()}
        case(name, model, [(f"lora_{name}/adapter_model", 1.0)], weights)


def cloneofsimo():
    """The oldest format: layers by their number among torch's modules, in the block order of its time and of later."""

    def linears(module, ancestors):
        for ancestor in (m for m in module.modules() if type(m).__name__ in ancestors):
            yield from (m for m in ancestor.modules() if isinstance(m, torch.nn.Linear))

    for name, ff_last in (("cloneofsimo", False), ("cloneofsimo_later", True)):
        parts, state, weights = components("sd15"), {}, {}
        for block in (m for m in parts["unet"].modules() if type(m).__name__ == "BasicTransformerBlock"):
            order = ["norm1", "attn1", "norm2", "attn2", "norm3", "ff"]
            assert [n for n, _ in block.named_children()] == order
            if not ff_last:
                block._modules = {n: block._modules[n] for n in ["attn1", "ff", "attn2", "norm1", "norm2", "norm3"]}
        for target, ancestors in (("unet", {"Attention", "GEGLU"}), ("text_encoder", {"CLIPAttention"})):
            names = {id(m): n for n, m in parts[target].named_modules()}
            for i, linear in enumerate(linears(parts[target], ancestors)):
                down, up = low_rank(linear.weight.shape, 1)
                state |= {f"{target}:{i}:down": down, f"{target}:{i}:up": up}
                weights[target, names[id(linear)]] = linear.weight.detach() + 0.5 * (up @ down)
        state["<s1>"] = random(16)
        file = save(name, state, metadata={"<s1>": "<embed>", "unet:0:rank": "1"})
        case(name, "sd15", [(file, 0.5)], weights)


def several(first):
    """Two over the same layers, one of them negative."""
    state = {}
    for (target, name), w in chosen("sdxl", ("to_q", "conv1", "q_proj")).items():
        down, up = low_rank(w.shape, 3)
        state |= {f"{target}.{name}.lora_A.weight": down, f"{target}.{name}.lora_B.weight": up}
    file = save("second", state)
    weights = fused_by_diffusers("sdxl", (first, 0.7), (state, -0.3))
    case("several", "sdxl", [("lora_kohya_sdxl", 0.7), (file, -0.3)], weights)


def main():
    torch.manual_seed(0)
    kohya()
    kohya_alphas()
    first = kohya_sdxl()
    lycoris()
    diffusers_format()
    diffusers_dora()
    diffusers_old()
    attention_processors()
    peft_files()
    cloneofsimo()
    several(first)

    tensors, texts = {}, {}
    for name, (model, loras, weights) in CASES.items():
        # Of each changed weight, its product with two fixed vectors: any element that differs shows.
        products = [w.flatten(1).double() @ torch.from_numpy(synthetic.tensor("probe", (2, w[0].numel()))).double().T for w in weights.values()]
        tensors[name] = torch.cat(products).float()
        order = list(base(model))
        texts[name] = dict(model=model, loras=loras, layers=[order.index(key) for key in weights])
        print(name, len(weights), "layers")
    metadata = {"cases": json.dumps(texts)}
    for model in ("sd15", "sdxl"):
        metadata[model] = json.dumps([[t, n, list(w.shape)] for (t, n), w in base(model).items()])
    save_file(tensors, FIXTURES / "lora_expected.safetensors", metadata)

    for name, config in dict(full_sd15=FULL_SD15, full_sdxl=FULL_SDXL, ssd1b=SSD1B, tiny_sd15=SD15).items():
        names = {"layers": json.dumps([[n, ldm, shape] for n, (ldm, shape) in ldm_names(config).items()], separators=(",", ":"))}
        save_file({}, FIXTURES / f"lora_names_{name}.safetensors", names)


if __name__ == "__main__":
    main()
