"""The autoregressive generators: what a token reads, the cache, padding, guidance, a toy with a known answer,
and what they refuse."""
import pytest
import torch

from models.AE import FSQ_AE, AE_models
from models.CategoricalHead import MOST_CODES, IndexHead, grid_of
from models.generation import check_settings, padding_mask_of
from models.loading import load_generator
from models.MARDM import GPT, MARDM_models, check_pair, family_of
from models.pipeline import Pipeline
from utils.errors import UserError
from utils.text_condition import WordTable

SMALL = dict(cond_dim=8, count_from_end=True, width=32, ff=32, layers=2, heads=2, head_width=32, head_depth=1,
             dropout=0.0)
LENGTHS = torch.tensor([7, 4])


def make_pair(head="CatAR", levels=(5, 4, 3), random=True, **settings):
    torch.manual_seed(0)
    ae = FSQ_AE(67, levels=levels, width=8, latent_dim=12, depth=1).eval()
    settings = SMALL | dict(ae_dim=12, target_dim=len(levels), grid=grid_of(ae.quantizer)) | settings
    model = GPT(head=head, **settings)
    for value in model.parameters() if random else ():
        torch.nn.init.normal_(value, std=0.2)  # zero-initialised layers would hide what is read
    return model.eval(), ae


def condition(model, seed=1):
    rng = torch.Generator().manual_seed(seed)
    if model.text_cond == "pooled":
        return torch.randn(2, 8, generator=rng)
    states = torch.randn(8, 6, generator=rng).half()
    return WordTable(torch.randn(2, 8, generator=rng), states, [3, 8])[[0, 1]]


def generate(model, ae, rows=(0, 1), **settings):
    rows = list(rows)
    return model.generate(ae, condition(model)[rows], LENGTHS[rows], rows, **({"cfg": 2.0} | settings))


@torch.no_grad()
def outputs(model, ae, targets):
    """What the head reads of each token, in training: (2, L, Z)."""
    padding = padding_mask_of(LENGTHS, targets.shape[1])
    return model(model.hide(ae.embed_targets(targets), padding)[1], condition(model), padding)


@pytest.mark.parametrize("settings", [{}, dict(word_dim=6, word_positions=True)], ids=["pooled", "words"])
def test_a_token_is_predicted_from_those_before_it_alone(settings):
    model, ae = make_pair(**settings)
    targets = ae.snap(torch.randn(2, 7, 3))
    before = outputs(model, ae, targets)
    for changed in range(7):
        other = targets.clone()
        other[0, changed] = ae.quantizer.neighbour(targets[0, changed], 0)
        differs = (outputs(model, ae, other)[0] - before[0]).abs().amax(-1)
        assert differs[: changed + 1].max() == 0 and (changed == 6 or differs[changed + 1 :].min() > 1e-5)


@pytest.mark.parametrize("settings", [{}, dict(word_dim=6, word_positions=True), dict(head="Index")],
                         ids=["pooled", "words", "index"])
def test_the_cache_changes_nothing(settings):
    """The reference sampler reads all tokens anew for each; and what was drawn is read in training as it was
    when it was drawn."""
    model, ae = make_pair(**settings)
    fast = generate(model, ae)
    assert torch.equal(fast, generate(model, ae, sampler="reference")) and len(fast.unique()) > 2
    seen, transform = [], model.transform
    model.transform = lambda *args: seen.append(transform(*args)) or seen[-1]
    made = generate(model, ae, cfg=1.0)
    del model.transform
    whole, steps = outputs(model, ae, made), torch.cat(seen, 1)
    assert len(seen) == 7 and steps.shape == whole.shape
    for row, length in enumerate(LENGTHS):
        assert torch.allclose(steps[row, :length], whole[row, :length], atol=1e-5)


@pytest.mark.parametrize("head", ["CatAR", "Index"])
def test_clips_do_not_depend_on_their_batch_and_lie_on_the_grid(head):
    model, ae = make_pair(head)
    together = generate(model, ae)
    assert (together[1, 4:] == 0).all()
    for row in (0, 1):
        assert torch.equal(generate(model, ae, [row])[0], together[row, : LENGTHS[row]])
        codes = together[row, : LENGTHS[row]]
        assert torch.equal(ae.snap(codes), codes)


def test_padding_is_neither_read_nor_learned():
    model, ae = make_pair()
    targets, cond = ae.snap(torch.randn(2, 7, 3)), condition(model)
    other = targets.clone()
    other[1, 4:] = ae.snap(torch.randn(3, 3))
    losses = []
    for some in (targets, other):
        torch.manual_seed(5)
        losses.append(model.loss(ae.embed_targets(some), some, cond, LENGTHS))
    assert torch.equal(*losses)
    mask, read = model.hide(ae.embed_targets(targets), padding_mask_of(LENGTHS, 7))
    assert mask.sum() == 11 and (read[:, 0] == model.mask_latent).all()


def test_the_length_is_known_from_the_first_token_on():
    model, ae = make_pair()
    targets = ae.snap(torch.randn(2, 7, 3))
    long = model(ae.embed_targets(targets), condition(model), padding_mask_of(torch.tensor([7, 7]), 7))
    short = model(ae.embed_targets(targets), condition(model), padding_mask_of(torch.tensor([7, 4]), 7))
    assert torch.allclose(long[0], short[0], atol=1e-6) and (long[1, 0] - short[1, 0]).abs().max() > 1e-3


def test_processes_share_the_loss():
    model, ae = make_pair()
    targets, cond, lengths = ae.snap(torch.randn(4, 6, 3)), torch.randn(4, 8), torch.tensor([6, 5, 3, 6])

    def loss(rows):
        return model.train().loss(ae.embed_targets(targets[rows]), targets[rows], cond[rows], lengths, rows,
                                  torch.Generator().manual_seed(5))

    assert torch.allclose(loss(slice(0, 4)), (loss(slice(0, 2)) + loss(slice(2, 4))) / 2, atol=1e-5)


def train(model, batch, steps=400, lr=3e-3):
    optimizer = torch.optim.Adam(model.train().parameters(), lr)
    for _ in range(steps):
        loss = model.loss(*batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("head", ["CatAR", "Index"])
def test_a_language_with_a_known_grammar(head):
    """The first level of a token is one more than the last token's, or, by the condition, one less; the
    second level is the first. Begins are uniform. Guidance away from "either" makes mistakes rarer."""
    model, ae = make_pair(head, levels=(5, 5), random=False, cond_drop_prob=0.3)
    rng, length, values = torch.Generator().manual_seed(0), 6, torch.tensor(grid_of(ae.quantizer)[0])

    def batch(count=32):
        begin = torch.randint(5, (count, 1), generator=rng)
        way = torch.randint(2, (count, 1), generator=rng) * 2 - 1
        targets = values[(begin + way * torch.arange(length)) % 5][..., None].expand(-1, -1, 2)
        cond = torch.cat([(way > 0), (way < 0), torch.zeros(count, 6)], 1).float()
        return ae.embed_targets(targets).detach(), targets, cond, torch.full((count,), length)

    train(model, batch)
    _, _, cond, lengths = batch(200)
    right, begins = {}, {}
    for cfg in (0.0, 1.0, 2.0):
        made = model.generate(ae, cond, lengths, range(200), cfg=cfg)
        digits = (made[..., None] - values).abs().argmin(-1)
        assert (digits[..., 0] == digits[..., 1]).float().mean() > 0.95
        way = cond[:, :1] - cond[:, 1:2]
        right[cfg] = ((digits[:, 1:, 0] - digits[:, :-1, 0] - way) % 5 == 0).float().mean()
        begins[cfg] = digits[:, 0, 0].bincount(minlength=5) / 200
    assert begins[1.0].min() > 0.1 and begins[1.0].max() < 0.32
    assert right[1.0] > 0.95 and right[2.0] > 0.95 and right[0.0] < 0.75, right


def test_temperature_of_nothing_takes_the_likeliest():
    model, ae = make_pair()
    cold = [model.generate(ae, condition(model), LENGTHS, seeds, temperature=0.0)
            for seeds in ([1, 2], [3, 4])]
    assert torch.equal(*cold) and not torch.equal(cold[0], generate(model, ae))


def test_one_softmax_is_over_the_codes_of_the_quantizer():
    _, ae = make_pair()
    head = IndexHead(3, 8, 16, 1, grid=grid_of(ae.quantizer))
    torch.nn.init.normal_(head.net.final_layer.linear.bias, std=3.0)
    made = head.sample(torch.zeros(4000, 8), None, lambda: torch.randn(4000, 3))
    shares = ae.quantizer.get_indices(made).bincount(minlength=60) / 4000
    assert torch.allclose(shares, head.net.final_layer.linear.bias.softmax(0), atol=0.04)
    code = ae.quantizer.decode_indices(torch.arange(60))
    chances = [head.loss(code[[i]], torch.zeros(1, 8)) for i in range(60)]
    assert torch.allclose(torch.stack(chances), -head.net.final_layer.linear.bias.log_softmax(0), atol=1e-4)


def test_too_many_codes_for_one_softmax():
    grid = grid_of(AE_models["FSQ_AE_iFSQ_12x9"](width=8, latent_dim=8).quantizer)
    with pytest.raises(UserError, match="12 axes has 282,429,536,481 codes.*FSQ-GPT-S"):
        MARDM_models["FSQ-GPT-Index-S"](ae_dim=8, target_dim=12, grid=grid)
    assert MARDM_models["FSQ-GPT-S"](ae_dim=8, target_dim=12, grid=grid).DiffMLPs.most == 9
    assert 64_000 <= MOST_CODES


@pytest.mark.parametrize("setting", [dict(time_steps=6), dict(cfg_schedule="linear"), dict(snap="end"),
                                     dict(solver="euler"), dict(ode_steps=4), dict(hard_pseudo_reorder=True),
                                     dict(cfg_interval=(0.2, 0.8))])
def test_flags_of_other_generators_are_refused(setting):
    model, ae = make_pair()
    for use in (lambda: check_settings(model, setting), lambda: generate(model, ae, **setting)):
        with pytest.raises(UserError, match=next(iter(setting))):
            use()


def test_known_tokens_are_refused():
    model, ae = make_pair()
    with pytest.raises(UserError, match="keeping tokens .* cannot read"):
        generate(model, ae, known=(torch.zeros(2, 7, 3), torch.zeros(2, 7, dtype=torch.bool)))


def test_in_bfloat16_and_unconditionally():
    model, ae = make_pair(cond_mode="uncond")
    targets = model.generate(ae, None, LENGTHS, [0, 1], cfg=1.0, precision="bf16")
    assert torch.equal(ae.snap(targets[0]), targets[0]) and targets.shape == (2, 7, 3)


def test_the_zoo_and_checkpoints(tmp_path):
    assert {f"FSQ-GPT{kind}-{size}" for kind in ("", "-Index") for size in "SBL"} <= set(MARDM_models)
    assert family_of("FSQ_AE_High") == "FSQ-MARDM"
    check_pair("FSQ-GPT-S", "FSQ_AE_High")
    with pytest.raises(UserError, match="needs an autoencoder"):
        check_pair("FSQ-GPT-Index-S", "VQ_AE_EMA")
    model, ae = make_pair()
    kwargs = SMALL | dict(ae_dim=12, target_dim=3, grid=grid_of(ae.quantizer))
    torch.save({"mardm": model.state_dict(), "model_name": "FSQ-GPT-S", "model_kwargs": kwargs},
               tmp_path / "latest.tar")
    loaded, _ = load_generator(tmp_path / "latest.tar")
    assert isinstance(loaded, GPT) and torch.equal(generate(loaded, ae), generate(model, ae))
    clips = Pipeline(loaded, ae, torch.zeros(67), torch.ones(67)).sample(condition(model), [28, 16], [0, 1],
                                                                         cfg=2.0)
    assert [len(clip) for clip in clips] == [28, 16]
