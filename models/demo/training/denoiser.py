"""UNet and text encoders, trained together on v-prediction.

    python denoiser.py --data emoji128 --run run --minutes 90 [--resume]
"""
import argparse
import os
import random
import time

import numpy as np
import torch

import network as net
import optimizer
import pictures
import vae as autoencoder
from pictures import DEVICE


def latents(a):
    """Latents (variance 1) and rows of everything that is drawn, made once."""
    path = os.path.join(a.run, 'latents.pt')
    if not os.path.exists(path):
        rows, pixels = pictures.load(a.data)
        drawn = pictures.drawn(rows)
        made, words = pictures.scenes(rows, pixels, drawn)
        vae = autoencoder.load(a.run)
        with torch.no_grad():
            z = torch.cat([vae.encode(pictures.unit(p)).latent_dist.mode() for p in torch.cat([pixels[drawn], made]).split(50)])
        torch.save(dict(z=z.cpu() * autoencoder.SCALE, rows=[rows[i] for i in drawn] + words), path)
    saved = torch.load(path)
    return saved['z'], saved['rows']


def chances(rows, scenes):
    """How often each row is drawn; `scenes` of all draws are made-up scenes."""
    w = torch.tensor([0.0 if 'scene' in r else pictures.weight(r) for r in rows])
    made = torch.tensor([1.0 if 'scene' in r else 0.0 for r in rows])
    return w / w.sum() * (1 - scenes) + made / made.sum() * scenes


def sizes(count, generator):
    """SDXL's six numbers: original size, corner of the crop, target size. One in ten has another original size."""
    out = torch.full((count, 6), 128.0)
    out[:, 2:4] = 0
    other = torch.rand(count, generator=generator) < 0.1
    out[other, :2] = torch.randint(1, 9, (int(other.sum()), 2), generator=generator) * 128.0
    return out


def main(a):
    torch.set_flush_denormal(True)  # moments of seldom seen words decay into denormals, which are slow
    z, rows = latents(a)
    saved = torch.load(os.path.join(a.run, 'checkpoint.pt'), map_location=DEVICE) if a.resume else None
    channels = tuple(saved['channels']) if saved else tuple(int(c) for c in a.channels.split(','))
    torch.manual_seed(0)
    network = net.Network(channels).train().to(DEVICE)
    optimizers = optimizer.make(network, a.lr, muon=not a.adam)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    step, spent = 0, 0.0
    if saved:
        network.load_state_dict(saved['network'])
        average, step, spent = saved['average'], saved['step'], saved['spent']
        for o, s in zip(optimizers, saved['optimizers']):
            o.load_state_dict(s)
    print({n: f'{sum(p.numel() for p in m.parameters()) / 1e6:.2f} M' for n, m in network.named_children()}, len(rows), 'pictures', flush=True)
    tokens, chance, alpha = net.Tokens(a.run), chances(rows, 0.22), net.alphas()
    pick, generator = random.Random(step + 1), torch.Generator().manual_seed(step + 1)

    def save():
        path = os.path.join(a.run, 'checkpoint.pt')
        torch.save(dict(network=network.state_dict(), average=average, optimizers=[o.state_dict() for o in optimizers],
                        channels=channels, step=step, spent=spent + time.time() - start), path + '.part')
        os.replace(path + '.part', path)

    start = last = saved_at = time.time()
    losses = []
    while (done := (time.time() - start) / (a.minutes * 60)) < 1:
        rate = a.lr * min(1, (step + 1) / 100) * min(1, max(0.01, (1 - done) / a.decay))
        for o in optimizers:
            for group in o.param_groups:
                group['lr'] = rate
        index = torch.multinomial(chance, a.batch, True, generator=generator)
        kept, captions = torch.ones(a.batch), []
        for b, k in enumerate(index.tolist()):
            # One in ten without a caption: six with SDXL's zeroed embedding, four with the encoded empty prompt.
            u = pick.random()
            captions.append('' if u < 0.1 else pictures.caption(rows[k], pick))
            kept[b] = 0.0 if u < 0.06 else 1.0
        t = ((torch.arange(a.batch) + torch.rand(a.batch, generator=generator)) / a.batch * 1000).long().clamp(max=999)
        x = z[index].to(DEVICE)
        noise, t = torch.randn(x.shape, generator=generator).to(DEVICE), t.to(DEVICE)
        signal, sigma = alpha[t].sqrt().view(-1, 1, 1, 1), (1 - alpha[t]).sqrt().view(-1, 1, 1, 1)
        with net.plain_attention():
            v = network(signal * x + sigma * noise, t, *tokens(captions), kept.to(DEVICE), sizes(a.batch, generator).to(DEVICE))
            error = ((v - (signal * noise - sigma * x)) ** 2).mean((1, 2, 3))
            error.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        if step % 4 == 0:
            keep = min(0.999 ** 4, 1 - 4 / (step / 8 + 8))
            now = network.state_dict()
            torch._foreach_lerp_([average[k] for k in now if now[k].is_floating_point()], [now[k] for k in now if now[k].is_floating_point()], 1 - keep)
        losses.append([error.mean().item(), error[t > 700].mean().item(), error[(t > 300) & (t <= 700)].mean().item(), error[t <= 300].mean().item()])
        if time.time() - last > 30:
            q = np.mean(losses, 0)
            print(f'{spent + time.time() - start:.0f} s, step {step}, {step * a.batch} samples, loss {q[0]:.4f} (t > 700: {q[1]:.4f}, 300-700: {q[2]:.4f}, < 300: {q[3]:.4f}), '
                  f'lr {rate:.1e}, {(time.time() - last) / len(losses):.2f} s a step', flush=True)
            losses, last = [], time.time()
        if time.time() - saved_at > 180:
            save()
            saved_at = time.time()
    save()


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True)
    p.add_argument('--run', required=True)
    p.add_argument('--minutes', type=float, default=90)
    p.add_argument('--lr', type=float, default=1.5e-3)
    p.add_argument('--batch', type=int, default=48)
    p.add_argument('--channels', default='48,96,192')
    p.add_argument('--decay', type=float, default=0.3, help='share of the time at the end over which the rate falls to zero')
    p.add_argument('--adam', action='store_true', help='AdamW for everything')
    p.add_argument('--resume', action='store_true')
    main(p.parse_args())
