"""The formula of src/checkpoint/synthetic.rs in numpy: weights computed from a tensor's name.

    python synthetic.py > ../../src/checkpoint/synthetic_golden.in      (the golden values of its test)
"""
import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def fnv1a(name):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def scale_and_offset(name, shape):
    if len(shape) < 2:
        return (0.25, 1.0) if name.endswith(".weight") else (0.1, 0.0)
    if "embedding.weight" in name:
        return 0.5, 0.0
    if name.endswith(("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight")):
        gain = 2.0
    elif name.endswith("decoder.conv_out.weight"):
        gain = 0.6
    elif name.endswith("conv_out.weight"):
        gain = 1.6
    else:
        gain = 1.0
    return gain * np.sqrt(3.0 / np.prod(shape[1:])), 0.0


def tensor(name, shape, seed=0):
    scale, offset = scale_and_offset(name, shape)
    i = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name) ^ (seed * GOLDEN & MASK)) + i * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return (np.float32(offset) + np.float32(scale) * u).reshape(shape)


def fill(module, seed=0):
    """Gives every parameter of a torch module its synthetic value, by its key in the state dict."""
    import torch

    state = {k: torch.from_numpy(tensor(k, tuple(v.shape), seed)) for k, v in module.state_dict().items() if v.is_floating_point()}
    module.load_state_dict(state, strict=False)
    return module.eval()


if __name__ == "__main__":
    print("[")
    for name, shape, seed in [
        ("conv_in.weight", (32, 4, 3, 3), 0),
        ("conv_norm_out.weight", (32,), 0),
        ("conv_norm_out.bias", (32,), 7),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", (64, 64), 1),
        ("text_model.embeddings.token_embedding.weight", (100, 32), 0),
        ("decoder.conv_out.weight", (3, 16, 3, 3), 2**40 + 3),
    ]:
        v = ", ".join(f"{x:.9e}" for x in tensor(name, shape, seed).ravel()[:4])
        print(f'    ("{name}", vec!{list(shape)}, {seed}u64, [{v}]),')
    print("]")
