"""Evaluate behaviour codes: how well behaviour can be read from them, what each code stands for, what they
cost, and what a worse sensor does to them.

    python evaluation_behavior.py --name codes --dataset_name imu_har
    python evaluation_behavior.py --name codes --dataset_name imu_har --onnx codes.onnx
    python evaluation_behavior.py --name codes --dataset_name imu_har --monitor walk.csv

Results: the screen, checkpoints/<dataset>/<name>/eval/eval.log and, in the same folder,
evaluation_behavior.json, with the whole dictionary. --monitor needs no data set: it prints the behaviours in
a recording, and stops. It reads a CSV file (columns: docs/behavior.md) or, where the network was trained on
virtual sensors, joints (.npy).
"""
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.meter import seconds
from models.Conv2dFSQ import Deployed
from models.loading import load_behavior, weights_hash
from utils import options
from utils.data.inertial import cut, open_sensors, spec_of
from utils.data.recordings import ACCELERATION, ANGULAR, Units, read_recording
from utils.data.specs import spec_of_checkpoint
from utils.errors import UserError, run
from utils.evaluation import behavior
from utils.evaluation.codebook import usage_rows, usage_statistics
from utils.export.onnx_files import check_packages, write_onnx
from utils.files import RunFolder
from utils.motion.inertial import virtual_sensors
from utils.motion.sources import ANY_LENGTH, read_source
from utils.report import format_table, write_results
from utils.training.settings import code_version, machine, pick_device, seed_everything

AT_ONCE = 256  # windows that are computed together
CALLS, WARM_UP = 200, 20  # of which the median latency is taken; before them
LISTED = 12  # codes and transitions in the printed tables


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="behavior")
    add = parser.add_argument
    add("--which", choices=["best", "latest"], default="best",
        help="best.tar (lowest cross entropy of the behaviours on the validation split) or latest.tar")
    options.add_split(parser)
    add("--onnx", type=Path, default=None, metavar="FILE.onnx",
        help="also write the network as ONNX, from a raw window to probabilities and codes, and compare it "
             "on the split, with onnxruntime")
    add("--monitor", type=Path, default=None, metavar="FILE",
        help="print the behaviours in a recording, every half window, and stop")
    add("--recorded_at", type=options.positive_float, default=None,
        help="--monitor: samples per second of a CSV file without a column time; default: the network's")
    add("--acceleration_unit", choices=list(ACCELERATION), default="g", help="--monitor: of the CSV file")
    add("--angular_unit", choices=list(ANGULAR), default="rad/s", help="--monitor: of the CSV file")
    return parser.parse_args()


def open_network(args):
    """(model, its checkpoint, the file, SensorSpec). UserError where they do not go together."""
    path = RunFolder(args.checkpoints_dir, args.dataset_name, args.name).checkpoint(args.which)
    model, checkpoint = load_behavior(path)
    spec = spec_of(checkpoint.get("sensors", {}), path)
    channels = len(spec.channels)
    if (model.window, model.input_channels) != (spec.window, channels) or len(
            checkpoint.get("mean", ())) != channels or model.classifier[-1].out_features != len(
            spec.behaviors):
        raise UserError(f"{path} is damaged: its network does not fit its sensors or behaviours")
    return model, checkpoint, path, spec


@torch.no_grad()
def read_windows(model, windows, device):
    """What the network makes of normalised windows (N, T, C): predicted (N,), probabilities (N, K), decoded
    (N, T, C), indices (N, L, ...) or None; on the CPU."""
    outs = [model(part.to(device)) for part in windows.split(AT_ONCE)]
    probabilities, decoded = (torch.cat([value.cpu() for value in values]) for values in
                              ([out.logits.softmax(1) for out in outs], [out.windows for out in outs]))
    indices = None if outs[0].indices is None else torch.cat([out.indices.cpu() for out in outs])
    return probabilities.argmax(1).numpy(), probabilities.numpy(), decoded, indices


# What a report consists of.

@torch.no_grad()
def code_report(model, spec, data, train, found):
    """What the codes of a split say, by a dictionary made of the training split. train, found: indices."""
    codes, known = behavior.code_texts(found), behavior.code_texts(train["indices"])
    classifier = behavior.CodeClassifier(known, train["labels"], len(spec.behaviors))
    guessed = classifier.predict(codes)
    vectors = [model.quantizer.decode_indices(indices.to(model.pre_quant.weight.device)).cpu().numpy()
               for indices in (found, train["indices"])]
    nearest = classifier.predict(behavior.nearest_known(codes, known, *vectors))
    usage = usage_statistics(codes.reshape(-1), model.quantizer.codebook_size)
    return {"accuracy_from_code": float((guessed == data.labels).mean()),
            "recall_from_code": behavior.recall(guessed, data.labels, spec.behaviors),
            "accuracy_from_nearest_code": float((nearest == data.labels).mean()),
            "unseen_codes": classifier.unseen(codes), "usage": usage,
            "rates": behavior.rates(model.quantizer.codebook_size, model.tokens, spec, usage["entropy_bits"]),
            "dictionary_of_train": behavior.meanings(train["indices"], train["labels"], spec.behaviors),
            "dictionary": behavior.meanings(found, data.labels, spec.behaviors),
            "transitions": behavior.transitions(found, data.recordings, data.starts, spec.hop)}


def reconstruction_report(decoded, windows):
    """Share of the variance of normalised windows (N, T, C) that the decoder gives back: of all, about the
    mean of each channel, and of what is left when each window's mean per channel is known."""
    def explained(made, real):
        return float(1 - ((made - real) ** 2).sum() / ((real - real.mean((0, 1))) ** 2).sum())

    def moving(x):
        return x - x.mean(1, keepdim=True)

    return {"variance_explained": explained(decoded, windows),
            "variance_explained_within_windows": explained(moving(decoded), moving(windows))}


def robustness_report(model, data, clean, device, seed):
    """{disturbance: {"accuracy", "same_code"}}; clean: indices without it, or None."""
    report = {}
    for name, windows in behavior.disturbances(data.windows, data.std, seed).items():
        predicted, _, _, indices = read_windows(model, data.normalised(windows), device)
        report[name] = {"accuracy": float((predicted == data.labels).mean())}
        if clean is not None:
            report[name]["same_code"] = float((indices == clean).flatten(1).all(1).float().mean())
    return report


@torch.no_grad()
def latency_report(model, window, device):
    """Median and 95th percentile in milliseconds of each part, for one normalised window (1, T, C)."""
    window = window.to(device)
    z = model.encode(window)
    z_q = model.quantizer(z).z_q
    report = {}
    for part, work in (("encoder", partial(model.encode, window)), ("quantizer", partial(model.quantizer, z)),
                       ("classifier", partial(model.classify, z_q)), ("decoder", partial(model.decode, z_q))):
        times = [1000 * seconds(work, device) for _ in range(CALLS + WARM_UP)][WARM_UP:]
        report[part] = {"median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}
    report["window_to_behavior"] = {"median_ms": sum(report[part]["median_ms"] for part in
                                                     ("encoder", "quantizer", "classifier"))}
    return report


def evaluate(args, model, spec, splits, device):
    """The report of a trained network. splits: (InertialWindows of --split, those of training)."""
    data, train_data = splits
    windows = data.normalised()
    predicted, _, decoded, indices = read_windows(model, windows, device)
    results = {"windows": len(data), "training_windows": len(train_data), "behaviors": list(spec.behaviors),
               "accuracy": float((predicted == data.labels).mean()),
               "recall": behavior.recall(predicted, data.labels, spec.behaviors),
               "most_frequent_behavior": float(np.bincount(data.labels).max() / len(data)),
               "reconstruction": reconstruction_report(decoded, windows), "codes": None}
    if indices is not None:
        train = {"indices": read_windows(model, train_data.normalised(), device)[3],
                 "labels": train_data.labels}
        results["codes"] = code_report(model, spec, data, train, indices)
    return results | {"robustness": robustness_report(model, data, indices, device, args.seed),
                      "latency": latency_report(model, windows[:1], device),
                      "threads": torch.get_num_threads(),
                      "parameters": sum(value.numel() for value in model.parameters())}


# What is printed.

def make_tables(results):
    """Plain-text tables of the results."""
    rows = [("accuracy", f"{results['accuracy']:.4f}", f"of {results['windows']} windows; the most frequent "
             f"behaviour has {results['most_frequent_behavior']:.4f}")]
    codes = results["codes"]
    if codes:
        known, rate = codes["dictionary_of_train"]["summary"], codes["rates"]
        most = codes["dictionary"]["entries"][0]
        rows += [("accuracy from the code alone", f"{codes['accuracy_from_code']:.4f}",
                  "by a table code -> behaviour of the training windows"),
                 ("with the nearest known code", f"{codes['accuracy_from_nearest_code']:.4f}",
                  "the same, codes that the table lacks read as the nearest that it has"),
                 ("unseen codes", f"{codes['unseen_codes']:.4f}", "share of windows' codes"),
                 *usage_rows(codes["usage"]),
                 ("most used code", f"{most['share']:.4f}",
                  f"code {behavior.code_text(most['code'])}, {most['label']}"),
                 ("purity", f"{known['purity']:.4f}",
                  f"of {known['codes_used']} training codes, mean of windows; {known['pure_codes']:.4f} of "
                  "the codes stand for one behaviour"),
                 ("bits per window", f"{rate['bits_per_window']:.2f}",
                  f"entropy {rate['entropy_bits_per_window']:.2f}; {rate['bits_per_second']:.2f} bit/s"),
                 ("compression", f"{rate['compression_float32']:.0f}:1",
                  f"against {rate['window_bits_float32']} bits of float32"),
                 ("compression of the sensor", f"{rate['compression_sensor']:.0f}:1",
                  f"against {rate['window_bits_sensor']} bits: six channels per sensor, of 16 bits")]
    rows += [(key.replace("_", " "), f"{value:.4f}", "of the normalised signals, from the code")
             for key, value in results["reconstruction"].items()]
    rows += [(f"latency: {part}".replace("_", " "), f"{value['median_ms']:.3f} ms",
              f"one window, median of {CALLS}, {results['threads']} thread(s)")
             for part, value in results["latency"].items()]
    tables = [format_table(rows, ("metric", "value", ""))]
    if codes:
        tables += code_tables(codes)
    header = ("disturbance", "accuracy", *(["same code"] if codes else []))
    tables.append(format_table([(name, *(f"{value:.4f}" for value in row.values()))
                                for name, row in results["robustness"].items()], header, left=1))
    return "\n\n".join(tables)


def code_tables(codes):
    known, moves = codes["dictionary_of_train"], codes["transitions"]
    own = {name: row["own"] for name, row in known["behaviors"].items()}
    tables = [format_table([(name, own.get(name, 0), "-" if recall is None else f"{recall:.3f}")
                            for name, recall in codes["recall_from_code"].items()],
                           ("behaviour", "codes", "recall from code"), left=1),
              format_table([(behavior.code_text(row["code"]), row["label"], f"{row['purity']:.3f}",
                             row["count"]) for row in known["entries"][:LISTED]],
                           ("code", "behaviour", "purity", "training windows"), left=2)]
    if not moves:
        return [*tables, "no two consecutive windows of one recording in this split: no transitions"]
    head = (f"{moves['steps']} pairs of consecutive windows: {moves['stay']:.3f} keep their code; the next "
            f"code has {moves['next_bits']:.2f} bits, {moves['entropy_bits']:.2f} when the one before is "
            "known")
    return [*tables, head + "\n" + format_table(
        [(*(behavior.code_text(row[end]) for end in ("from", "to")), row["count"])
         for row in moves["top"][:LISTED]],
        ("from", "to", "pairs"))]


# A recording.

def monitored_signals(args, spec, checkpoint):
    """Signals (N, C) of the --monitor file."""
    if args.monitor.suffix == ".npy":
        if not spec.places:
            raise UserError(f"--monitor {args.monitor}: joints are read by networks of virtual sensors; this "
                            "one was trained on recordings, and reads CSV files")
        motion = spec_of_checkpoint(checkpoint, args.dataset_name, args.name)
        joints, _ = read_source(args.monitor, motion, "--monitor", ANY_LENGTH)
        return virtual_sensors(joints, motion.layout, motion.fps, spec.places, spec.rate)
    units = Units(args.acceleration_unit, args.angular_unit)
    return read_recording(args.monitor, spec.rate, spec.places, units, args.recorded_at).signals


def monitor(args, model, checkpoint, spec, device):
    """Print the behaviour of every window of a recording, then stretches of one behaviour."""
    signals = monitored_signals(args, spec, checkpoint)
    starts = cut(len(signals), spec)
    if not starts:
        raise UserError(f"--monitor {args.monitor}: {len(signals) / spec.rate:.2f} s are shorter than the "
                        f"network's window of {spec.window / spec.rate:.2f} s")
    windows = torch.from_numpy(np.stack([signals[start : start + spec.window] for start in starts]))
    if options.checked():
        return
    normalised = (windows - checkpoint["mean"]) / checkpoint["std"]
    predicted, probabilities, _, indices = read_windows(model, normalised, device)
    codes = [["-"]] * len(windows) if indices is None else behavior.code_texts(indices)
    rows = [(f"{start / spec.rate:.2f}", f"{(start + spec.window) / spec.rate:.2f}", spec.behaviors[label],
             f"{chances[label]:.3f}", " ".join(code))
            for start, label, chances, code in zip(starts, predicted, probabilities, codes)]
    print(format_table(rows, ("from s", "to s", "behaviour", "probability", "code")))
    changes = [0, *(np.flatnonzero(np.diff(predicted)) + 1), len(predicted)]
    print("", *(f"{starts[first] / spec.rate:.2f} to {(starts[last - 1] + spec.window) / spec.rate:.2f} s: "
                f"{spec.behaviors[predicted[first]]}" for first, last in zip(changes, changes[1:])), sep="\n")


def main():
    args = parse_args()
    device = pick_device(args.device)
    seed_everything(args.seed)
    model, checkpoint, path, spec = open_network(args)
    model.to(device)
    if args.monitor:
        monitor(args, model, checkpoint, spec, device)
        return
    if args.onnx:
        check_packages()
    sensors = open_sensors(args.dataset_name, args.dataset_dir, spec)
    statistics = tuple(checkpoint[key].numpy() for key in ("mean", "std"))
    splits = [sensors.split(split, statistics) for split in (args.split, "train")]
    if options.checked():
        return
    results = {"kind": "behavior", "dataset": sensors.name, "split": args.split, "name": args.name,
               "checkpoint": path.name, "weights": weights_hash(model), "seed": args.seed,
               "model_kwargs": checkpoint["model_kwargs"], "sensors": spec.describe(),
               "steps": checkpoint.get("total_it"), "code_version": code_version(), "machine": machine(),
               **evaluate(args, model, spec, splits, device)}
    table, refused = make_tables(results), None
    if args.onnx:
        deployed = Deployed(model.cpu(), checkpoint["mean"], checkpoint["std"])
        try:
            found = results["onnx"] = write_onnx(deployed, torch.from_numpy(splits[0].windows), args.onnx)
            table += (f"\n\n{args.onnx}: {found['bytes'] / 1000:.0f} kB; by onnxruntime "
                      f"{found['same_codes']:.4f} of {found['windows']} windows have the same codes, and "
                      f"probabilities differ by {found['largest_difference']:.1g} at most")
        except UserError as error:  # the results are not lost with the file
            refused = error
    write_results(RunFolder(args.checkpoints_dir, args.dataset_name, args.name).root / "eval",
                  "evaluation_behavior", results, table)
    if refused:
        raise refused


if __name__ == "__main__":
    run(main)
