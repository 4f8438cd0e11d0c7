"""One file a command of ``python -m lt_train``."""

COMMANDS = {  # each a module here with a main(words); train.py is what a config is for
    "evaluate": "metrics of a run, finished or not",
    "predict": "the likeliest classes of any images, by a classifier's run",
    "posthoc": "tau-norm, nearest class mean and post-hoc logit adjustment of a classifier's run",
    "pseudo_label": "label an unlabeled set with a classifier's run",
    "score": "score a pool of images with a sourcing classifier",
    "report": "one page of tables and plots from finished runs",
    "export": "a run's network for torchvision, timm, ONNX or TorchScript",
    "completion": "a script for bash, zsh or fish that completes these, configs and keys",
}
