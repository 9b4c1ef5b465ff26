"""Whether pictures follow their prompts: a probe that has seen only real pictures names what generated ones show.

    python probe.py train --data emoji128 --run run
    python probe.py check --data emoji128 --run run --model .. [--lora ../lora/lcm-lora.safetensors --steps 4 --guidance 1]

The probe is a small convolutional network that tells 40 common things apart, trained on their real pictures in all six
styles, one of each thing held back. Generated pictures: 25 seeds of each prompt; the control compares
the same pictures with the prompts in another order.
"""
import argparse
import os
import random
import time

import torch
import torch.nn.functional as F
from torch import nn

import pictures
import sheet

THINGS = '''red apple;banana;strawberry;grapes;lemon;watermelon;carrot;hamburger;pizza;doughnut;ice cream;birthday cake;hot beverage;
cat face;dog face;lion;panda;frog;pig face;tropical fish;octopus;butterfly;penguin;turtle;rose;sunflower;cactus;evergreen tree;red heart;star;
crescent moon;rainbow;snowman;automobile;bicycle;rocket;soccer ball;guitar;key;umbrella'''.replace('\n', '').split(';')
ASKED = {'hot beverage': 'a cup of coffee', 'automobile': 'a car', 'pizza': 'a slice of pizza', 'star': 'a yellow star'}
SIDE = 48


def prompt(name):
    return ASKED.get(name, ('an ' if name[0] in 'aeiou' else 'a ') + name)


def probe():
    def block(i, o, stride):
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True))
    return nn.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 64, 1), block(64, 128, 2), block(128, 128, 1),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 128, len(THINGS)))


def small(pixels):
    return F.interpolate(pictures.unit(pixels).cpu(), size=SIDE, mode='area')


def augmented(x, generator):
    """Shifted, scaled, turned a little, recoloured a little, sometimes blurred as a small autoencoder does."""
    n = len(x)
    angle, scale = (torch.rand(n, generator=generator) - 0.5) * 0.5, 0.85 + 0.4 * torch.rand(n, generator=generator)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = (torch.rand(n, 2, generator=generator) - 0.5) * 0.3
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    x = 1 + F.grid_sample(x - 1, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)  # white around
    gain = 0.8 + 0.4 * torch.rand(n, 3, 1, 1, generator=generator)
    x = ((x + 1) * gain - 1).clamp(-1, 1)
    soft = F.interpolate(F.avg_pool2d(x, 2), size=SIDE, mode='bilinear')
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.4, soft, x) + 0.03 * torch.randn(x.shape, generator=generator)


def train(a):
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    rows, pixels = pictures.load(a.data)
    real = [i for i, r in enumerate(rows) if r['name'] in THINGS]
    labels = torch.tensor([THINGS.index(rows[i]['name']) for i in real])
    pick = random.Random(2)
    held = torch.tensor([pick.choice((labels == k).nonzero()[:, 0].tolist()) for k in range(len(THINGS))])
    weight = torch.ones(len(real))
    weight[held] = 0
    x = small(pixels[real])
    net = probe()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.02)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (a.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group['lr'] = 3e-3 * min(1, (step + 1) / 50) * max(0.01, 1 - done)
        i = torch.multinomial(weight, 64, True, generator=generator)
        loss = F.cross_entropy(net(augmented(x[i], generator)), labels[i], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f'{time.time() - start:.0f} s, step {step}, loss {loss.item():.3f}', flush=True)
    net.eval()
    with torch.no_grad():
        right = (net(x[held]).argmax(1) == torch.arange(len(THINGS))).float().mean().item()
    print(f'{len(real) - len(held)} real pictures learned; of {len(held)} held back {right:.1%} named right')
    torch.save(net.state_dict(), os.path.join(a.run, 'probe.pt'))


def check(a):
    net = probe()
    net.load_state_dict(torch.load(os.path.join(a.run, 'probe.pt')))
    net.eval()
    pipe = sheet.load(a.model, a.lora)
    right = shuffled = total = 0
    worst = []
    for k, name in enumerate(THINGS):
        with torch.no_grad():
            made = pipe(prompt(name), num_inference_steps=a.steps, guidance_scale=a.guidance, width=128, height=128, output_type='pt',
                        num_images_per_prompt=a.seeds, generator=[torch.Generator().manual_seed(1000 * k + s) for s in range(a.seeds)]).images
            named = net(F.interpolate(made * 2 - 1, size=SIDE, mode='area')).argmax(1)
        right += (named == k).sum().item()
        shuffled += (named == (k + 7) % len(THINGS)).sum().item()
        total += a.seeds
        worst.append(((named == k).float().mean().item(), name))
    print(f'{total} pictures, {a.steps} steps, guidance {a.guidance}, lora {a.lora}: {right / total:.1%} named right, prompts shuffled {shuffled / total:.1%}')
    print('least:', ', '.join(f'{n} {v:.0%}' for v, n in sorted(worst)[:8]))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('train', 'check'))
    p.add_argument('--data', required=True)
    p.add_argument('--run', required=True)
    p.add_argument('--minutes', type=float, default=4)
    p.add_argument('--model')
    p.add_argument('--lora')
    p.add_argument('--steps', type=int, default=25)
    p.add_argument('--guidance', type=float, default=4.0)
    p.add_argument('--seeds', type=int, default=25)
    a = p.parse_args()
    {'train': train, 'check': check}[a.what](a)
