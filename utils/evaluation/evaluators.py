"""Networks that embed sentences and motions into one space, and evaluators around them with one interface:

    embed_text(captions) -> (B, E)            captions have ``.text`` and ``.tokens`` (word/POS)
    embed_motion(motion, lengths) -> (B, E)   motion (B, T, D) NOT normalised, lengths in frames

``MatchingEvaluator`` and ``ContrastEvaluator`` run the released networks with their parameter names (Guo et
al., CVPR 2022; MotionCLIP as in MARDM, 2411.16575). ``TrainedEvaluator`` runs our own, for data sets without
released ones. Each has its own mean and std. A clip has the same embedding alone and in any batch.
Shapes: B batch, T frames, L tokens (T / 4), D features, E embedding, W words.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.arrays import upload
from utils.errors import UserError
from utils.files import read_checkpoint
from utils.training import distributed
from utils.weights import check_finite

MAX_FRAMES = 196  # the released movement encoders were trained on clips zero-padded to this length
CLIP_TOKENS, CLIP_VOCABULARY = 77, 49408
ADVICE = "train one with train_evaluator.py, or put the released file there"


class MovementConvEncoder(nn.Module):
    """Normalised motion (B, T, D) -> one feature per 4 frames (B, T / 4, output_size)."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(input_size, hidden_size, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2),
            nn.Conv1d(hidden_size, output_size, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2))
        self.out_net = nn.Linear(output_size, output_size)

    def forward(self, motion):
        return self.out_net(self.main(motion.transpose(1, 2)).transpose(1, 2))


class MotionEncoderBiGRUCo(nn.Module):
    """Bidirectional GRU with a learned initial state; its two final states make the embedding."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.input_emb = nn.Linear(input_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.LayerNorm(hidden_size),
                                        nn.LeakyReLU(0.2), nn.Linear(hidden_size, output_size))
        self.hidden = nn.Parameter(torch.randn(2, 1, hidden_size))

    def forward(self, inputs, lengths):
        """Movement features (B, L, input_size), lengths (B,) in tokens, at least 1 -> (B, output_size)."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.input_emb(inputs), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed, self.hidden.repeat(1, len(inputs), 1))  # (2, B, hidden)
        return self.output_net(torch.cat([last[0], last[1]], dim=-1))


class TextEncoderBiGRUCo(MotionEncoderBiGRUCo):
    """Word vectors (B, W, word_size), one-hot parts of speech (B, W, pos_size), numbers of words (B,) ->
    (B, output_size)."""

    def __init__(self, word_size, pos_size, hidden_size, output_size):
        super().__init__(word_size, hidden_size, output_size)
        self.pos_emb = nn.Linear(pos_size, word_size)

    def forward(self, word_emb, pos_onehot, cap_lens):
        return super().forward(word_emb + self.pos_emb(pos_onehot), cap_lens)


def sinusoids(length, width):
    """(length, width): even columns sine, odd ones cosine, periods from 2 pi to 10,000 * 2 pi."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(length, width)


class Positions(nn.Module):
    """Adds sinusoidal positions, which the released files carry as a buffer."""

    def __init__(self, width, length=2000):
        super().__init__()
        self.register_buffer("pe", sinusoids(length, width))

    def forward(self, x):
        return x + self.pe[: x.shape[1]]


def transformer(width, layers, feedforward, heads=8, dropout=0.1, norm_first=False):
    """torch's encoder without its nested-tensor shortcut, which changes the shape of padded batches."""
    layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout, "gelu", batch_first=True,
                                       norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def padding_mask(lengths, frames):
    """lengths (B,) -> (B, frames), true where a frame is padding."""
    return torch.arange(frames, device=lengths.device) >= lengths[:, None]


class QueryMotionEncoder(nn.Module):
    """The motion encoder of MotionCLIP: a learned query before the frames collects the embedding."""

    def __init__(self, input_size, width, layers, feedforward):
        super().__init__()
        self.query_token = nn.Parameter(torch.randn(1, width))
        self.embed_motion = nn.Linear(input_size, width)
        self.sequence_pos_encoder = Positions(width)
        self.transformer = transformer(width, layers, feedforward)
        self.out_ln = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, motion, lengths):
        query = self.query_token.expand(len(motion), 1, -1)
        x = self.sequence_pos_encoder(torch.cat([query, self.embed_motion(motion)], dim=1))
        mask = padding_mask(lengths.to(x.device) + 1, x.shape[1])
        return self.out(self.out_ln(self.transformer(x, src_key_padding_mask=mask)[:, 0]))


class MotionCLIP(nn.Module):
    """Contrastive evaluator on CLIP's token embedding. Embeddings are (B, 512), not normalised."""

    def __init__(self, input_size, width=512, layers=8, feedforward=1024):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(CLIP_TOKENS, width), requires_grad=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.motion_encoder = QueryMotionEncoder(input_size, width, layers, feedforward)
        self.token_embedding = nn.Embedding(CLIP_VOCABULARY, width).requires_grad_(False)
        self.textTransEncoder = transformer(width, layers, feedforward)
        self.text_ln = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def encode_motion(self, motion, lengths):
        """Normalised motion (B, T, D), lengths (B,) in frames."""
        return self.motion_encoder(motion, lengths)

    def encode_text(self, tokens):
        """CLIP's token numbers (B, 77), padded with 0. The end-of-text token has the largest number."""
        x = self.textTransEncoder(self.token_embedding(tokens) + self.positional_embedding)
        x = self.text_ln(x)[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)]
        return self.out(x)


class ContrastiveEvaluator(nn.Module):
    """A small contrastive evaluator: two strided convolutions and a transformer for motion, an MLP on frozen
    sentence features for text, trained with ``loss`` (symmetric InfoNCE, as CLIP, 2103.00020)."""

    def __init__(self, feature_dim, text_dim, embed_dim=512, width=192, layers=2, heads=4, dropout=0.1):
        super().__init__()
        self.config = {"feature_dim": feature_dim, "text_dim": text_dim, "embed_dim": embed_dim,
                       "width": width, "layers": layers, "heads": heads, "dropout": dropout}
        self.convs = nn.ModuleList([nn.Conv1d(feature_dim, width, 5, 2, 2), nn.Conv1d(width, width, 5, 2, 2)])
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.transformer = transformer(width, layers, 2 * width, heads, dropout, norm_first=True)
        self.motion_out = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, embed_dim))
        self.text_net = nn.Sequential(nn.Linear(text_dim, 2 * width), nn.GELU(), nn.LayerNorm(2 * width),
                                      nn.Dropout(dropout), nn.Linear(2 * width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_motion(self, motion, lengths):
        """Normalised motion (B, T, D), lengths (B,) in frames -> (B, E), not normalised."""
        x, lengths = motion, lengths.to(motion.device)
        padding = padding_mask(lengths, x.shape[1])
        for conv, norm in zip(self.convs, self.norms):
            x = conv(x.masked_fill(padding[..., None], 0).transpose(1, 2)).transpose(1, 2)
            lengths = (lengths + 1) // 2  # outputs whose centre is a real frame
            padding = padding_mask(lengths, x.shape[1])
            x = F.gelu(norm(x))
        x = x + upload(sinusoids(x.shape[1], x.shape[2]), x.device).to(x.dtype)
        x = self.transformer(x, src_key_padding_mask=padding)  # (B, L, width)
        mean = x.masked_fill(padding[..., None], 0).sum(1) / lengths[:, None]
        peak = x.masked_fill(padding[..., None], float("-inf")).amax(1)
        return self.motion_out(torch.cat([mean, peak], dim=-1))

    def encode_text(self, features):
        """Sentence features (B, text_dim) -> (B, E), not normalised."""
        return self.text_net(features)

    def loss(self, motion, lengths, text_features, same=None):
        """Symmetric InfoNCE of B pairs. ``same`` (B, B) bool: captions that mean the same are not negatives.
        Under torchrun a process passes its own pairs, and the ``same`` of all, which are all compared."""
        own = torch.cat([self.encode_motion(motion, lengths), self.encode_text(text_features)], dim=-1)
        motion, text = (F.normalize(x, dim=-1) for x in distributed.all_gather(own).chunk(2, dim=-1))
        logits = self.logit_scale.clamp(max=math.log(100.0)).exp() * text @ motion.T  # (B, B)
        if same is not None:
            others = same.to(logits.device) & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(others, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        rows = distributed.rows_of(len(own))
        return (F.cross_entropy(logits[rows], target[rows])
                + F.cross_entropy(logits.T[rows], target[rows])) / 2


class Evaluator:
    """Frozen networks on a device, with the mean and std of the features that they read."""

    def __init__(self, networks, mean, std, device):
        self.device = torch.device(device)
        self.networks = [network.to(self.device).eval().requires_grad_(False) for network in networks]
        self.mean, self.std = (torch.as_tensor(value, dtype=torch.float32).to(self.device)
                               for value in (mean, std))
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not (self.std > 0).all():
            raise UserError(f"an evaluator's mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} "
                            "must be two vectors of one length, the std positive")

    def normalise(self, motion, lengths, tail=0):
        """Un-normalised (B, T, >= D), lengths -> normalised (B, T, D) with zeros from ``tail`` frames after
        each clip's end on, lengths (B,). D are the first features: standard ones start with the essential."""
        motion = torch.as_tensor(motion, dtype=torch.float32).to(self.device)
        lengths = torch.as_tensor(lengths).to(self.device).long()
        if motion.ndim != 3 or motion.shape[-1] < len(self.mean):
            raise ValueError(f"motion must be (B, T, D), D at least {len(self.mean)}, got "
                             f"{tuple(motion.shape)}")
        if lengths.shape != motion.shape[:1] or not ((lengths >= 4) & (lengths <= motion.shape[1])).all():
            raise ValueError(f"lengths must be one per clip, 4 to {motion.shape[1]} frames, got "
                             f"{lengths.tolist()}")
        x = (motion[..., : len(self.mean)] - self.mean) / self.std
        return x.masked_fill(padding_mask(lengths + tail, x.shape[1])[..., None], 0), lengths


class MatchingEvaluator(Evaluator):
    """The released text-motion matching networks, for the FID, R-precision and matching score of the papers.
    vectorizer: a ``WordVectorizer``."""

    def __init__(self, movement_encoder, motion_encoder, text_encoder, mean, std, vectorizer, device="cpu"):
        super().__init__((movement_encoder, motion_encoder, text_encoder), mean, std, device)
        self.movement_encoder, self.motion_encoder, self.text_encoder = self.networks
        self.vectorizer = vectorizer
        self.input_size = movement_encoder.main[0].in_channels
        if not self.input_size <= len(self.mean) <= self.input_size + 4:  # standard: without 4 foot contacts
            raise UserError(f"the evaluator reads {self.input_size} features, but its mean and std have "
                            f"{len(self.mean)}")

    @classmethod
    def load(cls, path, mean, std, vectorizer, device="cpu"):
        """From a released ``finest.tar``."""
        makers = {"movement_encoder": make_movement_encoder, "motion_encoder": make_motion_encoder,
                  "text_encoder": make_text_encoder}
        state = read_checkpoint(path, tuple(makers), ADVICE)
        networks = [build(make, state[name], path) for name, make in makers.items()]
        return cls(*networks, mean, std, vectorizer, device)

    @torch.no_grad()
    def embed_text(self, captions):
        words, tags, lengths = zip(*(self.vectorizer.sentence(caption.tokens) for caption in captions))
        words, tags = (torch.as_tensor(np.stack(rows)).float().to(self.device) for rows in (words, tags))
        return self.text_encoder(words, tags, torch.tensor(lengths))

    @torch.no_grad()
    def embed_motion(self, motion, lengths, tail=0):
        """``tail``: frames after each clip's end that the convolutions see, as in the published protocol."""
        x, lengths = self.normalise(motion, lengths, tail)
        if lengths.max() > MAX_FRAMES:
            raise ValueError(f"the released evaluators take clips up to {MAX_FRAMES} frames, got "
                             f"{int(lengths.max())}")
        # The second convolution sees the padding: always the same, so that no clip depends on its batch.
        x = F.pad(x[:, :MAX_FRAMES, : self.input_size], (0, 0, 0, max(0, MAX_FRAMES - x.shape[1])))
        return self.motion_encoder(self.movement_encoder(x), lengths // 4)


class UnitEvaluator(Evaluator):
    """One contrastive network; embeddings have length 1. ``text_inputs(captions)``: what it reads of them."""

    def __init__(self, model, mean, std, device):
        super().__init__((model,), mean, std, device)
        self.model = model

    @torch.no_grad()
    def embed_text(self, captions):
        return F.normalize(self.model.encode_text(self.text_inputs(captions).to(self.device)), dim=-1)

    @torch.no_grad()
    def embed_motion(self, motion, lengths):
        return F.normalize(self.model.encode_motion(*self.normalise(motion, lengths)), dim=-1)


class ContrastEvaluator(UnitEvaluator):
    """The released MotionCLIP, for the CLIP-score.
    tokenize: list of str -> lists of CLIP's token numbers, with start and end."""

    def __init__(self, model, mean, std, tokenize, device="cpu"):
        super().__init__(model, mean, std, device)
        self.tokenize = tokenize

    @classmethod
    def load(cls, path, mean, std, tokenize, device="cpu"):
        """From a released ``finest.tar``."""
        state = read_checkpoint(path, ("contrast_model",), ADVICE)["contrast_model"]
        return cls(build(make_motion_clip, state, path), mean, std, tokenize, device)

    def text_inputs(self, captions):
        tokens = torch.zeros(len(captions), CLIP_TOKENS, dtype=torch.long)
        for row, numbers in zip(tokens, self.tokenize([caption.text for caption in captions])):
            if len(numbers) > CLIP_TOKENS:  # keep the end token
                numbers = [*numbers[: CLIP_TOKENS - 1], numbers[-1]]
            row[: len(numbers)] = torch.as_tensor(numbers)
        return tokens


class TrainedEvaluator(UnitEvaluator):
    """Our own evaluator. text_features: list of str -> (B, text_dim), the frozen sentence encoder."""

    def __init__(self, model, mean, std, text_features, device="cpu"):
        super().__init__(model, mean, std, device)
        if len(self.mean) != model.config["feature_dim"]:
            raise ValueError(f"the network reads {model.config['feature_dim']} features, its mean has "
                             f"{len(self.mean)}")
        self.text_features = text_features

    @classmethod
    def load(cls, path, text_features, device="cpu"):
        """From a checkpoint of train_evaluator.py. UserError for a missing, damaged or different file."""
        content = read_checkpoint(path, ("evaluator", "model_kwargs", "mean", "std"), ADVICE)
        model = build(lambda _state: ContrastiveEvaluator(**content["model_kwargs"]), content["evaluator"],
                      path)
        return cls(model, content["mean"], content["std"], text_features, device)

    def text_inputs(self, captions):
        return self.text_features([caption.text for caption in captions])


def build(make, state, path):
    """The network ``make(state)`` with exactly the weights of ``state``. Raises UserError."""
    check_finite(state, path)
    try:
        network = make(state)
        network.load_state_dict(state, strict=True)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit its network ({reason})") from error
    return network


def make_movement_encoder(state):
    hidden, inputs = state["main.0.weight"].shape[:2]
    return MovementConvEncoder(inputs, hidden, state["main.3.weight"].shape[0])


def make_motion_encoder(state):
    hidden, inputs = state["input_emb.weight"].shape
    return MotionEncoderBiGRUCo(inputs, hidden, state["output_net.3.weight"].shape[0])


def make_text_encoder(state):
    hidden, words = state["input_emb.weight"].shape
    return TextEncoderBiGRUCo(words, state["pos_emb.weight"].shape[1], hidden,
                              state["output_net.3.weight"].shape[0])


def make_motion_clip(state):
    width, inputs = state["motion_encoder.embed_motion.weight"].shape
    layers = len({name.split(".")[2] for name in state if name.startswith("textTransEncoder.layers.")})
    return MotionCLIP(inputs, width, layers, state["textTransEncoder.layers.0.linear1.weight"].shape[0])


def padded_batches(read, lengths, batch_size, device="cpu"):
    """This process' batches of motions, sorted by length: (rows, motions (B, T, D) zero-padded, frames (B,)).
    read: function(row) -> (T, D); lengths: (N,) frames."""
    order = np.argsort(lengths, kind="stable")
    for first in distributed.turns(range(0, len(order), batch_size)):
        rows = order[first : first + batch_size]
        motions = [torch.as_tensor(read(row)) for row in rows]
        yield (rows, nn.utils.rnn.pad_sequence(motions, batch_first=True).to(device),
               torch.as_tensor(lengths[rows], device=device))


def embed_all(evaluator, motions, batch_size=64, tail=0):
    """Embeddings (N, E) float64 of un-normalised motions (T_i, D).
    ``tail``: frames that each motion has after its clip's end (``MatchingEvaluator.embed_motion``)."""
    lengths, options = np.array([len(motion) for motion in motions]), {"tail": tail} if tail else {}
    out = [None] * len(motions)
    for rows, batch, frames in padded_batches(motions.__getitem__, lengths, batch_size):
        embeddings = evaluator.embed_motion(batch, frames - tail, **options).double().cpu().numpy()
        for row, embedding in zip(rows, embeddings):
            out[row] = embedding
    return np.stack(distributed.gather_turns(out))
