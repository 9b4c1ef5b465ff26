"""The model's shape: two CLIP text encoders, the UNet with `text_time` conditioning, the noise schedule."""
import os
from contextlib import nullcontext

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pictures import DEVICE
from tokenizer import LENGTH, VOCABULARY

LATENT = 16


def text_encoders():
    def config(width, activation, heads):
        # eos_token_id 2 as in the published configs: the pooled state is then taken at the highest id, which is the end mark.
        return CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, projection_dim=width, num_hidden_layers=3, num_attention_heads=heads,
            vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_act=activation, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    return CLIPTextModel(config(64, 'quick_gelu', 2)), CLIPTextModelWithProjection(config(96, 'gelu', 3))


def unet(channels):
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=channels,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'), transformer_layers_per_block=[1, 1, 1],
        attention_head_dim=[max(1, c // 32) for c in channels], use_linear_projection=True, cross_attention_dim=160,
        addition_embed_type='text_time', addition_time_embed_dim=32, projection_class_embeddings_input_dim=6 * 32 + 96, norm_num_groups=16)


# Zero terminal SNR and trailing steps: all pictures stand on white, and a schedule that never reaches pure noise
# leaves its first step unable to set the ground's colour. That asks for v-prediction.
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', prediction_type='v_prediction',
    rescale_betas_zero_snr=True, timestep_spacing='trailing', steps_offset=1)


def scheduler():
    return EulerDiscreteScheduler(**SCHEDULE)


def alphas():
    """Cumulative products of 1 - beta, `(1000,)`, the last one 0."""
    betas = torch.linspace(SCHEDULE['beta_start'] ** 0.5, SCHEDULE['beta_end'] ** 0.5, 1000) ** 2
    return torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0).to(DEVICE)


class Network(torch.nn.Module):
    """Text encoders and UNet as one module, called with token ids."""

    def __init__(self, channels):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoders()
        self.unet = unet(channels)

    def encode(self, ids, ids_2, kept):
        """SDXL's conditioning: last but one states of both encoders, pooled text of the second; `kept` 0 zeroes both."""
        one = self.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        two = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([one, two.hidden_states[-2]], -1) * kept[:, None, None], two.text_embeds * kept[:, None]

    def forward(self, x, t, ids, ids_2, kept, sizes):
        states, pooled = self.encode(ids, ids_2, kept)
        return self.unet(x, t, states, added_cond_kwargs=dict(text_embeds=pooled, time_ids=sizes), return_dict=False)[0]


def plain_attention():
    """On a CPU the plain attention trains faster than the fused one."""
    return nullcontext() if DEVICE.type == 'cuda' else sdpa_kernel(SDPBackend.MATH)


class Tokens:
    """Token ids of captions, remembered."""

    def __init__(self, run):
        self.tokenizers = [CLIPTokenizer.from_pretrained(os.path.join(run, n)) for n in ('tokenizer', 'tokenizer_2')]
        self.known = {}

    def __call__(self, captions):
        for c in captions:
            if c not in self.known:
                self.known[c] = [torch.tensor(t(c, padding='max_length', max_length=LENGTH, truncation=True).input_ids) for t in self.tokenizers]
        return [torch.stack([self.known[c][k] for c in captions]).to(DEVICE) for k in (0, 1)]


def checkpoint(run, name='checkpoint.pt'):
    """The averaged network of a run, ready to draw."""
    saved = torch.load(os.path.join(run, name), map_location='cpu')
    network = Network(tuple(saved['channels']))
    network.load_state_dict(saved['average'])
    return network.eval().requires_grad_(False).to(DEVICE), saved
