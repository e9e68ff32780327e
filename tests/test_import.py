"""`import cogvideo` is quick and light; what heavy libraries give is loaded where it is used."""

import subprocess
import sys

HEAVY = [
    "av",
    "IPython",
    "matplotlib",
    "pandas",
    "papermill",
    "PIL",
    "sentencepiece",
    "sklearn",
    "typer",
    "yaml",
]


def test_importing_the_sampler_needs_torch_einops_numpy_safetensors_alone():
    script = f"""
import sys
import cogvideo, cogvideo.model.transformer, cogvideo.sampling
import cogvideo.checkpoints.sat, cogvideo.checkpoints.native
cogvideo.load_sat_checkpoint, cogvideo.generate_key_frames, cogvideo.FrameTokenizer
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_loading_a_model_leaves_the_compiler_of_torch_out():
    """Random weights on the meta device would import it: two seconds before every clip."""
    script = (
        "import sys, cogvideo; cogvideo.Pipeline.from_pretrained('demo'); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_rooms_are_reached_from_the_package_alone():
    script = "import cogvideo; cogvideo.sampling.ClusterStrategy; cogvideo.superres.DirectSuperResolution"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_exists():
    import cogvideo

    for name in cogvideo.__all__:
        assert getattr(cogvideo, name) is not None
