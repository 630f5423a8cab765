"""The Triton kernels against the pure path and dense autograd: on a GPU, else on the CPU in Triton's interpreter.

Without a GPU the interpreter has to be chosen before triton is imported. So this file does it when it is collected, and
the compiler, which the interpreter is not, has its say in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.dictionaries import kernels, triton_kernels
from interp.dictionaries.kernels import Pattern

GPU = torch.cuda.is_available()
if triton_kernels.AVAILABLE and not GPU and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

if not triton_kernels.AVAILABLE:
    pytestmark = pytest.mark.skip(reason="triton is not installed: `make test-kernels` has an environment with it")
elif not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytestmark = pytest.mark.skip(reason="no GPU, and triton was imported without TRITON_INTERPRET=1")

DEVICE = "cuda" if GPU else "cpu"
DTYPES = (torch.float32, torch.bfloat16)


def pattern_of(lengths: list[int], n_latents: int, seed: int = 0) -> Pattern:
    """Rows of the given lengths with random latents, of which some come twice."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    latents = torch.randint(n_latents, (sum(lengths),), generator=generator).int()
    return Pattern(latents.to(DEVICE), offsets.to(DEVICE), n_latents)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


LENGTHS = {
    "odd": [3, 7, 1, 13, 5],
    "one each": [1] * 9,
    "none, before, between and after": [0, 0, 4, 0, 6, 0],
    "no entry at all": [0, 0, 0],
    "no row at all": [],
    "one row": [6],
    "a very long one among short ones": [2, 0, 1101, 3, 0, 1],
    "very long ones side by side": [300, 517, 0, 129],
    "ends on the edges of chunks": [128, 256, 0, 384],
    "chunks straddle every row": [100] * 9,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 16, 33])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_products_are_those_of_the_pure_path(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    pattern = pattern_of(lengths, 11)
    values, table, left = (normal(*s, dtype=dtype) for s in ((sum(lengths),), (11, d), (len(lengths), d)))
    sums = triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table)
    products = triton_kernels.entry_products(left, table, pattern.latents, pattern.offsets)
    assert sums.dtype == products.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(sums, pure_row_sums(values, pattern, table), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(products, pure_entry_products(left, table, pattern), rtol=1e-5, atol=1e-5)
    # Rounded once, at the end: bfloat16 results are within one step of float32 sums of the bfloat16 numbers.
    exact = pure_row_sums(values.double(), pattern, table.double())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(sums.double(), exact, rtol=rounding, atol=1e-4)
    exact = pure_entry_products(left.double(), table.double(), pattern)
    torch.testing.assert_close(products.double(), exact, rtol=rounding, atol=1e-5)


def pure_row_sums(values: Tensor, pattern: Pattern, table: Tensor) -> Tensor:
    if not pattern.batch:
        return table.new_zeros(0, table.shape[1])
    return kernels.row_sums(values.cpu(), on_cpu(pattern), table.cpu()).to(DEVICE)


def pure_entry_products(left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
    if not len(pattern.latents):
        return left.new_zeros(0)
    return kernels.entry_products(left.cpu(), right.cpu(), on_cpu(pattern)).to(DEVICE)


def on_cpu(pattern: Pattern) -> Pattern:
    return Pattern(pattern.latents.cpu(), pattern.offsets.cpu(), pattern.n_latents)


@pytest.mark.parametrize("d", [511, 1030])
def test_several_blocks_of_columns_with_a_part_of_the_last(d: int) -> None:
    pattern = pattern_of([2, 150, 0, 260], 7)
    values, table, left = normal(412), normal(7, d), normal(4, d)
    found = triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table)
    torch.testing.assert_close(found, pure_row_sums(values, pattern, table), rtol=1e-5, atol=1e-4)
    found = triton_kernels.entry_products(left, table, pattern.latents, pattern.offsets)
    torch.testing.assert_close(found, pure_entry_products(left, table, pattern), rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_dense_autograd() -> None:
    """decode's and encode's, in float64: with dead latents and one that is active in every token."""
    batch, n_latents, d, k = 260, 23, 19, 4
    indices = normal(batch, n_latents - 3).topk(k - 1, dim=1).indices
    pattern = Pattern.of_indices(torch.cat([indices, torch.full_like(indices[:, :1], n_latents - 2)], 1), n_latents)
    latents, offsets = pattern.latents, pattern.offsets
    x, W = (normal(n, d, seed=n).double().requires_grad_() for n in (batch, n_latents))
    values = normal(batch * k).double().requires_grad_()
    g_rows, g_entries = normal(batch, d, seed=2).double(), normal(batch * k, seed=3).double()
    at = (pattern.tokens.long(), latents.long())
    dense = torch.zeros(batch, n_latents, dtype=torch.float64, device=DEVICE).index_put(at, values)
    d_values, d_W_dec = torch.autograd.grad((dense @ W * g_rows).sum(), (values, W))
    d_x, d_W_enc = torch.autograd.grad(((x @ W.T)[at] * g_entries).sum(), (x, W))

    def columns(values: Tensor, table: Tensor) -> Tensor:
        transposed = pattern.transposed
        return triton_kernels.row_sums(values[pattern.order], transposed.latents, transposed.offsets, table)

    exact = {"rtol": 1e-12, "atol": 1e-12}
    values, x, W = values.detach(), x.detach(), W.detach()
    torch.testing.assert_close(triton_kernels.entry_products(g_rows, W, latents, offsets), d_values, **exact)
    torch.testing.assert_close(columns(values, g_rows), d_W_dec, **exact)
    torch.testing.assert_close(triton_kernels.row_sums(g_entries, latents, offsets, W), d_x, **exact)
    torch.testing.assert_close(columns(g_entries, x), d_W_enc, **exact)
    assert d_W_dec[n_latents - 1].abs().max() == 0
    single = columns(values.float(), g_rows.float())
    torch.testing.assert_close(single.double(), d_W_dec, rtol=1e-5, atol=1e-4)


def test_the_sum_is_kept_in_float32() -> None:
    """4096 ones: a bfloat16 sum stands still at 256. The result may be asked for in float32."""
    ones = torch.ones(4096, dtype=torch.bfloat16, device=DEVICE)
    latents = torch.zeros(4096, dtype=torch.int32, device=DEVICE)
    offsets = torch.tensor([0, 4095, 4096], dtype=torch.int32, device=DEVICE)
    table = torch.ones(1, 3, dtype=torch.bfloat16, device=DEVICE)
    found = triton_kernels.row_sums(ones, latents, offsets, table, dtype=torch.float32)
    assert found.dtype == torch.float32
    assert found.tolist() == [[4095.0] * 3, [1.0] * 3]
    wide = torch.ones(1, 4095, dtype=torch.bfloat16, device=DEVICE)
    product = triton_kernels.entry_products(wide, wide, latents[:1], offsets[[0, 2]].clamp(max=1))
    assert product.item() in (4080.0, 4096.0)  # the interpreter cuts off where a GPU rounds to the nearest


def test_float32_values_go_with_a_bfloat16_table() -> None:
    """As in training with a working copy of the weights: nothing but the table is rounded."""
    pattern, values, left, table = pattern_of([4, 150, 0], 9), normal(154), normal(3, 20), normal(9, 20).bfloat16()
    found = triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table, dtype=torch.float32)
    torch.testing.assert_close(found, pure_row_sums(values, pattern, table.float()), rtol=1e-5, atol=1e-4)
    found = triton_kernels.entry_products(left, table, pattern.latents, pattern.offsets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pure_entry_products(left, table.float(), pattern), rtol=1e-5, atol=1e-5)


def test_a_known_longest_row_changes_nothing_but_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, values, table = pattern_of([32] * 40, 50), normal(1280), normal(50, 24)
    passes: list[str] = []
    programs = triton_kernels._programs()
    for name in ("sum_chunks", "sum_rows"):
        monkeypatch.setattr(programs, name, Counted(getattr(programs, name), name, passes))
    known = triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table, longest=32)
    assert passes == ["sum_rows"]
    unknown = triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table)
    assert passes == ["sum_rows", "sum_chunks", "sum_rows"]
    torch.testing.assert_close(known, unknown)


class Counted:
    def __init__(self, program: object, name: str, passes: list[str]):
        self._program, self._name, self._passes = program, name, passes

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        self._passes.append(self._name)
        return self._program[grid]  # type: ignore[index]


def test_int64_latents_and_strided_tables_and_repeated_calls_give_the_same_bits() -> None:
    pattern, values, table = pattern_of([5, 400, 0, 9], 12), normal(414), normal(12, 40)
    first = triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table)
    assert torch.equal(first, triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table))
    assert torch.equal(first, triton_kernels.row_sums(values, pattern.latents.long(), pattern.offsets.long(), table))
    assert torch.equal(first, triton_kernels.row_sums(values, pattern.latents, pattern.offsets, table.T.clone().T))


COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from interp.dictionaries import triton_kernels, triton_programs

class Absent:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

class Compiled:
    def __init__(self, program):
        self.program = program

    def __getitem__(self, grid):
        return lambda *arguments, **settings: print(len(self.warm(grid, arguments, settings).asm["cubin"]))

    def warm(self, grid, arguments, settings):
        return self.program.warmup(*arguments, grid=grid, **settings)

driver.set_active(Absent())
for name in ("sum_chunks", "sum_rows", "multiply_entries"):
    setattr(triton_programs, name, Compiled(getattr(triton_programs, name)))
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for rows, k, d, integers in ((4, 40, 768, torch.int32), (1, 200, 1, torch.int64)):
        values, latents = torch.ones(rows * k, dtype=dtype), torch.zeros(rows * k, dtype=integers)
        offsets, table = torch.arange(0, rows * k + 1, k, dtype=integers), torch.ones(7, d, dtype=dtype)
        triton_kernels.row_sums(values, latents, offsets, table)
        triton_kernels.row_sums(values[:1], latents[:1], offsets.clamp(max=1), table, dtype=torch.float32)
        triton_kernels.entry_products(torch.ones(rows, d, dtype=dtype), table, latents, offsets)
"""


def test_every_program_compiles_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """The interpreter runs what the compiler refuses, annotations and types that change within a loop among it.

    Each call is compiled as it would be for an H100 and not launched, with the specialisations to its arguments.
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    made = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    sizes = made.stdout.split()
    assert len(sizes) == 3 * 2 * 4
    assert all(int(size) > 0 for size in sizes)
