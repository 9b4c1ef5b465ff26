"""The autoencoder: trained alone, first of all, and its latents brought to SDXL's scale.

    python vae.py --data emoji128 --run run --minutes 15 [--start vae-folder-or-checkpoint]
    python vae.py --data emoji128 --run run --minutes 15 --decoder-only     (later: the latents stay as they are)
"""
import argparse
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

import pictures

SCALE = 0.13025  # SDXL's scaling factor, kept: z * SCALE has mean 0 and variance 1 in every channel


def new():
    return AutoencoderKL(
        block_out_channels=(16, 48, 64, 96), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=128,
        down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
        scaling_factor=SCALE, force_upcast=False)


def load(run):
    vae = new()
    vae.load_state_dict(torch.load(os.path.join(run, 'vae.pt'), map_location='cpu'))
    return vae.eval().to(pictures.DEVICE)


def edges(y, x):
    """L1 of the first differences at two scales: keeps lines where plain L1 smears them."""
    d, total = y - x, 0
    for _ in range(2):
        total = total + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
        d = F.avg_pool2d(d, 2)
    return total


def chroma(y, x):
    """Opponent colours and lightness of 4 px averages. Without it the code drops a colour axis: green comes back brown."""
    r, g, b = F.avg_pool2d(y - x, 4).unbind(1)
    return sum(v.abs().mean() + 2 * (v * v).mean() for v in (r - g, b - (r + g) / 2, (r + g + b) / 3))


@torch.no_grad()
def psnr(vae, pixels):
    """Mean over pictures, dB, of the deterministic reconstruction."""
    out = []
    for part in pixels.split(20):
        x = pictures.unit(part)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        out += (-10 * torch.log10(((y - x) ** 2).mean((1, 2, 3)) / 4)).tolist()
    return float(np.mean(out))


@torch.no_grad()
def sheet(vae, pixels, path):
    """Pictures above their reconstructions, twelve in a row."""
    pixels = pixels[:len(pixels) // 12 * 12]
    x = pictures.unit(pixels)
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    rows = [torch.cat([torch.cat(list(v[i:i + 12]), 2) for v in (x, y)], 1) for i in range(0, len(x), 12)]
    picture = ((torch.cat(rows, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(picture).save(path)


def normalise(vae, pixels):
    """Folds shift and scale of each channel into the 1x1 quant convolutions, exactly. Doing it twice changes nothing."""
    with torch.no_grad():
        z = torch.cat([vae.encode(pictures.unit(p)).latent_dist.mode() for p in pixels.split(50)])
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)) * SCALE
        quant, post = vae.quant_conv, vae.post_quant_conv
        quant.weight[:4] /= std.view(4, 1, 1, 1)
        quant.bias[:4] = (quant.bias[:4] - mean) / std
        quant.bias[4:] -= 2 * std.log()
        post.bias += post.weight[:, :, 0, 0] @ mean
        post.weight *= std.view(1, 4, 1, 1)


def main(a):
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    pick = np.random.default_rng(0)
    rows, pixels = pictures.load(a.data)
    held = np.array(sorted(np.random.default_rng(1).choice(len(rows), 200, replace=False)))
    drawn = np.setdiff1d(pictures.drawn(rows), held)
    others = np.setdiff1d(np.arange(len(rows)), np.concatenate([held, drawn]))
    made, _ = pictures.scenes(rows, pixels, drawn.tolist())
    everything = torch.cat([pixels, made])
    sources = [drawn, others, np.arange(len(rows), len(everything))]

    vae = new()
    if a.start and os.path.isdir(a.start):
        vae = AutoencoderKL.from_pretrained(a.start, torch_dtype=torch.float32)
    elif a.start:
        vae.load_state_dict(torch.load(a.start, map_location='cpu'))
    vae.to(pictures.DEVICE)
    if not a.decoder_only and a.start:
        with torch.no_grad():  # back to unit variance, where the KL term has its meaning
            vae.quant_conv.weight[:4] *= SCALE
            vae.quant_conv.bias[:4] *= SCALE
            vae.quant_conv.bias[4:] += 2 * math.log(SCALE)
            vae.post_quant_conv.weight /= SCALE
    trained = list(vae.decoder.parameters()) + list(vae.post_quant_conv.parameters()) if a.decoder_only else list(vae.parameters())
    if a.decoder_only:
        vae.requires_grad_(False)
        for p in trained:
            p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, a.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    print(f'{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters, held-back PSNR {psnr(vae, pixels[held]):.2f} dB', flush=True)

    start = last = time.time()
    step, sums = 0, np.zeros(3)
    while (done := (time.time() - start) / (a.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group['lr'] = a.lr * min(1, (step + 1) / 60) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        count = a.batch * 4 if done < a.crops else a.batch
        index = [pick.choice(sources[k]) for k in pick.choice(3, count, p=(0.6, 0.2, 0.2))]
        if done < a.crops:  # 64 px crops first: four times as many pictures a step at the same cost
            corner = pick.integers(0, 65, (count, 2))
            x = pictures.unit(torch.stack([everything[k, :, u:u + 64, v:v + 64] for k, (u, v) in zip(index, corner)]))
        else:
            x = pictures.unit(everything[index])
        if a.decoder_only:
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mode()
            kl = torch.zeros((), device=z.device)
            y = vae.decode(z + a.jitter / SCALE * torch.randn_like(z)).sample
        else:
            latent = vae.encode(x).latent_dist
            kl = 0.5 * (latent.mean ** 2 + latent.var - 1 - latent.logvar).mean()
            y = vae.decode(latent.sample()).sample
        l1, edge = (y - x).abs().mean(), edges(y, x)
        (l1 + 0.5 * edge + chroma(y, x) + 2e-4 * kl).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        sums += l1.item(), edge.item(), kl.item()
        if step % 40 == 0:
            now = time.time()
            print(f'{now - start:.0f} s, step {step}, {(now - last) / 40:.2f} s a step, l1 {sums[0] / 40:.4f}, edge {sums[1] / 40:.4f}, kl {sums[2] / 40:.2f}', flush=True)
            last, sums = now, np.zeros(3)
    vae.eval()
    if not a.decoder_only:
        normalise(vae, everything[np.concatenate([drawn, sources[2]])])
    print(f'{step} steps, {step * a.batch} full pictures at most; PSNR held back {psnr(vae, pixels[held]):.2f} dB, drawn {psnr(vae, pixels[drawn[::10]]):.2f} dB')
    torch.save(vae.state_dict(), os.path.join(a.run, 'vae.pt'))
    sheet(vae, pixels[drawn[5::60][:36]], os.path.join(a.run, 'vae.png'))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True)
    p.add_argument('--run', required=True)
    p.add_argument('--minutes', type=float, default=15)
    p.add_argument('--lr', type=float, default=1.5e-3)
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--crops', type=float, default=0.5, help='share of the time spent on 64 px crops')
    p.add_argument('--start')
    p.add_argument('--decoder-only', action='store_true')
    p.add_argument('--jitter', type=float, default=0.03, help='noise on the latents (variance 1) when only the decoder is trained')
    main(p.parse_args())
