"""Text as words (--text_cond tokens): padding never tells, guidance drops everything, words come back from
their file."""
import numpy as np
import torch

from models import TextEncoder
from models.AE import FSQ_AE
from models.generation import guidance_branches, padding_mask_of
from models.MARDM import MARDM
from utils.text_condition import TextCondition, WordTable, concatenate, drop, stack_conditions

SIZES = dict(ae_dim=12, target_dim=3, cond_dim=8, width=32, ff=32, heads=2, layers=2, head_width=16,
             head_depth=1, dropout=0.0)


def make_model(**settings):
    torch.manual_seed(0)
    model = MARDM(**SIZES, word_dim=6, **settings)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)  # zero-initialised layers would hide what is read
    return model.eval()


def table(lengths, seed=0):
    rng = torch.Generator().manual_seed(seed)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return WordTable(torch.randn(len(lengths), 8, generator=rng),
                     torch.randn(ends[-1], 6, generator=rng).half(), ends)


def forward(model, cond):
    latents = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(1)).expand(len(cond), -1, -1)
    return model(latents, cond, torch.zeros(len(cond), 5, dtype=torch.bool))


def test_a_sentence_is_read_alike_alone_and_beside_a_longer_one():
    words, model = table([3, 9]), make_model()
    together = forward(model, words[[0, 1]])
    for row in (0, 1):
        assert torch.allclose(forward(model, words[[row]])[0], together[row], atol=1e-4)


def test_words_and_their_order_count():
    words, model = table([4]), make_model()
    cond = words[[0]]
    assert (forward(model, cond) - forward(model,
                                           TextCondition(cond.pooled, cond.words + 1,
                                                         cond.mask))).abs().max() > 1e-3
    shorter = TextCondition(cond.pooled, cond.words, cond.mask & (torch.arange(4) < 3))
    assert (forward(model, cond) - forward(model, shorter)).abs().max() > 1e-3


def test_the_same_words_in_another_order_are_another_sentence():
    words, model = table([4]), make_model(word_positions=True)
    cond = words[[0]]
    turned = TextCondition(cond.pooled, cond.words[:, [1, 0, 2, 3]], cond.mask)
    assert (forward(model, cond) - forward(model, turned)).abs().max() > 1e-3


def test_guidance_drops_the_pooled_feature_and_the_words():
    words, model = table([3, 5]), make_model()
    latents, padding = torch.randn(2, 5, 12), padding_mask_of(torch.tensor([5, 4]), 5)
    for together in (True, False):
        _, uncond = guidance_branches(model, latents, words[[0, 1]], padding, 2.0, None, together)
        _, other = guidance_branches(model, latents, table([3, 5], seed=3)[[0, 1]], padding, 2.0, None,
                                     together)
        assert torch.allclose(uncond, other, atol=1e-6)


def test_training_drops_both_for_the_same_clips():
    model = make_model(cond_drop_prob=0.5).train()
    cond = model.drop_cond(table([4] * 64)[list(range(64))], 64)
    gone = (cond.pooled == 0).all(1)
    assert 10 < gone.sum() < 54 and torch.equal(gone, ~cond.mask.any(1))


def test_words_are_left_out_in_training_only():
    """About as many as asked for, whatever the sentence; the pooled feature stays."""
    model, cond = make_model(word_drop_prob=0.25, cond_drop_prob=0.0), table([8] * 50)[list(range(50))]
    assert model.drop_cond(cond, 50) is cond
    kept = model.train().drop_cond(cond, 50)
    assert 0.65 < kept.mask.float().mean() < 0.85 and torch.equal(kept.pooled, cond.pooled)


def test_processes_leave_out_the_same_words():
    model, whole = make_model(word_drop_prob=0.5).train(), table([8, 3, 5, 8])
    def kept(rows):
        cond = whole[list(range(4))[rows]]
        return model.drop_cond(cond, 4, rows, torch.Generator().manual_seed(5)).mask
    together = kept(slice(0, 4))
    assert torch.equal(kept(slice(1, 3)), together[1:3, :5]) and torch.equal(kept(slice(3, 4)), together[3:])


def test_a_fresh_model_ignores_the_words():
    """Cross-attention starts at zero, so a training begins as one by pooled features."""
    torch.manual_seed(0)
    model = MARDM(**SIZES, word_dim=6).eval()
    one = table([4])[[0]]
    other = TextCondition(one.pooled, one.words * 2 + 1, one.mask)
    assert torch.equal(forward(model, one), forward(model, other))


def test_a_pooled_model_has_no_new_weights():
    names = MARDM(**SIZES).state_dict()
    assert not any("cross" in name or "word" in name for name in names)


def test_generation_with_words():
    model, ae = make_model(count_from_end=True), FSQ_AE(5, levels=(5, 5, 5), width=8, latent_dim=12,
                                                        depth=1).eval()
    words, lengths = table([3, 6]), torch.tensor([4, 7])
    together = model.generate(ae, words[[0, 1]], lengths, [1, 2], time_steps=4, ode_steps=3, cfg=2.0)
    for row in (0, 1):
        alone = model.generate(ae, words[[row]], lengths[[row]], [row + 1], time_steps=4, ode_steps=3,
                               cfg=2.0)
        assert torch.allclose(alone[0], together[row, : lengths[row]], atol=1e-5)


def test_conditions_stack_cut_and_join():
    words = table([2, 4, 3])
    batch = stack_conditions([words[row] for row in (2, 0)])
    assert torch.equal(batch.words, words[[2, 0]].words) and batch.mask.sum(1).tolist() == [3, 2]
    twice = concatenate(batch, drop(batch, torch.zeros(2, 1, dtype=torch.bool)))
    assert len(twice) == 4 and not twice.mask[2:].any() and not twice.pooled[2:].any()
    assert torch.equal(batch[[1]].pooled, words[[0]].pooled)


def fake_encoder(asked):
    """Stands in for MiniLM: a word is its length, and its state six numbers of it; ``asked`` keeps the
    texts."""
    def tokenize(texts):
        asked.extend(texts)
        return [[len(word) for word in text.split()] for text in texts]

    def words(_network, tokens, _mask):
        return torch.stack([tokens.float(), *[torch.ones_like(tokens)] * 5], -1)

    def features(_network, _tokens, mask):
        return mask.sum(1, keepdim=True).float().expand(-1, 384)

    return TextEncoder.TextEncoder("minilm", 384, torch.nn.Identity(), tokenize, features, words=words)


def first(condition):
    """What tells the words of a condition's sentences: their first number over their second."""
    return [(words[mask][:, 0] / words[mask][:, 1]).round().int().tolist()
            for words, mask in zip(condition.words, condition.mask)]


def test_words_are_kept_on_disk_and_only_new_ones_are_encoded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(TextEncoder, "load_text_encoder", lambda name: fake_encoder(asked))
    table = TextEncoder.cached_text_words("minilm", ["a bc", "abc"], tmp_path)
    assert first(table[[0, 1]]) == [[1, 2], [3]]
    asked.clear()
    again = TextEncoder.cached_text_words("minilm", ["abcd a", "abc"], tmp_path)
    assert set(asked) == {"abcd a"} and first(again[[0, 1]]) == [[4, 1], [3]]
    assert again[[0, 1]].pooled[:, 0].tolist() == [2, 1]
    file = tmp_path / "text_features" / "minilm_words.bin"
    assert file.stat().st_size == 2 * 6 * 5 and isinstance(again.states, np.memmap)
    file.write_bytes(file.read_bytes()[:-12])  # damage: everything is computed again
    assert first(TextEncoder.cached_text_words("minilm", ["abc"], tmp_path)[[0]]) == [[3]]


def test_minilm_words_do_not_depend_on_their_batch():
    encoder = TextEncoder.load_text_encoder("minilm")
    texts = ["a person walks", "first kicks with the left foot, then jumps"]
    words, alone = encoder.encode_words(texts), encoder.encode_words(texts[:1])
    assert torch.equal(words.pooled, encoder.encode(texts))
    assert torch.allclose(words[[0]].words, alone[[0]].words, atol=5e-3)
    assert words.word_dim == 384 and abs(words.states.float().square().mean() - 1) < 1e-2
