"""A folded dictionary does on raw activations what the trained one does on standardised ones."""

from __future__ import annotations

import pytest
import torch
from dictionary_cases import EVERY, data, make

from interp.dictionaries import fold
from interp.dictionaries.folding import Standardisation


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_folding_is_exact(kind: str, activation: str) -> None:
    dictionary = make(kind, activation)
    source = Standardisation(data(1, 6, seed=20)[0], 0.37)
    target = source if kind == "sae" else Standardisation(data(1, 5, seed=21)[0], 5.3)
    folded = fold(dictionary, source, target)
    raw = data(50, seed=22) / source.scale + source.mean
    seen = (raw - source.mean) * source.scale
    assert torch.equal(folded.active(raw), dictionary.active(seen))
    torch.testing.assert_close(folded.encode(raw), dictionary.encode(seen) / target.scale)
    torch.testing.assert_close(folded(raw), dictionary(seen) / target.scale + target.mean)
    torch.testing.assert_close(folded.W_dec, dictionary.W_dec, msg="decoder rows keep their norm")
    W, b = folded.linear_encoder(torch.arange(24))
    active = folded.active(raw)
    torch.testing.assert_close(folded.encode(raw)[active], (raw @ W.T + b)[active])


def test_folding_leaves_the_original_alone_and_records_the_scales() -> None:
    dictionary = make("skip-transcoder", "jumprelu")
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    folded = fold(dictionary, Standardisation(data(1, 6)[0], 2.0), Standardisation(data(1, 5)[0], 4.0))
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert folded.config.normalization.scale_in == 2.0
    assert folded.config.normalization.scale_out == 4.0
