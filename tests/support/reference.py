"""Plain re-computations from the formulas of the papers, sharing no code with the package."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from layouts import LAYOUTS
from safetensors.torch import load_file
from sklearn.covariance import ledoit_wolf


def stored_tensors(folder):
    """Everything in a checkpoint, however many files it has."""
    tensors = {}
    for shard in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def spectral_row(matrices, router_row, top_c, select="router", sign="aligned"):
    """The spectral embedding of one expert, eigenvector by eigenvector, float64 `[H]`."""
    means = []
    for matrix in matrices:
        vectors = list(torch.linalg.svd(matrix.double(), full_matrices=False)[2])
        for position, v in enumerate(vectors):
            flip = router_row.double() @ v < 0 if sign == "aligned" else v[v.abs().argmax()] < 0
            vectors[position] = -v if flip else v
        vectors.sort(key=lambda v: float(router_row.double() @ v), reverse=True)
        kept = vectors[:top_c] if select == "router" else vectors
        means.append(sum(kept) / len(kept))
    return sum(means) / len(means)


def spectral_weights(folder, family, top_c, *, select="router", sign="aligned", scale="none"):
    """`W_EV [E,H]` of every sparse layer, float64."""
    tensors, layout = stored_tensors(folder), LAYOUTS[family]
    weights = {}
    for layer in layout.sparse:
        router = layout.router(tensors, layer)
        rows = [
            spectral_row(layout.matrices(tensors, layer, expert), row, top_c, select, sign)
            for expert, row in enumerate(router)
        ]
        weight = torch.stack(rows)
        if scale == "router":
            weight = weight / weight.norm(dim=1, keepdim=True) * router.norm(dim=1).mean()
        weights[layer] = weight
    return weights


def routers_of(model):
    """The live routers by layer index."""
    return LAYOUTS[model.config.model_type].routers(model)


@contextmanager
def watched(model):
    """Each router's input and output of every call, by layer index."""
    seen = {index: [] for index in routers_of(model)}
    handles = [
        router.register_forward_hook(
            lambda _module, args, output, index=index: seen[index].append((args[0].detach().clone(), output))
        )
        for index, router in routers_of(model).items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def mixed_probabilities(learned, spectral, alpha, mix="probs"):
    """The SSMoE scores over all experts."""
    if mix == "logits":
        return torch.softmax((1 - alpha) * learned + alpha * spectral, dim=-1)
    return (1 - alpha) * torch.softmax(learned, dim=-1) + alpha * torch.softmax(spectral, dim=-1)


def chosen_experts(probabilities, top_k, renormalise):
    """Weights and indices of the chosen experts, `[N,k]` each."""
    weights, index = probabilities.topk(top_k, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalise else weights), index


def renormalises(config):
    """Whether a family's top-k weights sum to one."""
    return config.model_type in ("mixtral", "gpt_oss") or config.norm_topk_prob


@contextmanager
def routed_by_hand(model, weights, alpha, mix="probs"):
    """A model whose routers' decisions are replaced from outside by those of the SSMoE formula."""

    def hook(index):
        def replace(router, args, output):
            x = args[0].reshape(-1, args[0].shape[-1])
            learned = torch.nn.functional.linear(x, router.weight, getattr(router, "bias", None))
            p = mixed_probabilities(learned.double(), x.double() @ weights[index].double().T, alpha, mix)
            chosen, experts = chosen_experts(p, router.top_k, renormalises(model.config))
            return (output[0], chosen.to(x.dtype), experts)

        return replace

    handles = [router.register_forward_hook(hook(index)) for index, router in routers_of(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def features_of(model, ids, weights, alpha, *, rerouted, mix="probs"):
    """Hidden state, learned logits, spectral logits and mixed weights at the last of some token ids, float64."""
    if rerouted:
        with routed_by_hand(model, weights, alpha, mix):
            return features_of(model, ids, weights, alpha, rerouted=False, mix=mix)
    with watched(model) as seen:
        output = model(input_ids=torch.tensor([ids]), use_cache=False)
    routers = routers_of(model)
    learned, spectral = {}, {}
    for index, calls in seen.items():
        [(x, _)] = calls
        x = x.reshape(-1, x.shape[-1])[-1]
        bias = getattr(routers[index], "bias", None)
        learned[index] = (x.double() @ routers[index].weight.double().T) + (0 if bias is None else bias.double())
        spectral[index] = x.double() @ weights[index].double().T
    return {
        "hidden": output.last_hidden_state[0, -1].double().numpy(),
        "logits": torch.cat(list(learned.values())).numpy(),
        "scores": torch.cat([torch.softmax(one, dim=-1) for one in learned.values()]).numpy(),
        "ev_logits": torch.cat(list(spectral.values())).numpy(),
        "weights": torch.cat([mixed_probabilities(learned[i], spectral[i], alpha, mix) for i in learned]).numpy(),
    }


SIGNALS = {"router": "logits", "moee": "logits", "ev": "ev_logits", "ssmoe": "weights"}


def blocks_of(method, features, signal=None):
    """The blocks of features that a method consists of."""
    blocks = [] if method in ("router", "ev") else [features["hidden"]]
    return blocks if method in ("smoe", "ssmoe-hidden") else [*blocks, features[signal or SIGNALS[method]]]


def calibrated(blocks, sample_blocks, calibration):
    """Blocks of one text on the scale of the sample's."""
    if calibration == "none":
        return blocks
    scaled = []
    for block, sample in zip(blocks, zip(*sample_blocks, strict=True), strict=True):
        matrix = np.stack(sample)
        centred = block - matrix.mean(axis=0)
        if calibration == "standardize":
            scaled.append(centred / matrix.std(axis=0))
        else:
            values, vectors = np.linalg.eigh(ledoit_wolf(matrix)[0])
            scaled.append(centred @ vectors @ np.diag(values**-0.5) @ vectors.T)
    return scaled


def combined(blocks, combination, routing_weight=1.0):
    """One vector of several blocks; the routing block, if there is a hidden one, comes second."""
    if combination == "concat":
        return np.concatenate(blocks)
    weights = [1.0, routing_weight] if len(blocks) == 2 else [1.0]
    return np.concatenate([np.sqrt(w) * b / np.linalg.norm(b) for w, b in zip(weights, blocks, strict=True)])
