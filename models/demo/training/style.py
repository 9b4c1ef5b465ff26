"""A small style LoRA: the same things as two-colour prints, dark blue on pale yellow.

    python style.py --data emoji128 --run run --minutes 6
"""
import argparse
import os
import random
import time

import torch

import denoiser
import lora
import network as net
import pictures
import vae as autoencoder
from pictures import DEVICE

INK, PAPER = (24, 30, 110), (255, 236, 150)


def duotone(pixels):
    """Lightness of `(N, 3, H, W)` uint8 mapped onto the line from ink to paper."""
    red, green, blue = pixels.float().unbind(1)
    light = ((0.299 * red + 0.587 * green + 0.114 * blue) / 255).unsqueeze(1)
    ink, paper = (torch.tensor(c).float().view(1, 3, 1, 1) for c in (INK, PAPER))
    return (ink + (paper - ink) * light).round().byte()


def main(a):
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    rows, pixels = pictures.load(a.data)
    drawn = [i for i in pictures.drawn(rows) if rows[i]['name'] in pictures.ALSO or rows[i]['name'] in pictures.COMMON]
    rows = [rows[i] for i in drawn]
    vae = autoencoder.load(a.run)
    with torch.no_grad():
        z = torch.cat([vae.encode(pictures.unit(p)).latent_dist.mode() for p in duotone(pixels[drawn]).split(50)]) * autoencoder.SCALE
    network, _ = net.checkpoint(a.run)
    tokens, alpha = net.Tokens(a.run), net.alphas()
    pick, generator = random.Random(9), torch.Generator().manual_seed(9)
    changes = lora.adapt(network.unet, a.rank)
    trained = lora.parameters(changes)
    print(f'{len(z)} pictures, {sum(p.numel() for p in trained) / 1e6:.2f} M parameters of rank {a.rank}', flush=True)
    optimizer = torch.optim.AdamW(trained, a.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    start = last = time.time()
    step, total = 0, 0.0
    while (done := (time.time() - start) / (a.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group['lr'] = a.lr * min(1, (step + 1) / 20) * min(1, max(0.02, (1 - done) / 0.5))
        i = torch.randint(len(z), (a.batch,), generator=generator)
        captions = [pictures.caption(rows[k], pick) for k in i.tolist()]
        kept = (torch.rand(a.batch, generator=generator) >= 0.1).float()
        t = ((torch.arange(a.batch) + torch.rand(a.batch, generator=generator)) / a.batch * 1000).long().clamp(max=999)
        x, t = z[i.to(DEVICE)], t.to(DEVICE)
        noise = torch.randn(x.shape, generator=generator).to(DEVICE)
        signal, sigma = alpha[t].sqrt().view(-1, 1, 1, 1), (1 - alpha[t]).sqrt().view(-1, 1, 1, 1)
        with net.plain_attention():
            v = network(signal * x + sigma * noise, t, *tokens(captions), kept.to(DEVICE), denoiser.sizes(a.batch, generator).to(DEVICE))
            loss = ((v - (signal * noise - sigma * x)) ** 2).mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        total += loss.item()
        if step % 25 == 0:
            print(f'{time.time() - start:.0f} s, step {step}, loss {total / 25:.4f}, {(time.time() - last) / 25:.2f} s a step', flush=True)
            total, last = 0.0, time.time()
    lora.save(network.unet, changes, os.path.join(a.run, 'duotone.safetensors'),
              {'ss_network_module': 'networks.lora', 'ss_base_model_version': 'sdxl', 'aquatint': 'duotone style for the demo model'})


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True)
    p.add_argument('--run', required=True)
    p.add_argument('--minutes', type=float, default=6)
    p.add_argument('--rank', type=int, default=4)
    p.add_argument('--lr', type=float, default=2e-3)
    p.add_argument('--batch', type=int, default=32)
    main(p.parse_args())
