"""Records FLUX LoRA files of every format and what diffusers or PEFT make of them (the written-out formulas where
neither loads a format), on a tiny transformer:  .ref/bin/python models/tests/reference/flux_lora.py

diffusers' converters have FLUX's published sizes written into them (3072, 12288, 19 and 38 blocks): those numbers alone
are replaced here, in their source, by the tiny transformer's. What they get wrong is recorded by formula, each at its
place below."""
import inspect
import json
import pathlib
import re
import tempfile

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.loha.layer import make_weight
from peft.tuners.lokr.layer import make_kron
from safetensors.torch import save_file
from transformers import CLIPTextModel

import lora
import synthetic
from lora import FIXTURES, decomposed, low_rank, peft_model, random

HEADS, WIDTH, BLOCKS, SINGLE = 2, 8, 2, 2
INNER = HEADS * WIDTH
CONFIG = dict(
    patch_size=1,
    in_channels=8,
    num_layers=BLOCKS,
    num_single_layers=SINGLE,
    attention_head_dim=WIDTH,
    num_attention_heads=HEADS,
    joint_attention_dim=24,
    pooled_projection_dim=12,
    guidance_embeds=True,
    axes_dims_rope=(2, 2, 4),
)
ATTENTION = ["to_q", "to_k", "to_v"]
ADDED = ["add_q_proj", "add_k_proj", "add_v_proj"]


def tiny_converters():
    """The converters with the tiny transformer's sizes in place of the published ones."""
    sizes = {
        "[3072, 3072, 3072, 12288]": f"[{INNER}, {INNER}, {INNER}, {4 * INNER}]",
        "inner_dim = 3072": f"inner_dim = {INNER}",
        "num_layers = 19": f"num_layers = {BLOCKS}",
        "num_single_layers = 38": f"num_single_layers = {SINGLE}",
    }
    for name in ("kohya_flux", "bfl_flux_control", "fal_kontext"):
        name = f"_convert_{name}_lora_to_diffusers"
        source = inspect.getsource(getattr(lora_conversion_utils, name))
        assert any(old in source for old in sizes), name
        for old, new in sizes.items():
            source = source.replace(old, new)
        assert not re.search("3072|12288", source), name
        exec(source, vars(lora_conversion_utils))
        setattr(lora_pipeline, name, getattr(lora_conversion_utils, name))


def components():
    parts = dict(transformer=FluxTransformer2DModel(**CONFIG), text_encoder=lora.text_encoder(CLIPTextModel, 16))
    return {name: synthetic.fill(module) for name, module in parts.items()}


def pipeline():
    rest = dict(scheduler=None, vae=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)
    return FluxPipeline(**components(), **rest)


def layers(parts):
    """(component, layer) -> (weight, bias)."""
    found = {}
    for target, module in parts.items():
        for name, m in module.named_modules():
            if isinstance(m, torch.nn.Linear):
                found[target, name] = (m.weight.detach().clone(), m.bias.detach().clone())
    return found


BASE = layers(components())


def original_names():
    """The original code's names -> the layers that each is fused of."""
    names = {}
    for i in range(BLOCKS):
        theirs, ours = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for stream, context, qkv, out in (("img", "", ATTENTION, "to_out.0"), ("txt", "_context", ADDED, "to_add_out")):
            names[f"{theirs}.{stream}_attn.qkv"] = [f"{ours}.attn.{n}" for n in qkv]
            names[f"{theirs}.{stream}_attn.proj"] = [f"{ours}.attn.{out}"]
            names[f"{theirs}.{stream}_mlp.0"] = [f"{ours}.ff{context}.net.0.proj"]
            names[f"{theirs}.{stream}_mlp.2"] = [f"{ours}.ff{context}.net.2"]
            names[f"{theirs}.{stream}_mod.lin"] = [f"{ours}.norm1{context}.linear"]
    for i in range(SINGLE):
        theirs, ours = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        names[f"{theirs}.linear1"] = [f"{ours}.attn.{n}" for n in ATTENTION] + [f"{ours}.proj_mlp"]
        names[f"{theirs}.linear2"] = [f"{ours}.proj_out"]
        names[f"{theirs}.modulation.lin"] = [f"{ours}.norm.linear"]
    return names


OUTER = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
BLOCK_NAMES = original_names()
NAMES = BLOCK_NAMES | OUTER


def fused_shape(name, base=BASE):
    weights = [base["transformer", n][0] for n in NAMES[name]]
    return sum(len(w) for w in weights), weights[0].shape[1]


def swapped(t):
    first, second = t.chunk(2)
    return torch.cat([second, first])


def fuse(name, base):
    """The original's weight and bias out of diffusers' layers."""
    weight, bias = (torch.cat(parts) for parts in zip(*(base["transformer", n] for n in NAMES[name])))
    return (swapped(weight), swapped(bias)) if "adaLN" in name else (weight, bias)


def split(name, weight, bias):
    """The reverse."""
    if "adaLN" in name:
        weight, bias = swapped(weight), swapped(bias)
    rows = [len(BASE["transformer", n][0]) for n in NAMES[name]]
    return {("transformer", n): parts for n, *parts in zip(NAMES[name], weight.split(rows), bias.split(rows))}


@torch.no_grad()
def fused_by_diffusers(*loras):
    """`loras`: (state dict, scale), merged in order."""
    pipe = pipeline()
    for i, (state, _) in enumerate(loras):
        # 0.35 drops sd-scripts' `lora_te1_` and takes the older name of the same.
        state = {k.replace("lora_te1_", "lora_te_"): v.float().clone() for k, v in state.items()}
        pipe.load_lora_weights(state, adapter_name=f"lora_{i}")
    return fused(pipe, {f"lora_{i}": scale for i, (_, scale) in enumerate(loras)})


def fused(pipe, scales):
    pipe.set_adapters(list(scales), list(scales.values()))
    pipe.fuse_lora(components=["transformer", "text_encoder"], adapter_names=list(scales))
    pipe.unload_lora_weights()
    return layers(dict(transformer=pipe.transformer, text_encoder=pipe.text_encoder))


# name -> (is the model's x_embedder widened, [(file, scale)], changed layers)
CASES = {}


def case(name, loras, found, base=BASE, expect=None):
    changed = {key: parts for key, parts in found.items() if not all(map(torch.equal, parts, base[key]))}
    # diffusers leaves out without a word what it does not know.
    assert expect is None or set(changed) == set(expect), set(changed) ^ set(expect)
    CASES[name] = (base is not BASE, loras, changed)


def save(name, tensors, half=True, metadata=None):
    tensors = {k: (v.half() if half else v).contiguous() for k, v in tensors.items()}
    save_file(tensors, FIXTURES / f"flux_lora_{name}.safetensors", metadata)
    return f"flux_lora_{name}"


def keys_of(names):
    return [("transformer", layer) for name in names for layer in NAMES[name]]


TEXT = [key for key in BASE if key[0] == "text_encoder" and key[1].endswith(("q_proj", "out_proj", "fc1"))]


def kohya():
    """sd-scripts, with the text encoder. Of one rank: where ranks differ and no alphas are left, as here after its
    conversion, diffusers 0.35 multiplies each product by the first rank over its own."""
    state = {}
    for i, name in enumerate(BLOCK_NAMES):
        down, up = low_rank(fused_shape(name), 3)
        key = "lora_unet_" + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor([1.0, 4.5][i % 2])}
    for target, name in TEXT:
        down, up = low_rank(BASE[target, name][0].shape, 2)
        key = "lora_te1_" + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(3.0)}
    expect = keys_of(BLOCK_NAMES) + TEXT
    case("kohya", [(save("kohya", state), 0.7)], fused_by_diffusers((state, 0.7)), expect=expect)
    return state


def kohya_outer():
    """The layers outside of the blocks, by the formula: diffusers 0.35 reads them and then drops them, as it gives them
    names without the component's, and it ignores their alphas."""
    state, found = {}, dict(BASE)
    for i, name in enumerate(OUTER):
        rank, alpha = [(1, 0.5), (2, 3.0), (3, None)][i % 3]
        down, up = low_rank(fused_shape(name), rank)
        key = "lora_unet_" + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha:
            state[f"{key}.alpha"] = torch.tensor(alpha)
        weight, bias = fuse(name, BASE)
        found |= split(name, weight + 1.3 * (alpha or rank) / rank * up @ down, bias)
    case("kohya_outer", [(save("kohya_outer", state), 1.3)], found, expect=keys_of(OUTER))


def onetrainer():
    """kohya's form with diffusers' names."""
    state = {}
    for (target, name), (weight, _) in BASE.items():
        if target == "transformer" and re.search(r"\.attn\.to_(q|out)|\.attn\.add_k|context_embedder", name):
            down, up = low_rank(weight.shape, 2)
            key = "lora_transformer_" + name.replace(".", "_")
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    case("onetrainer", [(save("onetrainer", state), 1.0)], fused_by_diffusers((state, 1.0)))


def ai_toolkit():
    """diffusers loads these names with kohya's ends alone, as ComfyUI has them; with their own it loads nothing."""
    state = {}
    for name in BLOCK_NAMES:
        down, up = low_rank(fused_shape(name), 2)
        state |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    comfy = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in state.items()}
    case("ai_toolkit", [(save("ai_toolkit", state), 0.8)], fused_by_diffusers((comfy, 0.8)), expect=keys_of(BLOCK_NAMES))


def xlabs():
    state, expect = {}, []
    for i in range(BLOCKS):
        key = f"double_blocks.{i}.processor"
        for number, stream in ((1, "img"), (2, "txt")):
            for ours, name in (("qkv", f"double_blocks.{i}.{stream}_attn.qkv"), ("proj", f"double_blocks.{i}.{stream}_attn.proj")):
                down, up = low_rank(fused_shape(name), 2)
                state |= {f"{key}.{ours}_lora{number}.down.weight": down, f"{key}.{ours}_lora{number}.up.weight": up}
                expect += keys_of([name])
    for i in range(SINGLE):
        key, block = f"single_blocks.{i}.processor", f"single_transformer_blocks.{i}"
        for ours, shape in (("qkv", (3 * INNER, INNER)), ("proj", fused_shape(f"single_blocks.{i}.linear2"))):
            down, up = low_rank(shape, 2)
            state |= {f"{key}.{ours}_lora.down.weight": down, f"{key}.{ours}_lora.up.weight": up}
        expect += [("transformer", f"{block}.attn.{n}") for n in ATTENTION] + [("transformer", f"{block}.proj_out")]
    case("xlabs", [(save("xlabs", state), 1.0)], fused_by_diffusers((state, 1.0)), expect=expect)


def bfl():
    """The original's names as fal's trainer writes them."""
    state = {}
    names = list(BLOCK_NAMES) + ["final_layer.linear"]
    for name in names:
        down, up = low_rank(fused_shape(name), 1)
        key = f"base_model.model.{name}"
        state |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    case("bfl", [(save("bfl", state), 1.0)], fused_by_diffusers((state, 1.0)), expect=keys_of(names))


def control():
    """Black Forest Labs' control LoRAs: biases, norms, and an x_embedder with as many channels more as the control
    picture has."""
    wide = dict(BASE)
    weight, bias = BASE["transformer", "x_embedder"]
    wide["transformer", "x_embedder"] = (torch.cat([weight, torch.zeros_like(weight)], 1), bias)
    state = {}
    for name in NAMES:
        down, up = low_rank(fused_shape(name, wide), 1 if name == "final_layer.linear" else 2)
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.lora_B.bias": random(len(up))}
    norms = {f"{b}.{i}.{s}norm.{n}_norm.scale": 1 + random(WIDTH) for i in range(BLOCKS) for b, s in (("double_blocks", "img_attn."), ("double_blocks", "txt_attn."), ("single_blocks", "")) for n in ("query", "key")}
    scale = 0.6
    found = fused_by_diffusers((state | norms, scale))
    assert found["transformer", "x_embedder"][0].shape == wide["transformer", "x_embedder"][0].shape
    # By the formula instead: diffusers exchanges the halves of norm_out's lora_A too, whose rows are ranks and not
    # outputs, so that rows are multiplied that do not belong together; and proj_out is of another rank, see `kohya`.
    for name, layer in (("final_layer.adaLN_modulation.1", "norm_out.linear"), ("final_layer.linear", "proj_out")):
        weight, bias = fuse(name, BASE)
        weight = weight + scale * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        ours = split(name, weight, bias + scale * state[f"{name}.lora_B.bias"])
        assert not torch.allclose(ours["transformer", layer][0], found["transformer", layer][0])
        found |= ours
    case("control", [(save("control", state | norms), scale)], found, base=wide, expect=keys_of(NAMES))


def configs():
    attention = [n for t, n in BASE if t == "transformer" and re.search(r"\.attn\.(to_|add_)", n)]
    rest = ["proj_mlp", "ff.net.2", "ff_context.net.0.proj", "norm.linear", "norm_out.linear", "x_embedder"]
    patterns = dict(rank_pattern={attention[0]: 3, "proj_mlp": 1}, alpha_pattern={attention[0]: 5, "ff.net.2": 1})
    return LoraConfig(r=2, lora_alpha=3, target_modules=attention + rest, **patterns)


def diffusers_format():
    """What diffusers writes today: `lora_A`, ranks and alphas in the header."""
    config = dict(transformer=configs(), text_encoder=LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "out_proj", "fc1"]))
    states, metadata = {}, {}
    for target, module in components().items():
        states[target] = get_peft_model_state_dict(peft_model(module, config[target]))
        states[target] = {k.removeprefix("base_model.model."): v.half().float() for k, v in states[target].items()}
        keep = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
        metadata[target] = {k: v for k, v in config[target].to_dict().items() if k in keep}
        metadata[target]["target_modules"] = sorted(metadata[target]["target_modules"])
    with tempfile.TemporaryDirectory() as folder:
        FluxPipeline.save_lora_weights(
            folder,
            **{f"{target}_lora_layers": state for target, state in states.items()},
            **{f"{target}_lora_adapter_metadata": m for target, m in metadata.items()},
        )
        written = pathlib.Path(folder) / "pytorch_lora_weights.safetensors"
        (FIXTURES / "flux_lora_diffusers.safetensors").write_bytes(written.read_bytes())
        pipe = pipeline()
        pipe.load_lora_weights(folder, weight_name=written.name, adapter_name="lora_0")
    case("diffusers", [("flux_lora_diffusers", 0.7)], fused(pipe, {"lora_0": 0.7}))
    return written.name


def peft_files():
    """PEFT's own file with its config beside; and DoRA, as diffusers loads it."""
    adapter = peft_model(components()["transformer"], configs())
    adapter.save_pretrained(FIXTURES / "flux_lora_peft")
    (FIXTURES / "flux_lora_peft" / "README.md").unlink()
    # PEFT writes a set, in any order.
    config = json.loads((FIXTURES / "flux_lora_peft" / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (FIXTURES / "flux_lora_peft" / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    found = dict(BASE) | layers(dict(transformer=adapter.merge_and_unload()))
    case("peft", [("flux_lora_peft/adapter_model", 1.0)], found)

    ends = ["attn.to_q", "attn.add_k_proj", "proj_mlp", "ff.net.2"]
    adapter = peft_model(components()["transformer"], LoraConfig(r=2, lora_alpha=2, target_modules=ends, use_dora=True))
    state = {k.replace("base_model.model", "transformer"): v.detach() for k, v in get_peft_model_state_dict(adapter).items()}
    case("diffusers_dora", [(save("diffusers_dora", state, half=False), 0.7)], fused_by_diffusers((state, 0.7)))


def lycoris():
    """LoKr, LoHa, whole differences and DoRA over the original's names, which diffusers does not load."""
    state, found, scale, rank = {}, dict(BASE), 0.7, 2
    alpha = torch.tensor(3.0)

    def add(name, delta, magnitude=None, **parts):
        weight, bias = fuse(name, BASE)
        ends = {"down": "lora_down.weight", "up": "lora_up.weight"}
        state.update({f"diffusion_model.{name}.{ends.get(k, k)}": v for k, v in parts.items()})
        if magnitude is None:
            weight = weight + scale * delta
        else:
            state[f"diffusion_model.{name}.dora_scale"] = magnitude
            weight = weight + scale * (decomposed(weight + delta, magnitude) - weight)
        found.update(split(name, weight, bias))

    # LoKr, sides whole or factored. Of 4 rows of a left side over 3 layers, and of 2 over 4, some reach into the next layer.
    lokr = {
        "double_blocks.0.img_attn.qkv": (6, "whole"),
        "double_blocks.1.img_attn.qkv": (4, "factored"),
        "double_blocks.0.txt_attn.proj": (4, "whole"),
        "double_blocks.0.img_mlp.0": (8, "factored"),
        "single_blocks.0.linear1": (2, "whole"),
        "single_blocks.0.linear2": (4, "factored"),
        "final_layer.adaLN_modulation.1": (8, "whole"),
    }
    for name, (left, kind) in lokr.items():
        out, columns = fused_shape(name)
        w1 = random(left, 2)
        parts = dict(lokr_w1=w1, alpha=alpha)
        rows, columns = out // left, columns // 2
        if kind == "whole":
            w2 = parts["lokr_w2"] = random(rows, columns)
        else:
            a, b = random(rows, rank), random(rank, columns)
            parts |= dict(lokr_w2_a=a, lokr_w2_b=b)
            w2 = a @ b
        add(name, make_kron(w1, w2, 1.0 if kind == "whole" else alpha.item() / rank), **parts)
    # LoHa and a whole difference.
    name = "double_blocks.0.txt_attn.qkv"
    out, columns = fused_shape(name)
    a, b = [random(out, rank) for _ in range(2)], [random(rank, columns) for _ in range(2)]
    parts = dict(hada_w1_a=a[0], hada_w1_b=b[0], hada_w2_a=a[1], hada_w2_b=b[1], alpha=alpha)
    add(name, make_weight(a[0], b[0], a[1], b[1], alpha / rank), **parts)
    diff = random(*fused_shape("double_blocks.1.txt_attn.qkv"))
    add("double_blocks.1.txt_attn.qkv", diff, diff=diff)
    # DoRA by output and by input. By input, the norm is of all layers that are fused.
    dora = {"single_blocks.1.linear1": 1, "double_blocks.0.img_mod.lin": 1, "double_blocks.1.img_mlp.2": 0}
    dora |= {"double_blocks.0.img_attn.proj": 1}
    for name, axis in dora.items():
        shape = fused_shape(name)
        down, up = low_rank(shape, rank)
        magnitude = (0.5 + random(*[n if i == axis else 1 for i, n in enumerate(shape)]).abs()).half().float()
        add(name, up @ down * alpha / rank, magnitude, down=down, up=up, alpha=alpha)
    case("lycoris", [(save("lycoris", state), scale)], found)

    state.clear(), found.update(BASE)
    for axis, name in enumerate(["single_blocks.0.linear1", "final_layer.adaLN_modulation.1"]):
        shape = fused_shape(name)
        down, up = low_rank(shape, rank)
        magnitude = (0.5 + random(*[n if i == 0 else 1 for i, n in enumerate(shape)]).abs()).half().float()
        add(name, up @ down * alpha / rank, magnitude, down=down, up=up, alpha=alpha)
    case("dora", [(save("dora", state), scale)], found)

    # By input over a fused matrix that another LoRA has changed before, one of its layers alone: the norm is of what
    # that made.
    name, layer = "single_blocks.0.linear1", "single_transformer_blocks.0.attn.to_k"
    down, up = low_rank(BASE["transformer", layer][0].shape, 1)
    first = {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    before = dict(BASE)
    before["transformer", layer] = (before["transformer", layer][0] + 2.0 * up @ down, before["transformer", layer][1])
    shape = fused_shape(name)
    down, up = low_rank(shape, rank)
    magnitude = (0.5 + random(1, shape[1]).abs()).half().float()
    second = {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up, f"diffusion_model.{name}.dora_scale": magnitude}
    weight, bias = fuse(name, before)
    weight = weight + scale * (decomposed(weight + up @ down, magnitude) - weight)
    loras = [(save("before_dora", first), 2.0), (save("dora_by_input", second), scale)]
    case("dora_by_input", loras, dict(BASE) | split(name, weight, bias))


def several(first):
    """Two over the same layers, one of them negative."""
    state = {}
    for (target, name), (weight, _) in BASE.items():
        if target == "transformer" and name.endswith(("to_q", "proj_mlp", "norm1.linear")):
            down, up = low_rank(weight.shape, 3)
            state |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    file = save("second", state)
    case("several", [("flux_lora_kohya", 0.7), (file, -0.3)], fused_by_diffusers((first, 0.7), (state, -0.3)))


def main():
    torch.manual_seed(0)
    tiny_converters()
    first = kohya()
    kohya_outer()
    onetrainer()
    ai_toolkit()
    xlabs()
    bfl()
    control()
    diffusers_format()
    peft_files()
    lycoris()
    several(first)

    assert len(CASES) == 14
    tensors, texts, order = {}, {}, list(BASE)
    for name, (wide, loras, changed) in CASES.items():
        # Of each changed weight, its product with two fixed vectors, any element that differs shows; and its bias.
        def column(w):
            probe = torch.from_numpy(synthetic.tensor("probe", (2, w.shape[1]))).double()
            return w.double() @ probe.T

        tensors[name] = torch.cat([torch.cat([column(w), b.double()[:, None]], 1) for w, b in changed.values()]).float()
        texts[name] = dict(wide=wide, loras=loras, layers=[order.index(key) for key in changed])
        print(name, len(changed), "layers")
    metadata = {"cases": json.dumps(texts), "layers": json.dumps([[t, n, list(w.shape)] for (t, n), (w, _) in BASE.items()])}
    save_file(tensors, FIXTURES / "flux_lora_expected.safetensors", metadata)


if __name__ == "__main__":
    with torch.no_grad():
        main()
