"""`cogvideo evaluate`: scores of weights and of videos, and the paper's protocols."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import Device, Guidance, Report, Seconds, Seed, Weights, output

app = typer.Typer(name="evaluate", help="Score weights and videos.", no_args_is_help=True)

SIDE = (
    "A folder of videos, or of frames in .npy and .npz; theatre:test?seed=1&seconds=4; "
    "ucf101:FOLDER?split=testlist01.txt; kinetics:FOLDER?split=FILE.csv; samples:DATA?weights=W&seconds=2, "
    "samples of the captions in DATA; or weights to sample from."
)
BY = (
    "Names with commas between: channel, layer, head, time, word, group; in the theatre actor, action, "
    "object, phase."
)
PRESET = "paper, stylegan-v, videogpt or cd-fvd."
REPEAT = " Repeatable; by default all."
DAMAGE = "shuffled, frozen, reversed, blurred, noisy or recoded."
C3D_FILE = "C3D on UCF-101: TGANv2's conv3d_deepnetA_ucf.npz, .safetensors, or .pth."

Real = Annotated[str, typer.Argument(help="Real videos, given like GENERATED.")]
Generated = Annotated[str, typer.Argument(help=SIDE)]
Folder = Annotated[Path, typer.Argument(help="The data set: a folder for each class.")]
Clips = Annotated[int | None, typer.Option("-n", help="Clips a side; by default the published number.")]
Splits = Annotated[int, typer.Option(help="Parts that the Inception Score is the mean over.")]
C3DMean = Annotated[
    Path | None, typer.Option(help="TGANv2's mean2.npz; by default a mean colour, not as published.")
]
Prompts = Annotated[
    Path | None, typer.Option(help="JSON {class: prompt} or CSV class,prompt; by default class names.")
]
I3D = Annotated[
    Path | None, typer.Option(help="Other I3D weights. TorchScript files are programs: trust them first.")
]


def _settings(n: int | None, seed: int, device: str, output: Path | None, i3d: Path | None = None):
    from cogvideo.evaluation.settings import Settings

    return Settings(n, seed, device, i3d, output)


@app.command()
def alignment(
    weights: Weights = "demo",
    n: Annotated[int, typer.Option("-n", help="Prompts of each kind.")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    guidance: Guidance = None,
    groups: Annotated[
        str, typer.Option(help="Of seen, unseen and picture-only.")
    ] = "seen,unseen,picture-only",
    language: Annotated[str | None, typer.Option(help="en or zh; by default half of each.")] = None,
    output: Report = None,
) -> None:
    """How often a judge sees in demo clips what was asked for."""
    from cogvideo.theatre.alignment import evaluate

    ask = [group.strip() for group in groups.split(",")]
    evaluate(weights, n, seed, guidance=guidance, groups=ask, language=language, out=output, device=device)


@app.command()
def attention(
    clips: Annotated[str, typer.Argument(help="Captioned clips: theatre:test?clips=20, or a folder.")],
    weights: Weights = "demo",
    by: Annotated[str, typer.Option(help=BY)] = "channel,layer,head",
    output: Annotated[Path, output("The CSV file to write.")] = Path("attention.csv"),
    device: Device = "auto",
) -> None:
    """Where attention goes, averaged over clips."""
    from tqdm import tqdm

    from cogvideo.data.sources import open_dataset
    from cogvideo.explore.averages import attention_averages
    from cogvideo.io import write_whole
    from cogvideo.sampling.pipeline import Pipeline

    found = tqdm(open_dataset(clips).clips, desc="attention", unit="clip")
    table = attention_averages(Pipeline.from_pretrained(weights, device=device), found, by.split(","))
    typer.echo(f"{write_whole(output, table.to_csv(index=False))}: {len(table)} rows")


@app.command()
def fvd(
    real: Real,
    generated: Generated,
    preset: Annotated[str, typer.Option(help=PRESET)] = "paper",
    n: Clips = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="Independent generations to score, n clips each.")] = 1,
    i3d: I3D = None,
    output: Report = None,
    device: Device = "auto",
) -> None:
    """FVD, KVD and MIND, with their recipe, floor and spread. A stopped run resumes."""
    from cogvideo.evaluation.protocols import evaluate

    evaluate(real, generated, _settings(n, seed, device, output, i3d), preset=preset, seeds=seeds)


@app.command()
def sensitivity(
    real: Annotated[str, typer.Argument(help="As in `evaluate fvd`; 2 n videos are taken.")],
    generated: Annotated[str | None, typer.Option(help="Videos to score, too, such as demo.")] = None,
    presets: Annotated[list[str] | None, typer.Option("--preset", help=PRESET + REPEAT)] = None,
    n: Clips = 64,
    damages: Annotated[list[str] | None, typer.Option("--damage", help=DAMAGE + REPEAT)] = None,
    strengths: Annotated[
        list[float], typer.Option("--strength", help="Above 0, up to 1 (the whole damage); repeatable.")
    ] = [1.0],
    seed: Seed = 0,
    i3d: I3D = None,
    output: Annotated[Path | None, output("A JSON file; a picture (.png) goes beside it.")] = None,
    device: Device = "auto",
) -> None:
    """What FVD, KVD and MIND feel: real clips against damaged ones. Each line costs n clips through I3D."""
    from cogvideo.evaluation.recipes import PRESETS
    from cogvideo.evaluation.sensitivity import DAMAGES, sensitivity

    kinds = {"presets": presets or tuple(PRESETS), "damages": damages or DAMAGES, "strengths": strengths}
    sensitivity(real, generated, _settings(n, seed, device, output, i3d), **kinds)


@app.command("is")
def inception_score(
    generated: Generated,
    c3d: Annotated[Path, typer.Option(help=C3D_FILE)],
    c3d_mean: C3DMean = None,
    n: Clips = None,
    splits: Splits = 10,
    seed: Seed = 0,
    output: Report = None,
    device: Device = "auto",
) -> None:
    """Inception Score for UCF-101. C3D looks at the first 16 frames of each video."""
    from cogvideo.evaluation.c3d import C3D
    from cogvideo.evaluation.scores import evaluate_inception_score

    network = C3D.from_pretrained(c3d, mean=c3d_mean, device=device)
    evaluate_inception_score(generated, network, _settings(n, seed, device, output), splits=splits)


@app.command()
def clipsim(
    generated: Generated,
    clip: Annotated[Path, typer.Option(help="The weights of CLIP, as open_clip writes them.")],
    clip_model: Annotated[str, typer.Option(help="The model's name in open_clip.")] = "ViT-B-32",
    real: Annotated[str | None, typer.Option(help="Real videos, for GODIVA's relative matching.")] = None,
    n: Clips = None,
    seed: Seed = 0,
    output: Report = None,
    device: Device = "auto",
) -> None:
    """CLIPSIM: mean similarity of frames with their prompt. A folder needs captions.jsonl."""
    from cogvideo.evaluation.scores import ClipEncoder, evaluate_clipsim

    encoder = ClipEncoder.from_open_clip(clip, clip_model, device=device)
    evaluate_clipsim(generated, encoder, _settings(n, seed, device, output), real=real)


@app.command()
def ucf101(
    folder: Folder,
    weights: Weights,
    n: Clips = None,
    split: Annotated[str, typer.Option(help="A split file of the data set, or all.")] = "trainlist01.txt",
    seconds: Seconds = 4.0,
    prompts: Prompts = None,
    c3d: Annotated[Path | None, typer.Option(help=C3D_FILE)] = None,
    c3d_mean: C3DMean = None,
    splits: Splits = 10,
    i3d: I3D = None,
    seed: Seed = 0,
    output: Report = None,
    device: Device = "auto",
) -> None:
    """The paper's UCF-101 protocol: FVD and, with --c3d, IS. Samples of its classes against its videos."""
    from cogvideo.evaluation.protocols import evaluate_ucf101

    scoring = {"c3d": c3d, "c3d_mean": c3d_mean, "splits": splits}
    sampling = {"split": split, "seconds": seconds, "prompts": prompts}
    evaluate_ucf101(folder, weights, _settings(n, seed, device, output, i3d), **sampling, **scoring)


@app.command()
def kinetics(
    folder: Folder,
    weights: Weights,
    n: Clips = None,
    split: Annotated[str, typer.Option(help="A CSV file of the data set, or all.")] = "all",
    seconds: Annotated[float | None, typer.Option(help="Frame-rate text; by default the shortest.")] = None,
    overlap: Annotated[int | None, typer.Option(min=1, max=4, help="Frames shared by windows of 5.")] = None,
    prompts: Prompts = None,
    i3d: I3D = None,
    seed: Seed = 0,
    output: Report = None,
    device: Device = "auto",
) -> None:
    """The paper's Kinetics-600 protocol: FVD of predictions. 5 frames of 64 x 64 are given, 11 predicted."""
    from cogvideo.evaluation.protocols import evaluate_kinetics

    sampling = {"split": split, "seconds": seconds, "overlap": overlap, "prompts": prompts}
    evaluate_kinetics(folder, weights, _settings(n, seed, device, output, i3d), **sampling)
