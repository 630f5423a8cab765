"""The rule that chooses a kernel: what it depends on, and what it never does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from interp.dictionaries import triton_kernels
from interp.dictionaries.codes import Codes
from interp.dictionaries.kernel_choice import preferred

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHARES = [2.0**-n for n in range(12)]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("d", [8, 256, 4096])
def test_dense_from_some_share_on_and_sparse_below_it(device: torch.device, dtype: torch.dtype, d: int) -> None:
    dense = [preferred(device, share, d, dtype) == "dense" for share in SHARES]
    assert dense == sorted(dense, reverse=True)
    assert dense[0]
    assert not dense[-1]


@pytest.mark.parametrize("available", [True, False])
def test_triton_is_for_cuda_where_it_is_installed(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "AVAILABLE", available)
    assert preferred(CPU, 0.004, 512) == "embedding_bag"
    assert preferred(CUDA, 0.004, 512) == ("triton" if available else "embedding_bag")
    assert preferred(torch.device("cuda", 3), 0.004, 512) == preferred(CUDA, 0.004, 512)


def test_a_faster_dense_product_is_preferred_earlier() -> None:
    for d in (64, 512):
        for share in SHARES:
            if preferred(CPU, share, d) == "dense":
                assert preferred(CPU, share, d, torch.bfloat16) == "dense"


def test_triton_is_not_imported_before_a_kernel_is_called() -> None:
    code = "import sys; import interp.dictionaries.kernel_choice; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("k", "sparse"), [(4, True), (8, False)])
def test_codes_are_sparse_where_the_rule_says_so(k: int, sparse: bool) -> None:
    activations = torch.zeros(8, 96)
    activations[:, :k] = 1.0
    codes = Codes.of_dense(activations, 16)
    assert (codes.pattern is not None) == sparse == (preferred(CPU, k / 96, 16) != "dense")
    W_dec = torch.randn(96, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes.decode(W_dec), activations @ W_dec)
    assert Codes.of_dense(activations[:0], 16).decode(W_dec).shape == (0, 16)
