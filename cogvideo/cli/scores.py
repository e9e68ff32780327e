"""The commands `cogvideo evaluate is`, `clipsim`, `ucf101` and `kinetics`; cli.py puts them beside the others."""

from pathlib import Path
from typing import Annotated

import typer

Generated = Annotated[
    str,
    typer.Argument(
        metavar="GENERATED",
        help="As in `evaluate fvd`: a folder of videos, digits:.., ucf101:.., kinetics:.., or weights to sample from.",
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The data set, with a folder for each class.")]
Weights = Annotated[str, typer.Option(help="demo, a pipeline folder, or the folder of the released files.")]
Count = Annotated[int, typer.Option("-n", help="Clips.")]
Seed = Annotated[int, typer.Option(help="Chooses videos, places in them, classes and draws.")]
Splits = Annotated[int, typer.Option(help="Parts that the Inception Score is the mean over.")]
C3DMean = Annotated[
    Path | None,
    typer.Option(help="TGANv2's mean2.npz; without it a mean colour is subtracted, not as published."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="JSON {class: prompt} or CSV class,prompt; without it the class names in words."),
]
I3DFile = Annotated[
    Path | None,
    typer.Option(
        help="Another file of I3D weights; a TorchScript file is a program and is run: only from those you trust."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Write the result to a JSON file, too.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def inception_score(
    generated: Generated,
    c3d: Annotated[
        Path, typer.Option(help="C3D on UCF-101: TGANv2's conv3d_deepnetA_ucf.npz, .safetensors, or .pth.")
    ],
    c3d_mean: C3DMean = None,
    n: Count = 2048,
    splits: Splits = 10,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Inception Score for UCF-101: C3D on the first 16 frames of each video."""
    from cogvideo.evaluation.c3d import C3D
    from cogvideo.evaluation.scores import evaluate_inception_score
    from cogvideo.evaluation.settings import Settings

    network = C3D.from_pretrained(c3d, mean=c3d_mean, device=device)
    evaluate_inception_score(generated, network, Settings(n, seed, device, out=out), splits=splits)


def clipsim(
    generated: Generated,
    clip: Annotated[Path, typer.Option(help="The weights of CLIP, as open_clip writes them.")],
    clip_model: Annotated[str, typer.Option(help="What open_clip calls the model.")] = "ViT-B-32",
    real: Annotated[
        str | None, typer.Option(help="Real videos of the same prompts, for GODIVA's relative matching.")
    ] = None,
    n: Count = 2048,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """CLIPSIM: mean similarity of frames with their prompt; for weights, digits:.., and folders with captions.jsonl."""
    from cogvideo.evaluation.scores import ClipEncoder, evaluate_clipsim
    from cogvideo.evaluation.settings import Settings

    encoder = ClipEncoder.from_open_clip(clip, clip_model, device=device)
    evaluate_clipsim(generated, encoder, Settings(n, seed, device, out=out), real=real)


def ucf101(
    folder: Folder,
    weights: Weights,
    n: Count = 2048,
    split: Annotated[str, typer.Option(help="A split file of the data set, or all.")] = "trainlist01.txt",
    seconds: Annotated[float, typer.Option(help="How long a sample lasts.")] = 4.0,
    prompts: Prompts = None,
    c3d: Annotated[Path | None, typer.Option(help="C3D on UCF-101, for the Inception Score.")] = None,
    c3d_mean: C3DMean = None,
    splits: Splits = 10,
    i3d: I3DFile = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """The paper's UCF-101: samples of its classes against its videos, by FVD and, with --c3d, the Inception Score."""
    from cogvideo.evaluation.protocols import evaluate_ucf101
    from cogvideo.evaluation.settings import Settings

    evaluate_ucf101(
        folder, weights, Settings(n, seed, device, i3d, out), split=split, seconds=seconds, prompts=prompts, c3d=c3d,
        c3d_mean=c3d_mean, splits=splits,
    )  # fmt: skip


def kinetics(
    folder: Folder,
    weights: Weights,
    n: Annotated[int | None, typer.Option("-n", help="Clips; 50000, as published, if not given.")] = None,
    split: Annotated[str, typer.Option(help="A CSV file of the data set, or all.")] = "all",
    seconds: Annotated[
        float | None, typer.Option(help="The frame-rate text; the shortest span trained if not given.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, max=4, help="Frames that a window of 5 begins with: 1 to 4.")
    ] = None,
    prompts: Prompts = None,
    i3d: I3DFile = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """The paper's Kinetics-600: 5 frames are given, 11 predicted; FVD at 64 x 64 pixels."""
    from cogvideo.evaluation.protocols import evaluate_kinetics
    from cogvideo.evaluation.settings import Settings

    evaluate_kinetics(
        folder, weights, Settings(n, seed, device, i3d, out), split=split, seconds=seconds, overlap=overlap,
        prompts=prompts,
    )  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    for name, command in {
        "is": inception_score,
        "clipsim": clipsim,
        "ucf101": ucf101,
        "kinetics": kinetics,
    }.items():
        app.command(name)(command)
