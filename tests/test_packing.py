"""Tokens that are packed: the same result, without the work for padding."""
import pytest
import torch
from conftest import name_fill

from models.attention import Attention, Packing
from models.generation import padding_mask_of
from models.MARDM import MARDM
from utils.text_condition import TextCondition

LENGTHS = torch.tensor([5, 9, 1])


def test_packing_and_back():
    packing, x = Packing(padding_mask_of(LENGTHS, 9)), torch.randn(3, 9, 4)
    packed = packing.pack(x)
    assert torch.equal(packed, torch.cat([x[0, :5], x[1], x[2, :1]]))
    back = packing.unpack(packed)
    assert torch.equal(back[0, :5], x[0, :5]) and not back[0, 5:].any() and not back[2, 1:].any()
    clips = torch.randn(3, 2)
    assert torch.equal(packing.spread(clips), clips[[0] * 5 + [1] * 9 + [2]])


def test_without_padding_tokens_stay():
    packing, x = Packing(torch.zeros(3, 9, dtype=torch.bool)), torch.randn(3, 9, 4)
    assert packing.pack(x) is x and packing.unpack(x) is x
    assert packing.spread(torch.ones(3, 2)).shape == (3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transformer_gives_each_clip_what_it_gives_it_alone(dtype):
    torch.manual_seed(0)
    model = MARDM(ae_dim=6, cond_dim=5, word_dim=7, width=16, ff=32, layers=2, heads=2, dropout=0.0,
                  head_width=16, head_depth=1, count_from_end=True, word_positions=True)
    name_fill(model)
    latents, padding = torch.randn(3, 9, 6), padding_mask_of(LENGTHS, 9)
    cond = TextCondition(torch.randn(3, 5), torch.randn(3, 4, 7),
                         torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool())

    def run(rows):
        model.zero_grad()
        count = int(LENGTHS[rows].max())
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = model(latents[rows, :count], cond[rows], padding[rows, :count]).float()
        out.square().sum().backward()
        return out, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together, gradient = run([0, 1, 2])
    alone = [run([row]) for row in range(3)]
    near = dict(rtol=0, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.05, atol=0.1)
    for row, (out, _) in enumerate(alone):
        torch.testing.assert_close(together[row, : LENGTHS[row]], out[0], **near)
    total = sum(one for _, one in alone)
    assert (gradient - total).norm() < (1e-5 if dtype == torch.float32 else 0.03) * total.norm()


def test_attention_of_a_training_in_bfloat16_is_that_of_the_fused_kernel():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 8, dtype=torch.bfloat16) for _ in range(3))
    allowed = ~padding_mask_of(torch.tensor([6, 3]), 6)[:, None, None]
    fused = Attention.attend(q, k, v, allowed, 0.0)
    plain = Attention.attend(q.requires_grad_(), k, v, allowed, 0.0)
    torch.testing.assert_close(plain, fused, rtol=0.02, atol=0.02)
