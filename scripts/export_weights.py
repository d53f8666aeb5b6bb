"""A trained generator for others: its weights, its autoencoder's and its length estimator's, as float16.

    python -m scripts.export_weights --name demo_MARDM --dataset_name demo
    python sample.py --checkpoints_dir weights --dataset_name demo --name demo_MARDM --text_prompt "he sits"

Writes weights.safetensors (tensors) and weights.json (all else that a checkpoint holds, without the folders
of this machine) for each run, laid out as in --checkpoints_dir, so that every script reads them there. --name
may also be an autoencoder or a length estimator, which goes alone. A run that is there already is kept.
"""
from models.loading import load_autoencoder, weights_hash
from utils import options
from utils.errors import UserError, run
from utils.files import RunFolder, read_checkpoint, write_weights
from utils.weights import NETWORKS


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM", check=False)
    add = parser.add_argument
    add("--which", choices=["best", "latest"], default="best", help="checkpoint of the run to export")
    add("--length_estimator", default="length_estimator", help="its --name, for a generator that reads text")
    add("--save_as", type=options.plain_name, default=None,
        help="new name of the run; its autoencoder becomes NAME_AE. Default: their names stay")
    add("--licence", default=None, help="terms of use, which sample.py shows")
    add("--output_dir", default="./weights", help="folder of the results")
    return parser.parse_args()


def plain_content(checkpoint, licence):
    """What a checkpoint is exported with: one set of weights for each network (the running averages, where
    there are any), and no folders."""
    content = {key: value for key, value in checkpoint.items() if key not in NETWORKS}
    for key in set(NETWORKS) & set(checkpoint):
        content[key.removeprefix("ema_")] = checkpoint.get(f"ema_{key}", checkpoint[key])
    if "args" in content:
        content["args"] = {key: value for key, value in content["args"].items() if not key.endswith("_dir")}
    return content | ({"licence": licence} if licence else {})


def runs_of(args, content):
    """{name: content} of the runs that go with a generator: autoencoder and length estimator."""
    def read(name):
        path = RunFolder(args.checkpoints_dir, args.dataset_name, name).checkpoint()
        return plain_content(read_checkpoint(path), args.licence)

    if "trained_on" not in content:
        raise UserError(f"the generator {args.name} does not name its autoencoder, so it cannot be exported")
    ae_name = content["trained_on"]["name"]
    runs = {f"{args.save_as}_AE" if args.save_as else ae_name: read(ae_name)}
    if content["model_kwargs"]["cond_mode"] == "text":
        runs["length_estimator"] = read(args.length_estimator)
    return runs


def write_run(content, args, name):
    """Write a run's weights and say so; their path. UserError if the run is there."""
    folder = RunFolder(args.output_dir, args.dataset_name, name)
    folder.prepare(False)
    write_weights(folder.weights, content)
    print(f"{folder.weights}: {folder.weights.stat().st_size / 1e6:.1f} MB")
    return folder.weights


def main():
    args = parse_args()
    path = RunFolder(args.checkpoints_dir, args.dataset_name, args.name).checkpoint(args.which)
    content = plain_content(read_checkpoint(path), args.licence)
    if not {"mardm", "ae", "estimator"} & set(content) or "dataset" not in content:
        raise UserError(f"{path} is no generator, autoencoder or length estimator that was trained with this "
                        "code; only these can be exported")
    if "mardm" in content:
        written = [write_run(run, args, name) for name, run in runs_of(args, content).items()]
        # the generator belongs to the autoencoder as it is now, rounded
        content["trained_on"] |= {"name": written[0].parts[-3],
                                  "hash": weights_hash(load_autoencoder(written[0])[0])}
    write_run(content, args, args.save_as or args.name)


if __name__ == "__main__":
    run(main)
