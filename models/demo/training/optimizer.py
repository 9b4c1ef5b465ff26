"""AdamW for vectors and embeddings, Muon for matrices.

Muon (Jordan et al., 2024): the momentum of each weight matrix is replaced by its nearest orthogonal matrix, found by a
few Newton-Schulz steps; convolutions count as matrices `(out, in * height * width)`. The update is scaled to the size
AdamW's would have (Liu et al., 2025), so that one learning rate serves both.
"""
import torch


def orthogonal(batch):
    """Approximately U V^T of each matrix of `(batch, m, n)`, by five quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = batch.shape[1] > batch.shape[2]
    x = batch.transpose(1, 2) if tall else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(list(parameters), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group['params']:
                if p.grad is not None:
                    by_shape.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (m, n), same in by_shape.items():
                updates = []
                for p in same:
                    g = p.grad.view(m, n)
                    state = self.state[p]
                    if not state:
                        state['momentum'] = torch.zeros_like(g)
                    state['momentum'].lerp_(g, 1 - group['momentum'])
                    updates.append(torch.lerp(g, state['momentum'], group['momentum']))
                size = 0.2 * max(m, n) ** 0.5
                for p, u in zip(same, orthogonal(torch.stack(updates))):
                    p.mul_(1 - group['lr'] * group['weight_decay'])
                    p.add_(u.view_as(p), alpha=-group['lr'] * size)


def make(network, lr, muon=True):
    """Optimizers over all parameters of a network, in one list."""
    matrices, vectors, embeddings = [], [], []
    for name, p in network.named_parameters():
        if 'embedding.weight' in name and 'text_encoder' in name:
            embeddings.append(p)  # no decay: words that are seldom seen would fade
        elif p.ndim >= 2 and muon and 'conv_in' not in name and 'conv_out' not in name:
            matrices.append(p)
        else:
            vectors.append(p)
    adam = torch.optim.AdamW([dict(params=vectors, weight_decay=0.01), dict(params=embeddings, weight_decay=0.0)], lr, betas=(0.9, 0.99), fused=True)
    return [adam, Muon(matrices, lr)] if matrices else [adam]
