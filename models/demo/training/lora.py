"""Low-rank changes to a UNet's linear and convolutional layers, and their file in the kohya format.

The change is added to the weight, not computed beside it: for small layers a product of weights costs less than one of
activations. Keys and shapes are those of the published LCM-LoRA: `lora_unet_<layer with underscores>.lora_down.weight`
`(rank, in, kh, kw)`, `.lora_up.weight` `(out, rank, 1, 1)`, `.alpha`.
"""
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    def __init__(self, weight, rank):
        super().__init__()
        out, rest = weight.shape[0], weight[0].numel()
        self.rank = min(rank, out, rest)
        self.down = nn.Parameter(torch.randn(self.rank, rest) / rest ** 0.5)
        self.up = nn.Parameter(torch.zeros(out, self.rank))

    def forward(self, weight):
        return weight + (self.up @ self.down).view_as(weight)


# Layers outside the blocks: the published LCM-LoRA has none of them, and diffusers leaves them out of a kohya file.
OUTSIDE = ('conv_in', 'conv_out', 'time_embedding', 'add_embedding')


def adapt(unet, rank):
    """Freezes `unet` and adds a trained change to the layers of its blocks; returns name -> change."""
    unet.requires_grad_(False)
    changes = {}
    for name, module in list(unet.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith(OUTSIDE):
            change = LowRank(module.weight, rank).to(module.weight.device)
            parametrize.register_parametrization(module, 'weight', change)
            changes[name] = change
    return changes


def parameters(changes):
    return [p for change in changes.values() for p in change.parameters()]


def save(unet, changes, path, metadata):
    tensors = {}
    for name, change in changes.items():
        weight = unet.get_submodule(name).parametrizations.weight.original
        kernel = weight.shape[1:]
        key = 'lora_unet_' + name.replace('.', '_')
        tensors[key + '.lora_down.weight'] = change.down.detach().cpu().view(change.rank, *kernel).half().contiguous()
        tensors[key + '.lora_up.weight'] = change.up.detach().cpu().view(-1, change.rank, *[1] * (len(kernel) - 1)).half().contiguous()
        tensors[key + '.alpha'] = torch.tensor(float(change.rank)).half()
    save_file(tensors, path, metadata=metadata)
