"""Spectral embeddings against a plain re-computation by `torch.linalg.svd` in float64."""

import threading
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from ssmoe_embed.spectral import decomposition, eigenvectors
from ssmoe_embed.spectral.eigenvectors import spectral_embedding, spectral_embeddings
from ssmoe_embed.spectral.settings import Selection, Sign, SpectralSettings

SHAPES = {"wide": (24, 40), "square": (32, 32), "tall": (56, 20), "one row": (1, 16), "one column": (9, 1)}
SPECTRA = {
    "flat": lambda m: torch.linspace(2, 1, m),
    "decaying": lambda m: torch.logspace(0, -6, m),
    "steep": lambda m: torch.logspace(0, -7.5, m),
    "clustered": lambda m: 1 + 1e-5 * torch.arange(m) * (torch.arange(m) % 4 > 0) + (torch.arange(m) // 4),
    "rank-deficient": lambda m: torch.linspace(2, 1, m) * (torch.arange(m) <= m // 2),
    "steep and rank-deficient": lambda m: torch.logspace(0, -7, m) * (torch.arange(m) <= m // 2),
}


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def matrix(shape, spectrum="flat", seed=0):
    m = min(shape)
    values = SPECTRA[spectrum](m).double()
    return (orthonormal(shape[0], m, seed) * values) @ orthonormal(shape[1], m, seed + 1).T


def row(size, seed=9):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_svd(matrices, r, how):
    """The formulas of steps 1-3, vector by vector."""
    means = []
    for W in matrices:
        W = W.float() if how.sign == Sign.RAW else W.double()
        _, values, vectors = torch.linalg.svd(W, full_matrices=False)
        if how.sign != Sign.RAW:
            vectors = vectors[values > 1e-10 * values[0]]
        signed = []
        for v in vectors.double():
            if how.sign == Sign.ALIGNED and r.double() @ v < 0:
                v = -v
            if how.sign == Sign.CANONICAL and v[v.abs().argmax()] < 0:
                v = -v
            signed.append(v)
        signed.sort(key=lambda v: -(r.double() @ v))
        kept = len(signed) if how.select == Selection.AVERAGE else min(how.count(min(W.shape)), len(signed))
        means.append(torch.stack(signed[:kept]).mean(0))
    return torch.stack(means).mean(0)


def assert_same(ours, expected, atol=2e-6):
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected.double(), rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:top_c")
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("select", Selection)
@pytest.mark.parametrize("sign", [Sign.ALIGNED, Sign.CANONICAL])
def test_equals_the_formulas(select, sign, shape, spectrum):
    how = SpectralSettings(top_c=5, select=select, sign=sign)
    matrices = [matrix(shape, spectrum, seed) for seed in (1, 2, 3)]
    atol = 1e-5 if spectrum == "steep" else 2e-6  # beyond what float32 weights can hold
    assert_same(spectral_embedding(matrices, row(shape[1]), how), by_svd(matrices, row(shape[1]), how), atol)


@pytest.mark.parametrize("shape", [(24, 40), (32, 32), (56, 20)])
@pytest.mark.parametrize("sign", [Sign.ALIGNED, Sign.CANONICAL])
@pytest.mark.parametrize("spectrum", ["flat", "rank-deficient"])
def test_the_way_of_a_gpu_equals_the_formulas(spectrum, sign, shape, monkeypatch):
    monkeypatch.setattr(eigenvectors, "ImplicitVectors", decomposition.DenseVectors.from_eigh)
    how = SpectralSettings(top_c=5, sign=sign)
    W = [matrix(shape, spectrum, seed) for seed in (1, 2)]
    assert_same(spectral_embedding(W, row(shape[1]), how), by_svd(W, row(shape[1]), how))


@pytest.mark.parametrize("shape", [(24, 40), (32, 32), (56, 20)])
@pytest.mark.parametrize("select", Selection)
def test_raw_signs_are_those_of_the_float32_svd(select, shape):
    how = SpectralSettings(top_c=5, select=select, sign="raw")
    matrices = [matrix(shape, seed=seed).float() for seed in (1, 2)]
    assert_same(spectral_embedding(matrices, row(shape[1]), how), by_svd(matrices, row(shape[1]), how))


def test_formed_in_blocks_equals_formed_at_once(monkeypatch):
    how = SpectralSettings(top_c=5, sign="canonical")
    whole = spectral_embedding([matrix((24, 40))], row(40), how)
    monkeypatch.setattr(decomposition, "BLOCK", 7)
    assert_same(spectral_embedding([matrix((24, 40))], row(40), how), whole)


def test_a_float_top_c_is_a_share_of_the_smaller_side():
    share, count = SpectralSettings(top_c=0.25), SpectralSettings(top_c=6)
    W = [matrix((24, 40))]
    assert torch.equal(spectral_embedding(W, row(40), share), spectral_embedding(W, row(40), count))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(24, 40), (32, 32), (56, 20)]),
    st.sampled_from(["flat", "decaying", "rank-deficient"]),
    st.integers(0, 1000),
    st.floats(1e-20, 1e20),
    st.sampled_from([Sign.ALIGNED, Sign.CANONICAL]),
)
def test_rotating_negating_or_scaling_the_rows_changes_nothing(shape, spectrum, seed, scale, sign):
    how = SpectralSettings(top_c=4, sign=sign)
    W, r = matrix(shape, spectrum, seed), row(shape[1], seed + 2)
    expected = spectral_embedding([W], r, how)
    rotation = orthonormal(shape[0], shape[0], seed + 3)
    for same in (rotation @ W, -W, scale * W, W.flip(0)):
        assert_same(spectral_embedding([same], r, how), expected, atol=1e-5)
    assert_same(spectral_embedding([W], scale * r, how), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_weights_are_taken_as_they_are(dtype):
    how = SpectralSettings(top_c=5)
    W, r = matrix((24, 40)).to(dtype), row(40).to(dtype)
    assert torch.equal(spectral_embedding([W], r, how), spectral_embedding([W.double()], r.double(), how))
    down = W.T.contiguous()  # a down_proj as it lies on disk
    assert_same(spectral_embedding([down.T], r, how), spectral_embedding([W], r, how))


# --- one layer --------------------------------------------------------------------------------------------------------


def layer(experts=6, shape=(96, 160)):
    router = torch.stack([row(shape[1], seed) for seed in range(experts)]).float()
    return [[matrix(shape, "flat", 3 * e + k).float() for k in range(3)] for e in range(experts)], router


@pytest.mark.parametrize("sign", [Sign.ALIGNED, Sign.CANONICAL])
def test_workers_and_blas_threads_do_not_change_the_result(sign):
    matrices, router = layer()
    how = SpectralSettings(top_c=8, sign=sign)
    alone = torch.stack([spectral_embedding(m, r, how) for m, r in zip(matrices, router, strict=True)])
    for workers in (1, 2, 5):
        for threads in (1, 2):
            with threadpool_limits(threads):
                layerwise = spectral_embeddings(matrices.__getitem__, router, how, workers=workers)
            assert_same(layerwise, alone, atol=1e-7)


def test_at_most_as_many_experts_as_workers_are_alive():
    matrices, router = layer(experts=8, shape=(16, 24))
    alive, most, done, lock = 0, 0, 0, threading.Lock()

    class Counted(list):
        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    def read(index):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return Counted(matrices[index])

    def count():
        nonlocal done
        done += 1

    spectral_embeddings(read, router, SpectralSettings(top_c=3), workers=2, on_expert=count)
    assert (most <= 2, alive, done) == (True, 0, 8)


def test_warnings_come_once_a_layer():
    matrices, router = layer(experts=3, shape=(8, 12))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spectral_embeddings(matrices.__getitem__, router, SpectralSettings(top_c=50), workers=2)
    assert ["top_c=50 is more than the 8" in str(w.message) for w in caught] == [True]
    deficient = [[matrix((8, 12), "rank-deficient", e)] for e in range(3)]
    with pytest.warns(UserWarning, match=r"top_c=7 asks for 7 .* rank 5; averaging the 5") as short:
        ours = spectral_embeddings(deficient.__getitem__, router, SpectralSettings(top_c=7), workers=2)
    assert len(short) == 1
    assert_same(ours[1], by_svd(deficient[1], router[1], SpectralSettings(top_c=7)))


# --- what cannot be embedded ------------------------------------------------------------------------------------------


def test_a_router_row_of_zeros_keeps_the_largest_singular_values():
    W = matrix((24, 40))
    ours = spectral_embedding([W], torch.zeros(40), SpectralSettings(top_c=5))
    vectors = torch.linalg.svd(W, full_matrices=False)[2][:5]
    signs = torch.stack([v[v.abs().argmax()].sign() for v in vectors])
    assert_same(ours, (signs[:, None] * vectors).mean(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sign", Sign)
def test_nan_and_infinity_are_refused_by_name(value, sign):
    how = SpectralSettings(top_c=2, sign=sign)
    good, bad, r = matrix((8, 12)).float(), matrix((8, 12)).float(), row(12).float()
    bad[3, 4] = value
    with pytest.raises(ValueError, match="matrix 1 of 2 holds NaN or infinity"):
        spectral_embedding([good, bad], r, how)
    with pytest.raises(ValueError, match="expert 2: matrix 0 of 1 holds NaN or infinity"):
        spectral_embeddings([[good], [good], [bad]].__getitem__, r.expand(3, 12), how, workers=2)
    r[0] = value
    with pytest.raises(ValueError, match="router row holds NaN or infinity"):
        spectral_embedding([good], r, how)


@pytest.mark.parametrize("sign", Sign)
def test_a_matrix_of_zeros_is_refused(sign):
    with pytest.raises(ValueError, match="matrix 0 of 1 is zero"):
        spectral_embedding([torch.zeros(8, 12)], row(12), SpectralSettings(top_c=2, sign=sign))


@pytest.mark.parametrize(
    ("matrices", "r", "message"),
    [
        ([], row(12), "no matrices"),
        ([matrix((8, 12)).T], row(12), r"matrix 0 of 1 has the shape \(12, 8\), not \[I,12\]"),
        ([torch.ones(8, 12, dtype=torch.int8)], row(12), "torch.int8.*dequantise"),
        ([matrix((8, 12))], row(12)[None], r"router row has the shape \(1, 12\)"),
    ],
)
def test_wrong_shapes_and_types_are_refused(matrices, r, message):
    with pytest.raises(ValueError, match=message):
        spectral_embedding(matrices, r, SpectralSettings(top_c=2))


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers=0"):
        spectral_embeddings(lambda _: [], torch.zeros(2, 3), SpectralSettings(), workers=0)
