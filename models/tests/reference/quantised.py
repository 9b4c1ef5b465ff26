"""Quantised and renamed checkpoints: blocks of every GGUF format decoded by the package gguf, a whole GGUF file written
by it, eight-bit floats decoded by torch, and the names and rows that diffusers' conversion of FLUX gives.

Tensors are recorded as a hash of their bytes where they can be computed from their names: what is read must be the same
to the bit.
"""
import inspect
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from diffusers.loaders import single_file_utils
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file

import synthetic

FIXTURES = Path(__file__).parent.parent / "fixtures"
WIDTH, MLP, CONTEXT, POOLED = 32, 128, 64, 32
FORMATS = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]
# Where the f16 scales of a block stand, which random bytes would make infinite.
SCALES = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108],
          Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
random = np.random.default_rng(0)


def random_blocks(kind, rows, blocks):
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = random.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = random.normal(0, 0.02, (rows, blocks)).astype(np.float16)
        # A subnormal, both zeros and the largest one.
        scales.flat[:4] = [6e-8, 0.0, -0.0, 65504.0]
        data[:, :, at:at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, blocks * size)


def fnv(values):
    """64-bit FNV-1a over the f32 bytes."""
    h = 0xCBF29CE484222325
    for b in np.ascontiguousarray(values, dtype="<f4").tobytes():
        h = ((h ^ b) * 0x100000001B3) & synthetic.MASK
    return f"{h:016x}"


def original_shapes(guidance):
    """The tensors of an original FLUX checkpoint with one block of each kind, by their names."""
    shapes = {}

    def linear(name, rows, columns):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    linear("img_in", WIDTH, 64)
    linear("txt_in", WIDTH, CONTEXT)
    for name, columns in [("time_in", 256), ("vector_in", POOLED)] + [("guidance_in", 256)] * guidance:
        linear(f"{name}.in_layer", WIDTH, columns)
        linear(f"{name}.out_layer", WIDTH, WIDTH)
    for stream in ["img", "txt"]:
        block = f"double_blocks.0.{stream}"
        linear(f"{block}_mod.lin", 6 * WIDTH, WIDTH)
        linear(f"{block}_attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}_attn.proj", WIDTH, WIDTH)
        linear(f"{block}_mlp.0", MLP, WIDTH)
        linear(f"{block}_mlp.2", WIDTH, MLP)
        shapes[f"{block}_attn.norm.query_norm.scale"] = shapes[f"{block}_attn.norm.key_norm.scale"] = (WIDTH // 2,)
    linear("single_blocks.0.modulation.lin", 3 * WIDTH, WIDTH)
    linear("single_blocks.0.linear1", 3 * WIDTH + MLP, WIDTH)
    linear("single_blocks.0.linear2", WIDTH, WIDTH + MLP)
    shapes["single_blocks.0.norm.query_norm.scale"] = shapes["single_blocks.0.norm.key_norm.scale"] = (WIDTH // 2,)
    linear("final_layer.linear", 64, WIDTH)
    linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    return shapes


def to_diffusers(tensors):
    """diffusers' conversion, for this width: the published one is a constant in it."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count("inner_dim = 3072") == 1
    scope = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {WIDTH}"), scope)
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
    return {k: v.numpy() for k, v in scope["convert_flux_transformer_checkpoint_to_diffusers"](tensors).items()}


def hashes(tensors):
    return {k: [list(v.shape), fnv(v)] for k, v in sorted(tensors.items())}


KINDS = {
    "double_blocks.0.img_attn.qkv": Q.Q8_0, "double_blocks.0.txt_attn.qkv": Q.Q4_0, "double_blocks.0.img_mlp.0": Q.Q5_0,
    "double_blocks.0.img_mlp.2": Q.Q5_1, "double_blocks.0.txt_mlp.0": Q.Q4_1, "double_blocks.0.txt_mlp.2": Q.Q8_0,
    "double_blocks.0.img_mod.lin": Q.F16, "double_blocks.0.txt_mod.lin": Q.BF16, "single_blocks.0.linear1": Q.Q5_1,
    "single_blocks.0.linear2": Q.Q4_0, "final_layer.adaLN_modulation.1": Q.Q8_0, "time_in.in_layer": Q.Q4_K,
    "guidance_in.in_layer": Q.Q6_K,
}


def gguf_file(path):
    """A FLUX checkpoint as city96's tools write it: original names, one-dimensional tensors in F32."""
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_quantization_version(2)
    writer.add_array("some.texts", ["a", "bc", ""])
    decoded = {}
    for name, shape in original_shapes(True).items():
        layer, param = name.rsplit(".", 1)
        values = synthetic.tensor(name, shape)
        kind = KINDS.get(layer, Q.F32) if param == "weight" else Q.F32
        if kind in (Q.Q4_K, Q.Q6_K):
            data = random_blocks(kind, shape[0], shape[1] // 256)
        else:
            data = gguf.quants.quantize(values, kind)
        decoded[name] = gguf.quants.dequantize(data, kind).reshape(shape)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def t5_names():
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    parts = ["layer.0.layer_norm", "layer.1.layer_norm", "layer.0.SelfAttention.relative_attention_bias"]
    parts += [f"layer.0.SelfAttention.{p}" for p in "qkvo"] + [f"layer.1.DenseReluDense.{p}" for p in ["wi_0", "wi_1", "wo"]]
    ours = ["shared", "encoder.final_layer_norm"] + [f"encoder.block.{i}.{p}" for i in range(2) for p in parts]
    return {f"{names.get_name(name)}.weight": f"{name}.weight" for name in ours}


def eight_bits():
    """Layers as ComfyUI scales them, as diffusers does it by row, unscaled, and of the other type."""
    make = lambda name, shape: torch.from_numpy(synthetic.tensor(name, shape))
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    file, expected = {"scaled_fp8": torch.zeros(2).to(e4m3)}, {}
    w, s = (make("one.weight", (20, 24)) / 0.013).to(e4m3), torch.tensor(0.013)
    file |= {"one.weight": w, "one.scale_weight": s, "one.scale_input": torch.tensor(2.0), "one.bias": make("one.bias", (20,))}
    expected["one"] = w.float() * s
    w, s = make("rows.weight", (20, 24)).to(e4m3), make("rows.scale", (20, 1)).abs()
    file |= {"rows.weight": w, "rows.weight_scale": s, "rows.input_scale": torch.ones(1), "rows.comfy_quant": torch.zeros(4, dtype=torch.uint8)}
    expected["rows"] = w.float() * s
    for name, kind in [("plain", e4m3), ("other", e5m2)]:
        file[f"{name}.weight"] = make(f"{name}.weight", (20, 24)).to(kind)
        expected[name] = file[f"{name}.weight"].float()
    w, s = make("half.weight", (20, 24)).half(), torch.tensor([0.5])
    file |= {"half.weight": w, "half.scale_weight": s}
    expected["half"] = w.float() * s
    return file, expected


if __name__ == "__main__":
    tensors = {}
    for kind in FORMATS:
        blocks = random_blocks(kind, 4, 2)
        name = kind.name.replace("_K", "K")
        tensors[f"{name}.blocks"] = torch.from_numpy(blocks)
        tensors[f"{name}.values"] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    codes = torch.arange(256, dtype=torch.uint8)
    tensors["F8E4M3.values"] = codes.view(torch.float8_e4m3fn).float()
    tensors["F8E5M2.values"] = codes.view(torch.float8_e5m2).float()

    texts = {"t5_names": t5_names()}
    for guidance in [False, True]:
        shapes = original_shapes(guidance)
        texts["original_guidance" if guidance else "original"] = {
            "shapes": shapes,
            "diffusers": hashes(to_diffusers({k: synthetic.tensor(k, s) for k, s in shapes.items()})),
        }
    texts["gguf"] = hashes(to_diffusers(gguf_file(FIXTURES / "quantised_flux.gguf")))

    file, expected = eight_bits()
    save_file(file, FIXTURES / "quantised_float8.safetensors")
    tensors |= {f"float8.{k}": v for k, v in expected.items()}
    save_file(tensors, FIXTURES / "quantised.safetensors", {k: json.dumps(v) for k, v in texts.items()})
