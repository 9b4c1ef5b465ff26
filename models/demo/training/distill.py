"""An LCM-LoRA of the trained denoiser: pictures in 4 steps without guidance.

    python distill.py --data emoji128 --run run --minutes 20

Consistency distillation (Luo et al., 2023, "LCM-LoRA") with the targets found by running the teacher out: from a noised
latent at one of the sampler's timesteps, DDIM with guidance goes down to a picture, and the student learns to name that
picture at once from every latent on the way. The original learns from its own guess one step further down, which needs
no whole run of the teacher but many times the updates; at this size whole runs are cheap.
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
from pictures import DEVICE

TIMESTEPS = [999, 759, 499, 259]  # the LCM sampler's, 4 steps of 50 of 1000
EVERY = 80  # the teacher's stride
SIZES = [128.0, 128.0, 0.0, 0.0, 128.0, 128.0]


@torch.no_grad()
def runs(network, z, rows, tokens, chance, alpha, pick, generator, count, guidance, start):
    """`count` runs of the teacher from timestep `start`: latents and timesteps on the way, ends, conditioning."""
    index = torch.multinomial(chance, count, True, generator=generator)
    captions = [pictures.caption(rows[k], pick) for k in index.tolist()]
    kept = torch.cat([torch.ones(count), torch.zeros(count)]).to(DEVICE)
    states, pooled = network.encode(*tokens(captions + [''] * count), kept)
    sizes = torch.tensor(SIZES, device=DEVICE).expand(2 * count, 6)
    noise = torch.randn(z[index].shape, generator=generator).to(DEVICE)
    x = alpha[start].sqrt() * z[index].to(DEVICE) + (1 - alpha[start]).sqrt() * noise
    way, t = [], start
    while t >= 0:
        way.append((x, t))
        v = network.unet(torch.cat([x, x]), t, states, added_cond_kwargs=dict(text_embeds=pooled, time_ids=sizes), return_dict=False)[0]
        conditional, empty = v.chunk(2)
        v = empty + guidance * (conditional - empty)
        signal, sigma = alpha[t].sqrt(), (1 - alpha[t]).sqrt()
        clean, epsilon = signal * x - sigma * v, sigma * x + signal * v
        t -= EVERY
        x = clean if t < 0 else alpha[t].sqrt() * clean + (1 - alpha[t]).sqrt() * epsilon
    return way, x, states[:count], pooled[:count]


def main(a):
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    z, rows = denoiser.latents(a)
    network, _ = net.checkpoint(a.run)
    tokens, chance, alpha = net.Tokens(a.run), denoiser.chances(rows, 0.2), net.alphas()
    pick, generator = random.Random(5), torch.Generator().manual_seed(5)
    begun = time.time()
    xs, ts, ends, states, pooled, which = [], [], [], [], [], []
    batch, made = 32, 0
    while time.time() - begun < a.minutes * 60 * 0.4:
        start = TIMESTEPS[made % 4] if made % 8 < 4 else 999
        way, end, s, p = runs(network, z, rows, tokens, chance, alpha, pick, generator, batch, a.guidance, start)
        for k, (x, t) in enumerate(way):
            # The sampler's own timesteps are kept, of the others on the way every second.
            if k == 0 or k % 2 == 1:
                xs.append(x.half()), ts.append(torch.full((batch,), t, device=DEVICE)), ends.append(end.half())
                which.append(torch.arange(batch, device=DEVICE) + made * batch)
        states.append(s.half()), pooled.append(p.half())
        made += 1
    xs, ts, ends, which, states, pooled = (torch.cat(v) for v in (xs, ts, ends, which, states, pooled))
    print(f'{made * batch} runs of the teacher, {len(xs)} pairs, {time.time() - begun:.0f} s', flush=True)

    changes = lora.adapt(network.unet, a.rank)
    trained = lora.parameters(changes)
    print(f'{sum(p.numel() for p in trained) / 1e6:.2f} M parameters of rank {a.rank}')
    optimizer = torch.optim.AdamW(trained, a.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in trained]
    weight = torch.where((ts.cpu().unsqueeze(1) == torch.tensor(TIMESTEPS)).any(1), 4.0, 1.0)
    start = last = time.time()
    rest = a.minutes * 60 - (start - begun)
    step, total, size = 0, 0.0, torch.tensor(SIZES, device=DEVICE)
    while (done := (time.time() - start) / rest) < 1:
        for group in optimizer.param_groups:
            group['lr'] = a.lr * min(1, (step + 1) / 50) * min(1, max(0.02, (1 - done) / 0.5))
        i = torch.multinomial(weight, a.batch, True, generator=generator).to(DEVICE)
        t, x, end = ts[i], xs[i].float(), ends[i].float()
        signal, sigma = alpha[t].sqrt().view(-1, 1, 1, 1), (1 - alpha[t]).sqrt().view(-1, 1, 1, 1)
        with net.plain_attention():
            v = network.unet(x, t, states[which[i]].float(), added_cond_kwargs=dict(text_embeds=pooled[which[i]].float(), time_ids=size.expand(a.batch, 6)), return_dict=False)[0]
            error = signal * x - sigma * v - end
            loss = ((error ** 2 + 0.03 ** 2).sqrt() - 0.03).mean()  # pseudo-Huber, as the consistency papers take
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1 - min(0.99, step / (step + 10)))
        total += loss.item()
        if step % 50 == 0:
            print(f'{time.time() - start:.0f} s, step {step}, loss {total / 50:.4f}, {(time.time() - last) / 50:.2f} s a step', flush=True)
            total, last = 0.0, time.time()
    with torch.no_grad():
        for p, mean in zip(trained, average):
            p.copy_(mean)
    lora.save(network.unet, changes, os.path.join(a.run, 'lcm-lora.safetensors'),
              {'ss_network_module': 'networks.lora', 'ss_base_model_version': 'sdxl', 'aquatint': 'LCM-LoRA of the demo model'})


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True)
    p.add_argument('--run', required=True)
    p.add_argument('--minutes', type=float, default=20)
    p.add_argument('--guidance', type=float, default=3.5, help="the teacher's, built into the student")
    p.add_argument('--rank', type=int, default=24)
    p.add_argument('--lr', type=float, default=1e-3)
    p.add_argument('--batch', type=int, default=32)
    main(p.parse_args())
