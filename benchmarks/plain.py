"""The plain variants that the fast code is measured and tested against: the same results in the most direct
way. Plain sampling is part of the models: ``--sampler reference``."""
import imageio_ffmpeg
import numpy as np
import torch
from matplotlib.animation import FFMpegWriter, FuncAnimation
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from models.generation import padding_mask_of
from utils.curves import plt


def plain_loss(model, latents, targets, cond, lengths):
    """``MARDM.loss`` with the head run on every token, padding too, and averaged over the masked ones. It
    draws the same random numbers, so loss and gradient are the same."""
    padding = padding_mask_of(lengths, latents.shape[1])
    mask = model.draw_mask(padding)
    latents = model.corrupt(latents, mask)
    z = model(latents, model.drop_cond(cond, len(mask)), padding)
    times, head = model.diffmlps_batch_mul, model.DiffMLPs
    chosen = mask.flatten().repeat(times)
    target = targets[mask].repeat(times, 1)
    t = head.process.draw_time(len(target), target.device)
    noise = torch.randn(target.shape, device=target.device)

    def on_every_token(x_t, t):
        every_x, every_t = x_t.new_zeros(len(chosen), x_t.shape[1]), t.new_zeros(len(chosen))
        every_x[chosen], every_t[chosen] = x_t, t
        return head.net(every_x, every_t, z.flatten(0, 1).repeat(times, 1))[chosen]

    return head.training_loss(on_every_token, target, t, noise)


class PlainEMA:
    """Moving average of the weights, parameter by parameter."""

    def __init__(self, model, decay=0.9999):
        self.decay, self.average = decay, [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model):
        for average, parameter in zip(self.average, model.parameters()):
            average.mul_(self.decay).add_(parameter, alpha=1 - self.decay)


def plain_video(joints, path, skeleton, fps, caption=""):
    """A clip (T, J, 3), Y up, drawn as is usual in the field: matplotlib's 3-D axes, cleared and filled again
    for every frame of a FuncAnimation, 1000 x 1000 pixels."""
    figure = plt.figure(figsize=(10, 10), dpi=100)
    axes = figure.add_subplot(projection="3d")
    figure.suptitle(caption)
    joints = np.asarray(joints) - [0, joints[..., 1].min(), 0]
    low, high = joints.min((0, 1)), joints.max((0, 1))

    def draw(t):
        axes.clear()
        axes.set(xlim=(-1.5, 1.5), ylim=(0, 3), zlim=(-1.5, 1.5))
        axes.view_init(elev=120, azim=-90)
        axes.set_axis_off()
        x, _, z = joints[t, 0]
        corners = [(low[0] - x, 0, low[2] - z), (low[0] - x, 0, high[2] - z), (high[0] - x, 0, high[2] - z),
                   (high[0] - x, 0, low[2] - z)]
        axes.add_collection3d(Poly3DCollection([corners], facecolor=(0.5, 0.5, 0.5, 0.5)))
        trail = joints[:t, 0] - [x, 0, z]
        axes.plot(trail[:, 0], np.zeros(t), trail[:, 2], color="blue", linewidth=1)
        for chain in skeleton.chains:
            limb = joints[t, list(chain)] - [x, 0, z]
            axes.plot(limb[:, 0], limb[:, 1], limb[:, 2], linewidth=4)

    with plt.rc_context({"animation.ffmpeg_path": imageio_ffmpeg.get_ffmpeg_exe()}):
        FuncAnimation(figure, draw, frames=len(joints)).save(str(path), writer=FFMpegWriter(fps=fps))
    plt.close(figure)
    return path
