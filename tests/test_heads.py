"""The heads beyond the published two, and how they are sampled: across frames, categorical, distilled;
growing and partial guidance; snapping."""
import math

import pytest
import torch
from einops import repeat

from diffusions import flow
from distill_head import make_student
from models.AE import FSQ_AE, AE_models
from models.CategoricalHead import AutoregressiveHead, CategoricalHead, grid_of
from models.DiffMLPs import SiTHead
from models.DistilledHead import DistilledHead, teacher_path
from models.generation import SamplerSettings
from models.MARDM import MARDM, MARDM_models
from models.quantizers import make_quantizer
from models.SiT1D import SiT1DHead
from utils.errors import UserError

SMALL = dict(ae_dim=12, target_dim=3, cond_dim=8, count_from_end=True, width=32, ff=32, layers=1, heads=2,
             head_width=64, head_depth=2, dropout=0.0)
LENGTHS = torch.tensor([7, 4])


def make_ae():
    torch.manual_seed(0)
    return FSQ_AE(5, levels=(5, 8, 3), width=8, latent_dim=12, depth=1).eval()


def make_model(head, ae, random=True, **settings):
    torch.manual_seed(1)
    grid = {"grid": grid_of(ae.quantizer)} if head.startswith("Cat") else {}
    model = MARDM(**SMALL, head=head, **grid, **settings)
    for value in model.parameters() if random else ():
        torch.nn.init.normal_(value, std=0.2)  # zero-initialised layers would hide what is read
    return model.eval()


def generate(model, ae, rows=(0, 1), **settings):
    cond = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    settings = {"time_steps": 4, "cfg": 2.0} | settings
    return model.generate(ae, cond[list(rows)], LENGTHS[list(rows)], list(rows), **settings)


@pytest.mark.parametrize("head, settings", [
    ("SiT", {}), ("SiT1D", {}), ("Cat", {}), ("CatAR", {}), ("Distilled", dict(distilled_cfg=2.0))])
def test_clips_do_not_depend_on_their_batch_and_lie_on_the_grid(head, settings):
    ae = make_ae()
    model = make_model(head, ae, **settings)
    together = generate(model, ae)
    assert torch.equal(together, ae.snap(together) * (together != 0).any(-1, keepdim=True))
    for row in (0, 1):
        assert torch.allclose(generate(model, ae, [row])[0], together[row, : LENGTHS[row]], atol=1e-5)


# Across frames

def test_a_token_sees_its_neighbours_noise_in_the_head_across_frames_only():
    z, noise = torch.randn(6, 8), torch.randn(6, 3)
    other = noise.clone()
    other[0] += 1
    torch.manual_seed(0)
    for head, sees in ((SiT1DHead(3, 8, 64, 2), True), (SiTHead(3, 8, 64, 2), False)):
        for value in head.parameters():
            torch.nn.init.normal_(value, std=0.2)
        sample = head.sampler(ode_steps=3)
        one, two = (sample(z, None, lambda noise=noise: noise, 1.0, [4, 2]) for noise in (noise, other))
        assert not torch.allclose(one[0], two[0], atol=1e-3)
        assert torch.allclose(one[1:4], two[1:4], atol=1e-5) != sees
        assert torch.allclose(one[4:], two[4:], atol=1e-5)  # another clip's tokens


def test_training_across_frames_leaves_out_padding_and_counts_the_tokens():
    head, torch_state = SiT1DHead(2, 8, 64, 1), torch.random.get_rng_state()
    for value in head.parameters():
        torch.nn.init.normal_(value, std=0.2)
    targets, z = torch.randn(3, 5, 2), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()

    def loss(targets):
        torch.random.set_rng_state(torch_state)
        return head.masked_loss(targets, z, mask, slice(None), 2)

    changed = torch.where(mask[..., None], targets, targets + 9)
    assert torch.allclose(loss(targets), loss(changed)) and loss(targets) != loss(targets + 1)


def test_processes_share_the_loss_across_frames():
    torch.manual_seed(0)
    model = make_model("SiT1D", make_ae()).train()
    latents, targets, cond = torch.randn(4, 6, 12), torch.randn(4, 6, 3), torch.randn(4, 8)
    lengths = torch.tensor([6, 5, 3, 6])

    def loss(rows):
        torch.manual_seed(7)
        return model.loss(latents[rows], targets[rows], cond[rows], lengths, rows,
                          torch.Generator().manual_seed(5))

    halves = [loss(slice(0, 2)), loss(slice(2, 4))]
    assert torch.allclose(loss(slice(0, 4)), sum(halves) / 2, atol=1e-5)


def test_the_head_across_frames_learns_what_neighbours_share():
    """All targets of a clip are 1 or all are -1, which no condition tells: tokens drawn alone disagree."""
    torch.manual_seed(0)
    agreement = {}
    for kind in (SiT1DHead, SiTHead):
        head = kind(1, 4, 64, 2)
        optimizer, z = torch.optim.Adam(head.parameters(), 3e-3), torch.zeros(32, 4, 4)
        for _ in range(250):
            targets = repeat(torch.randint(0, 2, (32,)) * 2.0 - 1, "b -> b l 1", l=4)
            loss = head.masked_loss(targets, z, torch.ones(32, 4).bool(), slice(None), 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made = head.sampler()(z.flatten(0, 1), None, lambda: torch.randn(128, 1), 1.0, [4] * 32).view(32, 4)
        agreement[kind] = (made.sign().sum(1).abs() == 4).float().mean()
    assert agreement[SiT1DHead] > 0.8 and agreement[SiTHead] < 0.4, agreement


# Categorical

@pytest.mark.parametrize("name, levels", [("fsq", (5, 8, 3)), ("symmetric", (4, 7)), ("learned", (5, 3))])
def test_the_grid_of_a_quantizer(name, levels):
    quantizer = make_quantizer("FSQ", name, None, levels=levels)
    grid = grid_of(quantizer)
    assert [len(row) for row in grid] == list(levels) and all(row == sorted(row) for row in grid)
    head = CategoricalHead(len(levels), 8, 16, 1, grid=grid)
    points = quantizer.snap(torch.randn(50, len(levels)))
    assert torch.allclose(head.values(head.digits(points)), points)


@pytest.mark.parametrize("kind, joint", [(CategoricalHead, False), (AutoregressiveHead, True)])
def test_categorical_heads_learn_a_known_distribution(kind, joint):
    """Two dimensions that are equal, three values of probability .5, .3, .2: only a head that reads the first
    one before the second draws them equal."""
    torch.manual_seed(0)
    head, chances = kind(2, 4, 32, 1, grid=[[-1.0, 0.0, 1.0]] * 2), torch.tensor([0.5, 0.3, 0.2])
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(300):
        value = chances.multinomial(256, replacement=True)[:, None].expand(-1, 2) - 1.0
        loss = head.loss(value, torch.zeros(256, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = head.sample(torch.zeros(4000, 4), None, lambda: torch.randn(4000, 2))
    shares = torch.stack([(made == value).float().mean(0) for value in (-1, 0, 1)])
    assert (shares - chances[:, None]).abs().max() < 0.06
    equal = (made[:, 0] == made[:, 1]).float().mean()
    assert equal > 0.95 if joint else equal < 0.5
    coldest = head.sample(torch.zeros(9, 4), None, lambda: torch.randn(9, 2), temperature=0.0)
    assert (coldest == -1).all()


@pytest.mark.parametrize("kind", [CategoricalHead, AutoregressiveHead])
def test_categorical_heads_learn_what_the_condition_says(kind):
    torch.manual_seed(0)
    head = kind(2, 4, 32, 2, grid=[[-1.0, 0.0, 1.0]] * 2)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(300):
        z = torch.randn(64, 4)
        loss = head.loss(z[:, :2].sign(), z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = torch.randn(500, 4)
    made = head.sample(z, None, lambda: torch.randn(500, 2))
    assert (made == z[:, :2].sign()).float().mean() > 0.9


def test_categorical_heads_refuse_what_has_no_grid():
    with pytest.raises(UserError, match="needs an autoencoder with a grid"):
        grid_of(AE_models["VQ_AE_Model"](width=8, latent_dim=8).quantizer)
    with pytest.raises(UserError, match="needs an autoencoder with a grid"):
        grid_of(AE_models["FSQ_AE_Hybrid"](width=8, latent_dim=8).quantizer)
    with pytest.raises(UserError, match="needs the grid"):
        CategoricalHead(2, 4, 8, 1)
    with pytest.raises(UserError, match="no scale"):
        CategoricalHead(1, 4, 8, 1, target_scale=2.0, grid=[[0.0, 1.0]])
    assert "FSQ-MARDM-Cat-S" in MARDM_models and "MARDM-Cat-S" not in MARDM_models


# Distilled

def trained_teacher():
    """A head whose target is 2 times the first number of the condition, and -1."""
    torch.manual_seed(0)
    head = SiTHead(2, 4, 64, 2)
    optimizer = torch.optim.Adam(head.parameters(), 2e-3)
    for _ in range(300):
        z = torch.randn(128, 4)
        loss = head.loss(torch.stack([2 * z[:, 0], torch.full((128,), -1.0)], 1), z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def distil(teacher, steps=120, cfg=1.0):
    torch.manual_seed(1)
    student = DistilledHead(2, 4, 64, 2, distilled_cfg=cfg)
    student.load_state_dict(teacher.state_dict(), strict=False)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for _ in range(steps):
        z = torch.randn(64, 4)
        states = teacher_path(teacher, z, torch.zeros_like(z), torch.randn(64, 2), cfg, steps=8)
        loss = student.path_loss(states, z, torch.rand(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


def test_a_distilled_head_agrees_with_its_teacher():
    teacher = trained_teacher()
    z = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
    answer = torch.stack([2 * z[:, 0], torch.full((200,), -1.0)], 1)
    for cfg in (1.0, 1.5):
        student = distil(teacher, cfg=cfg)
        noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(4))
        wanted = teacher.sample(z, torch.zeros_like(z), lambda noise=noise: noise, cfg, ode_steps=16)
        if cfg == 1:
            assert (wanted - answer).abs().mean() < 0.15
        for calls in (1, 2, 4):
            made = student.sample(z, None, lambda noise=noise: noise, ode_steps=calls)
            assert (made - wanted).abs().mean() < 0.12, (cfg, calls)
            untrained = teacher.sample(z, None, lambda noise=noise: noise, ode_steps=calls, solver="euler")
            assert (made - wanted).abs().mean() < (untrained - wanted).abs().mean() + 0.02


def test_one_call_of_a_distilled_head_follows_paths_that_bend():
    """Targets of 1 and -1 that no condition tells: one Euler step ends between them, the solver at one."""
    torch.manual_seed(0)
    teacher, student, z = SiTHead(1, 4, 64, 2), DistilledHead(1, 4, 64, 2), torch.zeros(128, 4)

    def train(head, loss):
        optimizer = torch.optim.Adam(head.parameters(), 3e-3)
        for _ in range(300):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    train(teacher, lambda: teacher.loss(torch.randint(0, 2, (128, 1)) * 2.0 - 1, z))
    student.load_state_dict(teacher.state_dict(), strict=False)
    train(student, lambda: student.path_loss(
        teacher_path(teacher, z, None, torch.randn(128, 1), 1.0, steps=8), z, torch.rand(128)))
    noise = torch.randn(128, 1)
    wanted = teacher.sample(z, None, lambda: noise, ode_steps=8)
    for calls in (1, 2):
        euler = teacher.sample(z, None, lambda: noise, solver="euler", ode_steps=calls)
        made = student.sample(z, None, lambda: noise, ode_steps=calls)
        assert (made - wanted).abs().mean() < 0.15 * (euler - wanted).abs().mean(), calls


@pytest.mark.parametrize("prediction", ["velocity", "x"])
def test_an_untrained_student_steps_as_its_teacher(prediction):
    teacher = SiTHead(2, 4, 32, 1, prediction)
    for value in teacher.parameters():
        torch.nn.init.normal_(value, std=0.2)
    student = DistilledHead(2, 4, 32, 1, prediction)
    student.load_state_dict(teacher.state_dict(), strict=False)
    z, noise = torch.randn(9, 4), torch.randn(9, 2)
    for calls in (1, 4):
        assert torch.allclose(student.sample(z, None, lambda: noise, ode_steps=calls),
                              teacher.sample(z, None, lambda: noise, solver="euler", ode_steps=calls),
                              atol=1e-5)
    fast, plain = (student.sample(z, None, lambda: noise, ode_steps=2, fast=fast) for fast in (True, False))
    assert torch.allclose(fast, plain, atol=1e-5)


def test_the_teachers_path_ends_where_it_samples():
    teacher = SiTHead(2, 4, 32, 1, "x")
    for value in teacher.parameters():
        torch.nn.init.normal_(value, std=0.2)
    z, uncond, noise = torch.randn(9, 4), torch.randn(9, 4), torch.randn(9, 2)
    states = teacher_path(teacher, z, uncond, noise, 2.0)
    assert states.shape == (5, 9, 2) and torch.equal(states[0], noise)
    assert torch.allclose(states[-1], teacher.sample(z, uncond, lambda: noise, 2.0, fast=False), atol=1e-5)
    with pytest.raises(UserError, match="multiple of 4"):
        teacher_path(teacher, z, uncond, noise, 2.0, steps=6)


def test_a_distilled_generator_says_what_it_cannot_do():
    ae = make_ae()
    teacher = make_model("SiT", ae)
    student, described = make_student(teacher, SMALL, "FSQ-MARDM-SiT-S", 2.0)
    assert described["head"] == "Distilled" and described["distilled_cfg"] == 2.0
    assert all(value.requires_grad == name.startswith("DiffMLPs.")
               for name, value in student.named_parameters())
    assert torch.isfinite(generate(student, ae)).all()
    for settings, words in ((dict(cfg=3.0), "distilled with a guidance scale of 2"),
                            (dict(ode_steps=3), "1, 2 or 4"), (dict(solver="euler"), "no solver")):
        with pytest.raises(UserError, match=words):
            generate(student, ae, **settings)
    with pytest.raises(UserError, match="only a SiT head"):
        make_student(make_model("DDPM", ae), SMALL, "FSQ-MARDM-DDPM-S", 2.0)


# Guidance and snapping

def test_guidance_grows_with_the_unmasked_fraction():
    growing, steady = SamplerSettings(time_steps=10, cfg=4.0, cfg_schedule="linear"), SamplerSettings(cfg=4.0)
    scales = [growing.guidance(i) for i in range(10)]
    assert scales == sorted(scales) and 1 < scales[0] < 1.2 and scales[-1] == pytest.approx(4.0)
    assert scales[4] == pytest.approx(1 + 3 * (1 - math.cos(math.pi / 4)))
    assert {steady.guidance(i) for i in range(18)} == {4.0}


@pytest.mark.parametrize("head, settings",
                         [("Cat", {}), ("CatAR", {}), ("Distilled", dict(distilled_cfg=2.0))])
def test_heads_that_are_not_guided_in_part_say_so(head, settings):
    ae = make_ae()
    with pytest.raises(UserError, match="not guided on a part"):
        generate(make_model(head, ae, **settings), ae, cfg_interval=(0.2, 0.8))


@pytest.mark.parametrize("head, settings", [("SiT", dict(solver="adams", ode_steps=6)), ("DDPM", {}),
                                            ("SiT", dict(solver="dopri5")), ("SiT1D", dict(ode_steps=6))])
def test_guidance_in_an_interval(head, settings):
    ae = make_ae()
    model = make_model(head, ae)

    def made(**more):
        return generate(model, ae, snap="none", **settings, **more)

    everywhere, unguided = made(), made(cfg=1.0)
    assert torch.allclose(made(cfg_interval=(0.0, 1.0)), everywhere)
    part = made(cfg_interval=(0.3, 0.7))
    for other in (everywhere, unguided):
        assert (part - other).abs().max() > 1e-3
    reference = made(cfg_interval=(0.3, 0.7), sampler="reference", time_steps=1)
    assert torch.allclose(made(cfg_interval=(0.3, 0.7), time_steps=1), reference,
                          atol=1e-3 if settings.get("solver") == "dopri5" else 1e-4)


def test_when_targets_are_snapped():
    ae = make_ae()
    model = make_model("SiT", ae)
    every, end, never = (generate(model, ae, snap=snap) for snap in ("every", "end", "none"))
    inside = (torch.arange(7) < LENGTHS[:, None])[..., None]
    assert torch.equal(every, ae.snap(every) * inside) and torch.equal(end, ae.snap(never) * inside)
    assert not torch.equal(never, end) and not torch.equal(every, end)


@pytest.mark.parametrize("settings, words", [
    (dict(snap="now"), "unknown snap"), (dict(cfg_schedule="cubic"), "unknown cfg_schedule"),
    (dict(cfg_interval=(0.5, 0.5)), "guidance interval")])
def test_bad_settings_are_named(settings, words):
    ae = make_ae()
    with pytest.raises(UserError, match=words):
        generate(make_model("SiT", ae), ae, **settings)


def test_times_of_a_distilled_head_are_those_of_the_teachers_path():
    run, times = DistilledHead(2, 4, 8, 1).process_sampler(1.0)
    assert times == flow.time_grid(4) and times[0][0] == 0 and times[-1][1] == 1
